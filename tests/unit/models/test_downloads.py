"""Downloads over a temporary data folder: what outlives a failure and a kill, their queue, and cancelling them."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from termwise.server.errors import FailedPreconditionError, ResourceExhaustedError, UnavailableError
from termwise.server.inference.base import ExpansionConfig
from termwise.server.inference.loader import ModelFacts
from termwise.server.metadata.records import ModelRecord, ModelState
from termwise.server.models import artifacts
from termwise.server.models.download import Download
from termwise.server.models.downloads import Downloads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from termwise.server.metadata.store import MetadataStore
    from termwise.server.models.repositories.base import Report

FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}


def facts(folder: Path, config: ExpansionConfig) -> ModelFacts:
    del config
    if (folder / "model.safetensors").read_bytes() != b"weights":
        raise FailedPreconditionError("model.safetensors is broken.")
    return ModelFacts("sha256:d", "sha256:q", 11, "BertForMaskedLM", 7)


@dataclass
class Source:
    """A repository whose bytes come one by one, each kept in the scratch folder, until it is told what to do."""

    scheme: str = "held"
    weights: bytes = b"weights"
    # What happens once so many bytes are there: an error, or None to wait for `go`.
    faults: list[tuple[int, Exception | None]] = field(default_factory=list)
    fetched: list[int] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    waits: threading.Event = field(default_factory=threading.Event)
    running: list[str] = field(default_factory=list)
    most: int = 0

    def check(self, uri: str) -> None:
        del uri

    def fetch(self, uri: str, folder: Path, *, scratch: Path, sha256: str, report: Report) -> None:
        del sha256
        self.running.append(uri)
        self.most = max(self.most, len(self.running))
        try:
            part = scratch / "part"
            held = part.read_bytes() if part.exists() else b""
            assert list(folder.iterdir()) == []
            self.fetched.append(0)
            total = len(self.weights)
            report(len(held), total)
            while len(held) < total:
                if self.faults and self.faults[0][0] <= len(held):
                    self._fault(len(held), report)
                held += self.weights[len(held) : len(held) + 1]
                self.fetched[-1] += 1
                part.write_bytes(held)
                report(len(held), total)
            for name, data in FILES.items():
                (folder / name).write_bytes(held if name == artifacts.WEIGHTS else data)
        finally:
            self.running.remove(uri)

    def _fault(self, held: int, report: Report) -> None:
        _, error = self.faults[0]
        if error is not None:
            self.faults.pop(0)
            raise error
        self.waits.set()
        while not self.go.wait(0.01):
            report(held, len(self.weights))
        self.faults.clear()


@dataclass
class Life:
    """One life of a server over the folder of models."""

    downloads: Downloads
    source: Source
    store: MetadataStore
    ready: list[str]

    def begin(self, model_id: str = "mine", uri: str = "held://x", sha256: str = "") -> Download:
        config = dataclasses.asdict(ExpansionConfig())
        record = ModelRecord(model_id, ModelState.DOWNLOADING, uri, datetime.now(UTC), sha256=sha256, config=config)
        self.store.put_model(record)
        return self.downloads.start(record)

    async def run(self, *arguments: str) -> ModelRecord:
        await self.begin(*arguments).ended()
        return self.record(arguments[0] if arguments else "mine")

    def record(self, model_id: str = "mine") -> ModelRecord:
        record = self.store.get_model(model_id)
        assert record is not None
        return record


@pytest.fixture
async def live(store: MetadataStore, models: Path) -> AsyncIterator[Callable[..., Life]]:
    lives: list[Life] = []

    def begin(source: Source | None = None, at_once: int = 2, store: MetadataStore = store) -> Life:
        source = source or Source()
        ready: list[str] = []
        downloads = Downloads(
            store,
            models,
            repositories={"held": source},
            inspect=facts,
            packaged={},
            names=asyncio.Lock(),
            on_ready=ready.append,
            at_once=at_once,
        )
        lives.append(Life(downloads, source, store, ready))
        return lives[-1]

    yield begin
    for life in lives:
        life.source.go.set()
        await life.downloads.close()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


async def reach(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 30)


async def test_a_retry_goes_on_where_the_failed_one_was(live: Any, models: Path) -> None:
    life = live(Source(faults=[(3, UnavailableError("No network."))]))
    record = await life.run()
    assert (record.state, record.error) == (ModelState.FAILED, "No network.")
    (draft,) = names(models)
    assert "~" in draft
    record = await life.run()
    assert record.state is ModelState.READY
    assert life.source.fetched == [3, 4]
    assert names(models) == ["mine"]
    assert life.ready == ["mine"]


async def test_a_stopped_download_goes_on_in_the_next_life(live: Any, models: Path) -> None:
    first = live(Source(faults=[(5, None)]))
    first.begin()
    await reach(first.source.waits)
    await first.downloads.close()
    assert first.record().state is ModelState.DOWNLOADING
    assert artifacts.sweep(models, {"mine"}) == []
    second = live()
    assert (await second.run()).state is ModelState.READY
    assert second.source.fetched == [2]


@pytest.mark.parametrize(
    "failure",
    [
        FailedPreconditionError("Of no use."),
        ResourceExhaustedError("The disk is full."),
        OSError(28, "No space left on device"),
        RuntimeError("broken"),
    ],
)
async def test_what_failed_for_good_leaves_nothing(live: Any, models: Path, failure: Exception) -> None:
    """A full disk is not to be kept full by what filled it."""
    life = live(Source(faults=[(3, failure)]))
    assert (await life.run()).state is ModelState.FAILED
    assert names(models) == []
    assert (await life.run()).state is ModelState.READY
    assert life.source.fetched == [3, 7]


async def test_a_draft_that_turns_out_bad_is_begun_anew_once(live: Any, models: Path) -> None:
    life = live(Source(weights=b"sthgiew", faults=[(3, UnavailableError("No network."))]))
    await life.run()
    life.source.weights = b"weights"  # the source changed meanwhile, and the repository did not notice
    assert (await life.run()).state is ModelState.READY
    assert life.source.fetched == [3, 4, 7]
    assert (models / "mine" / "model.safetensors").read_bytes() == b"weights"


async def test_a_source_that_is_bad_is_not_fetched_for_ever(live: Any, models: Path) -> None:
    life = live(Source(weights=b"sthgiew", faults=[(3, UnavailableError("No network."))]))
    await life.run()
    assert (await life.run()).error == "model.safetensors is broken."
    assert life.source.fetched == [3, 4, 7]
    assert names(models) == []


@pytest.mark.parametrize("other", [("mine", "held://y"), ("mine", "held://x", "0" * 64)])
async def test_another_source_or_checksum_begins_anew(live: Any, models: Path, other: tuple[str, ...]) -> None:
    life = live(Source(faults=[(3, UnavailableError("No network.")), (3, UnavailableError("No network."))]))
    await life.run()
    await life.run(*other)
    assert len(names(models)) == 1
    await life.run(*other)
    assert life.source.fetched == [3, 3, 4]


async def test_models_do_not_share_drafts(live: Any, models: Path) -> None:
    life = live(Source(faults=[(3, UnavailableError("No network.")), (2, UnavailableError("No network."))]))
    await life.run("mine")
    await life.run("other")
    assert len(names(models)) == 2
    await life.run("mine")
    await life.run("other")
    assert life.source.fetched == [3, 2, 4, 5]
    assert names(models) == ["mine", "other"]


async def test_cancel_ends_a_download_and_removes_what_it_fetched(live: Any, models: Path) -> None:
    life = live(Source(faults=[(3, None)]))
    download = life.begin()
    await reach(life.source.waits)
    await life.downloads.cancel("mine")
    assert names(models) == []
    record = life.record()
    assert record.state is ModelState.FAILED
    assert record.error == 'The download of model "mine" was cancelled; call DownloadTrainedModel to begin it anew.'
    assert download.finished
    assert download.error.reason_code == "DOWNLOAD_CANCELLED"
    assert not download.stopped
    life.source.go.set()
    assert (await life.run()).state is ModelState.READY
    assert life.source.fetched == [3, 7]


async def test_cancel_without_a_download_is_refused(live: Any) -> None:
    life = live()
    with pytest.raises(FailedPreconditionError, match='No download of model "mine" is running') as error:
        await life.downloads.cancel("mine")
    assert error.value.reason_code == "DOWNLOAD_NOT_RUNNING"
    await life.run()
    with pytest.raises(FailedPreconditionError, match="nothing to cancel"):
        await life.downloads.cancel("mine")
    assert life.record().state is ModelState.READY


async def test_cancel_of_a_kept_failure_is_refused_and_keeps_the_reason(live: Any) -> None:
    life = live(Source(faults=[(3, UnavailableError("No network."))]))
    await life.run()
    with pytest.raises(FailedPreconditionError, match="nothing to cancel"):
        await life.downloads.cancel("mine")
    assert life.record().error == "No network."


async def test_so_many_run_at_a_time_and_the_others_wait_in_order(live: Any) -> None:
    life = live(Source(faults=[(1, None)]), at_once=2)
    downloads = [life.begin(f"m{number}", f"held://{number}") for number in range(5)]
    await reach(life.source.waits)
    assert not any(download.bytes_total for download in downloads[2:])
    assert [download.admitted for download in downloads] == [True, True, False, False, False]
    life.source.go.set()
    for download in downloads:
        await download.ended()
        assert (download.bytes_done, download.bytes_total) == (7, 7)
    assert life.source.most == 2
    assert sorted(life.ready) == [f"m{number}" for number in range(5)]


async def test_one_that_waits_is_cancelled_at_once(live: Any, models: Path) -> None:
    life = live(Source(faults=[(1, None)]), at_once=1)
    first, second, third = (life.begin(name) for name in ("first", "second", "third"))
    await reach(life.source.waits)
    await life.downloads.cancel("second")
    assert life.record("second").state is ModelState.FAILED
    assert not first.finished
    await life.downloads.stop("third")
    assert third.stopped
    life.source.go.set()
    await first.ended()
    assert second.finished
    assert life.ready == ["first"]
    assert names(models) == ["first"]
    assert (await life.run("second")).state is ModelState.READY


async def test_a_server_that_stops_lets_a_cancel_end(live: Any, models: Path) -> None:
    life = live(Source(faults=[(3, None)]))
    life.begin()
    await reach(life.source.waits)
    cancelling = asyncio.create_task(life.downloads.cancel("mine"))
    await asyncio.sleep(0)
    await life.downloads.close()
    await cancelling
    assert life.record().state is ModelState.FAILED
    assert names(models) == []


async def test_changes_made_meanwhile_are_kept(live: Any, store: MetadataStore) -> None:
    life = live(Source(faults=[(3, None)]))
    download = life.begin()
    await reach(life.source.waits)
    store.put_model(dataclasses.replace(life.record(), description="Changed."))
    life.source.go.set()
    await download.ended()
    assert (life.record().state, life.record().description) == (ModelState.READY, "Changed.")


async def test_a_published_folder_that_broke_is_fetched_again(live: Any, models: Path) -> None:
    (models / "mine").mkdir()
    (models / "mine" / "model.safetensors").write_bytes(b"")
    life = live()
    assert (await life.run()).state is ModelState.READY
    assert (models / "mine" / "model.safetensors").read_bytes() == b"weights"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_progress_goes_back_only_to_begin_anew(steps: list[tuple[int, int]]) -> None:
    loop = asyncio.new_event_loop()
    download = Download(loop)
    before = 0
    for done, total in steps:
        download._show(done, total)
        assert download.bytes_done >= before or done == 0
        assert download.bytes_total == total
        before = download.bytes_done
    loop.close()


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "a.b", ".c"]), st.sampled_from(["x", "y"]), max_size=4),
    st.sets(st.sampled_from(["a", "b", "a.b", ".c"])),
    st.sets(st.sampled_from(["a", "b", "a.b", ".c"])),
)
def test_a_sweep_keeps_what_has_a_right(drafts: dict[str, str], keep: set[str], keep_drafts: set[str]) -> None:
    with TemporaryDirectory() as folder:
        models = Path(folder)
        for model_id, source in drafts.items():
            (models / model_id).mkdir()
            artifacts.open_draft(models, model_id, source, "")
        (models / "draft~0123").mkdir()
        artifacts.sweep(models, keep, keep_drafts)
        kept = {artifacts.draft_name(name, source, "") for name, source in drafts.items() if name in keep_drafts}
        assert {entry.name for entry in models.iterdir()} == kept | (keep & set(drafts))
