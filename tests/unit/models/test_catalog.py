from __future__ import annotations

import asyncio
import dataclasses
import errno
import hashlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.context import RequestContext
from termwise.server.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from termwise.server.inference.base import ExpansionConfig
from termwise.server.inference.loader import inspect_model
from termwise.server.metadata.records import DeploymentRecord, ModelRecord, ModelState
from termwise.server.models.catalog import ModelCatalog
from termwise.server.models.packaged import PackagedModel
from termwise.server.models.repositories.file import FileRepository
from termwise.server.models.requests import ModelWait, NewModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.server.metadata.store import MetadataStore

HELD = NewModel("mine", "held://anything")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def move(folder: Path, target: Path) -> None:
    folder.rename(target)


async def reach(event: Any) -> None:
    """Wait for a thread's event without holding the loop."""
    assert await asyncio.to_thread(event.wait, 30)


async def follow(life: Any, model_id: str = "mine") -> list[Any]:
    return [step async for step in life.catalog.download(RequestContext("watcher"), model_id)]


def soon(seconds: float) -> RequestContext:
    return RequestContext("test", deadline=time.monotonic() + seconds)


async def test_a_model_is_put_fetched_and_ready(life: Any, context: RequestContext, source: Path, models: Path) -> None:
    new = NewModel(
        "mine",
        f"file://{source}",
        hashlib.sha256(b"weights").hexdigest().upper(),
        "A model.",
        ("sparse",),
        ExpansionConfig(max_tokens=128, query_prefix="query: "),
        {"owner": "search"},
    )
    model = await life.catalog.put(context, new, ModelWait.READY)
    record = model.record
    assert record.state is ModelState.READY
    assert record.fingerprint.startswith("sha256:")
    assert (record.size_bytes, record.architecture, record.vocabulary_size) == (11, "BertForMaskedLM", 7)
    assert (record.description, record.tags, record.metadata) == ("A model.", ("sparse",), {"owner": "search"})
    assert ExpansionConfig(**record.config) == new.config
    assert (model.download.bytes_done, model.download.bytes_total) == (11, 11)
    assert (models / "mine" / "model.safetensors").read_bytes() == b"weights"
    assert await life.catalog.get("mine") == model
    assert names(models) == ["mine"]


async def test_put_answers_at_once_and_the_download_goes_on(life: Any, context: RequestContext, models: Path) -> None:
    model = await life.catalog.put(context, HELD)
    assert model.record.state is ModelState.DOWNLOADING
    await reach(life.repository.half)
    assert not (models / "mine").exists()
    life.repository.go.set()
    assert (await follow(life))[-1].state is ModelState.READY
    assert (models / "mine" / "model.safetensors").is_file()


async def test_a_deadline_ends_the_wait_and_not_the_download(life: Any) -> None:
    with pytest.raises(DeadlineExceededError, match="still downloading"):
        await life.catalog.put(soon(0.1), HELD, ModelWait.READY)
    life.repository.go.set()
    assert (await follow(life))[-1].state is ModelState.READY


async def test_a_caller_that_leaves_stops_nothing(life: Any, context: RequestContext) -> None:
    call = asyncio.create_task(life.catalog.put(context, HELD, ModelWait.READY))
    await reach(life.repository.half)
    call.cancel()
    watcher = asyncio.create_task(follow(life))
    await asyncio.sleep(0)
    watcher.cancel()
    life.repository.go.set()
    assert (await follow(life))[-1].state is ModelState.READY
    assert life.repository.fetches == 1


async def test_watchers_share_one_download(life: Any, context: RequestContext) -> None:
    await life.catalog.put(context, HELD)
    watchers = [asyncio.create_task(follow(life)) for _ in range(3)]
    await reach(life.repository.half)
    life.repository.go.set()
    for steps in await asyncio.gather(*watchers):
        assert [step.state for step in steps[:-1]] == [ModelState.DOWNLOADING] * (len(steps) - 1)
        assert (steps[-1].state, steps[-1].bytes_done, steps[-1].bytes_total) == (ModelState.READY, 100, 100)
    assert life.repository.fetches == 1


async def test_a_ready_model_answers_a_download_with_one_step(life: Any, context: RequestContext, source: Path) -> None:
    await life.catalog.put(context, NewModel("mine", f"file://{source}"), ModelWait.READY)
    assert [step.state for step in await follow(life)] == [ModelState.READY]


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (UnavailableError("No network."), UnavailableError, "No network."),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            ResourceExhaustedError,
            "The disk of the data folder is full",
        ),
        (OSError(errno.EACCES, "Permission denied"), FailedPreconditionError, "Permission denied while fetching"),
        (RuntimeError("secret"), FailedPreconditionError, r"could not be fetched \(RuntimeError\)"),
    ],
)
async def test_a_failed_download_says_why_and_can_be_tried_again(
    life: Any, context: RequestContext, models: Path, failure: Exception, kind: type[Exception], message: str
) -> None:
    life.repository.failures.append(failure)
    life.repository.go.set()
    model = await life.catalog.put(context, HELD, ModelWait.READY)
    assert model.record.state is ModelState.FAILED
    assert names(models) == []
    life.repository.failures.append(failure)
    states = []
    with pytest.raises(kind, match=message):  # noqa: PT012
        async for step in life.catalog.download(context, "mine"):
            states.append(step.state)  # noqa: PERF401 - what came before the error counts
    assert states[-1] is ModelState.FAILED
    assert (await follow(life))[-1].state is ModelState.READY
    assert (await life.catalog.get("mine")).record.error == ""


async def test_a_full_disk_leaves_nothing_behind(
    life: Any, context: RequestContext, source: Path, models: Path, small_disk: Callable[[int], Any]
) -> None:
    (source / "model.safetensors").write_bytes(bytes(4 << 20))
    with small_disk(1 << 20):
        model = await life.catalog.put(context, NewModel("mine", f"file://{source}"), ModelWait.READY)
        assert model.record.state is ModelState.FAILED
        assert model.record.error.startswith("The disk of the data folder is full")
        with pytest.raises(ResourceExhaustedError):
            await follow(life)
    assert names(models) == []
    assert (await follow(life))[-1].state is ModelState.READY


async def test_packaged_models_check_both_checksums(
    live: Callable[..., Any], context: RequestContext, source: Path, models: Path
) -> None:
    right = hashlib.sha256(b"weights").hexdigest()
    known = [
        PackagedModel(".good", f"file://{source}", right, right, 512, "Good.", ("tag",)),
        PackagedModel(".bad", f"file://{source}", "", "0" * 64, 512, "Bad."),
    ]
    life = live(packaged={model.model_id: model for model in known})
    good = await life.catalog.put(context, NewModel(".good"), ModelWait.READY)
    assert (good.record.state, good.record.description, good.record.tags) == (ModelState.READY, "Good.", ("tag",))
    assert (good.record.source_uri, good.record.sha256) == (f"file://{source}", right)
    bad = await life.catalog.put(context, NewModel(".bad"), ModelWait.READY)
    assert bad.record.state is ModelState.FAILED
    assert "0" * 64 in bad.record.error
    assert right in bad.record.error
    assert names(models) == [".good"]


async def test_a_tag_is_no_models_id(life: Any, context: RequestContext) -> None:
    await life.catalog.put(context, NewModel("other"))
    for tags in (("fine", "other"), ("fine", "mine")):
        with pytest.raises(InvalidArgumentError, match=r"tags\[1\]: .* is the id of a model"):
            await life.catalog.put(context, NewModel("mine", tags=tags))
    assert (await life.catalog.put(context, NewModel("mine", tags=("fine",)))).record.tags == ("fine",)


async def test_names_are_taken_once(life: Any, context: RequestContext, store: MetadataStore) -> None:
    store.insert_deployment(DeploymentRecord("busy", "mine", 1, 1, 1, datetime.now(UTC)))
    with pytest.raises(AlreadyExistsError) as caught:
        await life.catalog.put(context, NewModel("busy", "held://x"))
    assert caught.value.reason_code == "DEPLOYMENT_ALREADY_EXISTS"
    await life.catalog.put(context, HELD)
    with pytest.raises(AlreadyExistsError) as caught:
        await life.catalog.put(context, HELD)
    assert caught.value.reason_code == "MODEL_ALREADY_EXISTS"


@pytest.mark.parametrize("uri", ["ftp://host/x", "folder", "://", "pypi:/x"])
async def test_an_unknown_kind_of_source_is_refused(life: Any, context: RequestContext, uri: str) -> None:
    with pytest.raises(InvalidArgumentError, match="give file:// or held:// or pypi://") as caught:
        await life.catalog.put(context, NewModel("mine", uri))
    assert caught.value.violations[0].field == "source_uri"
    with pytest.raises(NotFoundError):
        await life.catalog.get("mine")


async def test_absent_models_are_not_found(life: Any, context: RequestContext) -> None:
    await life.catalog.put(context, HELD)
    for call in (life.catalog.get("mined"), life.catalog.delete("mined"), follow(life, "mined")):
        with pytest.raises(NotFoundError, match=r'did you mean "mine"\?'):
            await call
    with pytest.raises(NotFoundError, match="It is a packaged model; put it first"):
        await life.catalog.get(".splade_tiny")


async def test_models_are_listed_by_id(life: Any, context: RequestContext) -> None:
    for name in ("b", "a", "c"):
        await life.catalog.put(context, NewModel(name, "held://x"))
    ids = [model.record.model_id for model in await life.catalog.list()]
    assert ids == ["a", "b", "c"]
    assert [model.record.model_id for model in await life.catalog.list("a", 1)] == ["b"]


async def test_delete_removes_the_files_and_frees_the_name(
    life: Any, context: RequestContext, source: Path, models: Path
) -> None:
    new = NewModel("mine", f"file://{source}")
    first = await life.catalog.put(context, new, ModelWait.READY)
    await life.catalog.delete("mine")
    assert names(models) == []
    with pytest.raises(NotFoundError):
        await life.catalog.get("mine")
    again = await life.catalog.put(context, new, ModelWait.READY)
    assert again.record.state is ModelState.READY
    assert again.record.create_time > first.record.create_time


async def test_delete_is_refused_while_a_deployment_runs_the_model(
    life: Any, context: RequestContext, source: Path, store: MetadataStore
) -> None:
    await life.catalog.put(context, NewModel("mine", f"file://{source}"), ModelWait.READY)
    store.insert_deployment(DeploymentRecord("for_search", "mine", 1, 1, 1, datetime.now(UTC)))
    with pytest.raises(FailedPreconditionError, match='is used by deployment "for_search"; stop it first'):
        await life.catalog.delete("mine")
    assert (await life.catalog.get("mine")).record.state is ModelState.READY


async def test_delete_ends_a_download(life: Any, context: RequestContext, models: Path) -> None:
    await life.catalog.put(context, HELD)
    await reach(life.repository.half)
    watcher = asyncio.create_task(follow(life))
    await asyncio.sleep(0)
    await life.catalog.delete("mine")
    assert names(models) == []
    with pytest.raises((UnavailableError, NotFoundError)):
        await watcher
    with pytest.raises(NotFoundError):
        await life.catalog.get("mine")


async def test_a_stopped_download_is_resumed_by_the_next_start(
    live: Callable[..., Any], context: RequestContext, models: Path, store: MetadataStore
) -> None:
    first = live()
    await first.catalog.put(context, HELD)
    await reach(first.repository.half)
    await first.end()
    assert store.get_model("mine").state is ModelState.DOWNLOADING  # type: ignore[union-attr]
    assert names(models) == []
    second = live()
    second.repository.go.set()
    await second.restore()
    assert (await follow(second))[-1].state is ModelState.READY


def record_of(model_id: str, state: ModelState) -> ModelRecord:
    return ModelRecord(model_id, state, "held://x", datetime.now(UTC), config=dataclasses.asdict(ExpansionConfig()))


async def test_a_crash_between_the_folder_and_its_record_loses_no_download(
    life: Any, source: Path, models: Path, store: MetadataStore
) -> None:
    store.insert_model(record_of("mine", ModelState.DOWNLOADING))
    move(source, models / "mine")
    await life.restore()
    model = await life.catalog.ready("mine")
    assert model.fingerprint.startswith("sha256:")
    assert life.repository.fetches == 0
    progress = (await life.catalog.get("mine")).download
    assert (progress.bytes_done, progress.bytes_total) == (11, 11)


async def test_a_crash_in_a_deletion_is_finished(life: Any, source: Path, models: Path, store: MetadataStore) -> None:
    store.insert_model(record_of("mine", ModelState.DELETING))
    move(source, models / "mine")
    await life.restore()
    assert store.get_model("mine") is None
    assert names(models) == []


async def test_a_lost_folder_fails_its_model_until_it_is_fetched_again(
    life: Any, models: Path, store: MetadataStore
) -> None:
    store.insert_model(record_of("mine", ModelState.READY))
    await life.restore()
    model = (await life.catalog.get("mine")).record
    assert model.state is ModelState.FAILED
    assert "gone from the data folder" in model.error
    with pytest.raises(FailedPreconditionError, match="Call DownloadTrainedModel"):
        await life.catalog.ready("mine")
    life.repository.go.set()
    assert (await follow(life))[-1].state is ModelState.READY
    assert (models / "mine").is_dir()


async def test_stray_folders_are_removed(life: Any, source: Path, models: Path, store: MetadataStore) -> None:
    store.insert_model(record_of("kept", ModelState.READY))
    store.insert_model(record_of("failed", ModelState.FAILED))
    for name in ("failed", "nobodys", "draft~0123/files"):
        (models / name).mkdir(parents=True)
    (models / "file").write_text("x")
    (models / "lost+found").mkdir()  # the file system's own, where the folder is a volume
    move(source, models / "kept")
    await life.restore()
    assert names(models) == ["kept", "lost+found"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "model.safetensors"),
        ("garbage", "model.safetensors"),
        ("no tensor", "lack"),
        ("config", "config.json"),
        ("max_tokens", "max_tokens"),
    ],
)
async def test_broken_models_fail_with_one_sentence(
    store: MetadataStore, models: Path, tiny_model: Path, context: RequestContext, damage: str, message: str
) -> None:
    config = ExpansionConfig()
    weights = tiny_model / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "garbage":
        weights.write_bytes(b"\x80\x04pickle" * 40)
    elif damage == "no tensor":
        empty = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        weights.write_bytes(len(empty).to_bytes(8, "little") + empty + bytes(4))
    elif damage == "config":
        (tiny_model / "config.json").write_text("{")
    else:
        config = ExpansionConfig(max_tokens=33)
    catalog = ModelCatalog(store, models, repositories=[FileRepository(Path("/"))], inspect=inspect_model)
    model = await catalog.put(context, NewModel("mine", f"file://{tiny_model}", config=config), ModelWait.READY)
    assert model.record.state is ModelState.FAILED
    assert message in model.record.error
    assert model.record.error.count("\n") == 0
    assert names(models) == []
    await catalog.close()


async def test_a_real_model_is_inspected(
    store: MetadataStore, models: Path, tiny_model: Path, context: RequestContext
) -> None:
    catalog = ModelCatalog(store, models, repositories=[FileRepository(Path("/"))], inspect=inspect_model)
    model = await catalog.put(context, NewModel("mine", f"file://{tiny_model}"), ModelWait.READY)
    assert (model.record.state, model.record.error) == (ModelState.READY, "")
    assert (model.record.architecture, model.record.vocabulary_size) == ("BertForMaskedLM", 8)
    await catalog.close()
