"""Uploads over a temporary data folder: parts in, a model's folder out, and nothing lost over a cut."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elser_package import tiny_package
from termwise.server.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from termwise.server.inference.base import ExpansionConfig
from termwise.server.inference.loader import ModelFacts
from termwise.server.metadata.records import ModelRecord, ModelState
from termwise.server.models.artifacts import open_draft
from termwise.server.models.held import HeldFiles, UploadedFile, check_name, read_ledger
from termwise.server.models.uploads import UploadCommit, UploadData, UploadHeader, Uploads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from termwise.server.metadata.store import MetadataStore
    from termwise.server.models.uploads import UploadPart

FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": bytes(range(256)) * 40}


def facts(folder: Path, config: ExpansionConfig) -> ModelFacts:
    del config
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return ModelFacts("sha256:d", "sha256:q", size, "BertForMaskedLM", 7, layout="transformers", hidden=3)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def header(name: str, data: bytes, offset: int = 0, **changes: Any) -> UploadHeader:
    return dataclasses.replace(UploadHeader("mine", name, len(data), digest(data), offset), **changes)


def whole(files: dict[str, bytes]) -> list[UploadPart]:
    return [part for name, data in files.items() for part in (header(name, data), UploadData(data))]


async def stream(*parts: UploadPart) -> AsyncIterator[UploadPart]:
    for part in parts:
        yield part


@pytest.fixture
def put(store: MetadataStore) -> Callable[..., None]:
    def insert(state: ModelState = ModelState.DEFINED, source: str = "", model_id: str = "mine") -> None:
        config = dataclasses.asdict(ExpansionConfig())
        store.insert_model(ModelRecord(model_id, state, source, datetime.now(UTC), config=config))

    return insert


@pytest.fixture
def begin(store: MetadataStore, models: Path) -> Callable[..., Uploads]:
    """Begin a server's life: `uploads = begin()`."""

    def make(inspect: Any = facts, ready: list[str] | None = None) -> Uploads:
        heard = [] if ready is None else ready
        return Uploads(store, models, inspect=inspect, names=asyncio.Lock(), on_ready=heard.append)

    return make


async def test_a_model_is_uploaded_and_ready(
    begin: Any, put: Any, store: MetadataStore, models: Path, tree: Any
) -> None:
    put()
    heard: list[str] = []
    uploads = begin(ready=heard)
    assert await uploads.receive(stream(*whole(FILES), UploadCommit())) == "mine"
    record = store.get_model("mine")
    assert record is not None
    assert (record.state, record.fingerprint, record.layout) == (ModelState.READY, "sha256:d", "transformers")
    assert record.facts["hidden"] == 3
    assert tree(models / "mine") == FILES
    assert names(models) == ["mine"]
    assert heard == ["mine"]
    assert await uploads.held("mine") == ()


async def test_a_cut_stream_goes_on_where_it_was(begin: Any, put: Any, models: Path, tree: Any) -> None:
    put()
    data = FILES["model.safetensors"]
    uploads = begin()

    async def cut() -> AsyncIterator[UploadPart]:
        yield header("model.safetensors", data)
        yield UploadData(data[:4000])
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await uploads.receive(cut())
    (held,) = await uploads.held("mine")
    assert held == UploadedFile("model.safetensors", len(data), digest(data), 4000)
    await uploads.close()

    again = begin()
    with pytest.raises(
        FailedPreconditionError, match=r'4,000 bytes of "model.safetensors" are held, and not 5'
    ) as error:
        await again.receive(stream(header("model.safetensors", data, 5)))
    assert error.value.metadata["held_bytes"] == "4000"
    rest = [header("model.safetensors", data, 4000), UploadData(data[4000:4001]), UploadData(data[4001:])]
    others = {name: content for name, content in FILES.items() if name != "model.safetensors"}
    await again.receive(stream(*rest, *whole(others), UploadCommit()))
    assert tree(models / "mine") == FILES


def test_bytes_that_were_not_made_durable_count_for_nothing(models: Path) -> None:
    """What a server that is killed leaves: a file longer than the ledger says."""
    data = bytes(range(250)) * 100_000
    file = UploadedFile("model.safetensors", len(data), digest(data))
    killed = HeldFiles(open_draft(models, "mine", "", ""))
    killed.begin(file, 0)
    for start in range(0, 20_000_000, 1_000_000):
        killed.append(data[start : start + 1_000_000])
    copy = models / "copy"
    shutil.copytree(next(models.glob("draft~*")), copy)  # as it lies there before the stream is closed
    killed.close()
    (held,) = read_ledger(copy).values()
    assert 8 << 20 <= held.bytes_held <= 20_000_000
    assert (copy / "scratch" / "files" / "model.safetensors").stat().st_size == 20_000_000
    shutil.rmtree(next(models.glob("draft~*")))
    copy.rename(open_draft(models, "mine", "", "").folder.with_name("gone"))
    draft = open_draft(models, "mine", "", "")
    shutil.rmtree(draft.scratch)
    (models / "gone" / "scratch").rename(draft.scratch)
    resumed = HeldFiles(draft)
    resumed.begin(file, held.bytes_held)
    resumed.append(data[held.bytes_held :])
    assert resumed.publish(lambda files, _: files["model.safetensors"].read_bytes()) == data
    resumed.close()


async def test_a_wrong_checksum_drops_that_file_alone(begin: Any, put: Any, store: MetadataStore) -> None:
    put()
    uploads = begin()
    bad = [header("model.safetensors", b"right"), UploadData(b"wrong")]
    with pytest.raises(FailedPreconditionError, match="has SHA-256") as error:
        await uploads.receive(stream(header("config.json", b"{}"), UploadData(b"{}"), *bad, UploadCommit()))
    assert (error.value.reason_code, error.value.metadata["held_bytes"]) == ("CHECKSUM_MISMATCH", "0")
    assert [file.file_name for file in await uploads.held("mine")] == ["config.json"]
    with pytest.raises(FailedPreconditionError, match="has more than the 2 bytes of its header; it is dropped"):
        await uploads.receive(stream(header("tokenizer.json", b"{}"), UploadData(b"{} ")))
    assert [file.file_name for file in await uploads.held("mine")] == ["config.json"]
    assert store.get_model("mine").state is ModelState.DEFINED  # type: ignore[union-attr]


def test_a_commit_of_nothing_is_refused(models: Path) -> None:
    held = HeldFiles(open_draft(models, "mine", "", ""))
    with pytest.raises(FailedPreconditionError, match="Nothing was uploaded yet"):
        held.publish(lambda files, _: files)
    held.close()
    assert list(models.iterdir()) == []


async def test_a_commit_that_lacks_a_file_keeps_the_others(begin: Any, put: Any, models: Path, tree: Any) -> None:
    put()
    uploads = begin()
    with pytest.raises(FailedPreconditionError, match="The upload lacks its tokenizer"):
        await uploads.receive(
            stream(*whole({name: FILES[name] for name in ("config.json", "model.safetensors")}), UploadCommit())
        )
    assert len(await uploads.held("mine")) == 2
    assert not (models / "mine").exists()
    part = [header("tokenizer.json", b"{}"), UploadData(b"{")]
    with pytest.raises(FailedPreconditionError, match=r'"tokenizer.json" is not all there: 1 of 2 bytes are held'):
        await uploads.receive(stream(*part, UploadCommit()))
    await uploads.receive(stream(header("tokenizer.json", b"{}", 1), UploadData(b"}"), UploadCommit()))
    assert tree(models / "mine") == FILES


async def test_a_model_that_cannot_be_used_keeps_its_files(begin: Any, put: Any) -> None:
    put()

    def refuse(folder: Path, config: ExpansionConfig) -> ModelFacts:
        del folder, config
        raise FailedPreconditionError("config.json is no JSON.")

    uploads = begin(refuse)
    with pytest.raises(FailedPreconditionError, match=r"config.json is no JSON"):
        await uploads.receive(stream(*whole(FILES), UploadCommit()))
    assert all(file.is_whole for file in await uploads.held("mine"))
    new = {"config.json": b'{"a": 1}'}
    uploads = begin()
    await uploads.receive(stream(*whole(new), UploadCommit()))


async def test_offset_0_begins_a_file_anew(begin: Any, put: Any, models: Path, tree: Any) -> None:
    put()
    uploads = begin()
    await uploads.receive(stream(*whole({**FILES, "config.json": b"first and longer"})))
    await uploads.receive(stream(*whole({"config.json": b"{}"}), UploadCommit()))
    assert tree(models / "mine") == FILES


async def test_a_held_file_needs_no_bytes_again(begin: Any, put: Any, models: Path, tree: Any) -> None:
    put()
    uploads = begin()
    await uploads.receive(stream(*whole(FILES)))
    everything = [header(name, data, len(data)) for name, data in FILES.items()]
    with pytest.raises(FailedPreconditionError, match="of another size or SHA-256; begin it anew with offset 0"):
        await uploads.receive(stream(header("config.json", b"[]", 2)))
    await uploads.receive(stream(*everything, UploadCommit()))
    assert tree(models / "mine") == FILES


async def test_one_stream_at_a_time_uploads_a_model(begin: Any, put: Any) -> None:
    put()
    put(model_id="other")
    uploads = begin()
    first, go = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[UploadPart]:
        yield header("config.json", b"{}")
        first.set()
        await go.wait()
        yield UploadData(b"{}")

    running = asyncio.create_task(uploads.receive(slow()))
    await first.wait()
    with pytest.raises(FailedPreconditionError, match='Another stream uploads model "mine"; wait for its end'):
        await uploads.receive(stream(header("config.json", b"{}")))
    await uploads.receive(stream(header("config.json", b"{}", model_id="other")))
    go.set()
    await running
    await uploads.receive(stream(header("tokenizer.json", b"{}")))
    assert [file.is_whole for file in await uploads.held("mine")] == [True, False]


async def test_a_stopped_upload_takes_nothing_more(begin: Any, put: Any, models: Path) -> None:
    put()
    uploads = begin()

    async def parts() -> AsyncIterator[UploadPart]:
        yield header("config.json", b"{}")
        await uploads.stop("mine")
        yield UploadData(b"{}")

    with pytest.raises(FailedPreconditionError, match="stopped"):
        await uploads.receive(parts())
    assert [file.bytes_held for file in await uploads.held("mine")] == [0]
    await uploads.close()
    with pytest.raises(FailedPreconditionError, match="The server stops"):
        await uploads.receive(parts())
    assert len(names(models)) == 1


@pytest.mark.parametrize(
    ("state", "source", "message"),
    [
        (ModelState.READY, "", "is READY already; delete it first"),
        (ModelState.DEFINED, "file:///x", "has a source; delete it and put it without one"),
        (ModelState.DELETING, "", "is DELETING and takes no upload now"),
        (ModelState.FAILED, "pypi://a@1/b", "has a source"),
    ],
)
async def test_only_models_without_files_take_them(
    begin: Any, put: Any, models: Path, state: ModelState, source: str, message: str
) -> None:
    put(state, source)
    with pytest.raises(FailedPreconditionError, match=message):
        await begin().receive(stream(*whole(FILES), UploadCommit()))
    assert names(models) == []


async def test_parts_out_of_order_are_refused(begin: Any, put: Any) -> None:
    put()
    uploads = begin()
    for parts in ([], [UploadData(b"x")], [UploadCommit()]):
        with pytest.raises(InvalidArgumentError, match="The first part of an upload is a header"):
            await uploads.receive(stream(*parts))
    twice = [*whole({"config.json": b"{}"}), UploadData(b"x")]
    with pytest.raises(InvalidArgumentError, match="belongs to no file"):
        await uploads.receive(stream(*twice))
    with pytest.raises(InvalidArgumentError, match='this one "mine"'):
        await uploads.receive(stream(*whole({"config.json": b"{}"}), header("a.json", b"", model_id="other")))
    with pytest.raises(NotFoundError, match='did you mean "mine"'):
        await uploads.receive(stream(header("a.json", b"", model_id="mime")))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sha256": ""}, "sha256"),
        ({"sha256": "g" * 64}, "sha256"),
        ({"size_bytes": -1}, "size_bytes"),
        ({"size_bytes": 1 << 40}, "size_bytes"),
        ({"file_name": "config.json/config.json"}, "file_name"),
    ],
)
async def test_headers_are_checked(begin: Any, put: Any, changes: dict[str, Any], field: str) -> None:
    put()
    uploads = begin()
    await uploads.receive(stream(*whole({"config.json": b"{}"})))
    with pytest.raises(InvalidArgumentError) as error:
        await uploads.receive(stream(header("tokenizer.json", b"{}", **changes)))
    assert error.value.violations[0].field == f"header.{field}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "path relative"),
        ("/etc/passwd.json", "path relative"),
        ("../x.json", "path relative"),
        ("a/../../x.json", "path relative"),
        ("a//x.json", "path relative"),
        ("./x.json", "path relative"),
        ("a\\x.json", "path relative"),
        ("x\n.json", "path relative"),
        ("x.json\0", "path relative"),
        ("a/b/c/x.json", "is no file of a model"),
        (".git/x.json", "is no file of a model"),
        ("script.py", "is no file of a model"),
        ("pytorch_model.bin", "is a pickle.*convert it to model.safetensors"),
        ("1_Pooling/heads.pt", "is a pickle"),
        (f"{'x' * 300}.json", "path relative"),
    ],
)
def test_names_that_are_no_files_of_a_model_are_refused(name: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        check_name(name)


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from("a./\\~.json\0 ü"), max_size=20))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    with TemporaryDirectory() as folder:
        models = Path(folder, "models")
        models.mkdir()
        held = HeldFiles(open_draft(models, "mine", "", ""))
        try:
            held.begin(UploadedFile(name, 1, digest(b"x")), 0)
            held.append(b"x")
        except InvalidArgumentError:
            pass
        else:
            (inside,) = held.publish(lambda files, _: [path.resolve() for path in files.values()])
            assert inside.is_relative_to(models.resolve() / next(models.iterdir()).name / "scratch" / "files")
        assert all(path.is_relative_to(models) for path in Path(folder).rglob("*") if path.is_file())
        held.close()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5_000), st.lists(st.tuples(st.integers(0, 5_000), st.booleans()), max_size=6))
def test_however_a_file_is_cut_it_arrives_whole(size: int, cuts: list[tuple[int, bool]]) -> None:
    """Each cut ends a part; those that are marked end the stream."""
    content = random.Random(size).randbytes(size)
    file = UploadedFile("model.safetensors", size, digest(content))
    done = 0
    with TemporaryDirectory() as folder:
        models = Path(folder)
        held = HeldFiles(open_draft(models, "mine", "", ""))
        held.begin(file, 0)
        for end, ends_stream in [*sorted((min(cut, size), ends) for cut, ends in cuts), (size, False)]:
            if end > done:
                held.append(content[done:end])
                done = end
            if ends_stream:
                held.close()
                assert read_ledger(next(models.iterdir()))["model.safetensors"].bytes_held == done
                held = HeldFiles(open_draft(models, "mine", "", ""))
                held.begin(file, done)
        assert held.publish(lambda files, _: files["model.safetensors"].read_bytes()) == content
        held.close()


async def test_a_full_disk_costs_nothing_that_was_held(begin: Any, put: Any, small_disk: Callable[[int], Any]) -> None:
    put()
    data = bytes(3 << 20)
    uploads = begin()
    parts = [header("model.safetensors", data), *(UploadData(data[: 1 << 19]) for _ in range(6))]
    with (
        small_disk(1 << 20),
        pytest.raises(ResourceExhaustedError, match="disk of the data folder is full while taking"),
    ):
        await uploads.receive(stream(*parts))
    (held,) = await uploads.held("mine")
    assert held.bytes_held == 0
    await uploads.receive(stream(header("model.safetensors", data), UploadData(data)))
    (held,) = await uploads.held("mine")
    assert held.is_whole


async def test_a_disk_without_any_room_is_told(begin: Any, put: Any, small_disk: Callable[[int], Any]) -> None:
    put()
    uploads = begin()
    with small_disk(0), pytest.raises(ResourceExhaustedError, match="disk of the data folder is full"):
        await uploads.receive(stream(*whole(FILES)))
    await uploads.receive(stream(*whole(FILES), UploadCommit()))


async def test_a_disk_without_room_is_said_before_any_byte(
    begin: Any, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    uploads = begin()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 30))
        with pytest.raises(ResourceExhaustedError, match=r"needs 1,073,741,825 bytes .* and the disk .* 1,073,741,824"):
            await uploads.receive(stream(header("model.safetensors", b"", size_bytes=(1 << 30) + 1)))
    assert await uploads.held("mine") == ()


def package(folder: Path, **changes: Any) -> dict[str, bytes]:
    made = tiny_package(folder / "package")
    files = {file.name: file.read_bytes() for file in made.iterdir()}
    name = next(name for name in files if name.endswith(".metadata.json"))
    said = json.loads(files[name]) | changes
    return {**files, name: json.dumps(said).encode()}


async def test_a_package_is_uploaded_under_its_own_names(
    begin: Any, put: Any, store: MetadataStore, models: Path, tmp_path: Path, tree: Any
) -> None:
    put()
    files = package(tmp_path, prefix_strings={"search": "query: "}, description="Mine.")
    await begin().receive(stream(*whole(files), UploadCommit()))
    record = store.get_model("mine")
    assert record is not None
    assert record.state is ModelState.READY
    assert record.package is not None
    assert record.config["query_prefix"] == "query: "
    assert record.description == "Mine."
    assert sorted(tree(models / "mine")) == ["package.metadata.json", "package.pt", "package.vocab.json"]
    assert set(tree(models / "mine").values()) == set(files.values())


@pytest.mark.parametrize(
    ("changes", "without", "message"),
    [
        ({"size": 5}, "", "bytes instead of the 5 that .*metadata.json says"),
        ({"sha256": "0" * 64}, "", "has SHA-256"),
        ({}, ".metadata.json", "lacks its metadata; add .*metadata.json"),
        ({}, ".vocab.json", "The package lacks .*vocab.json, its vocabulary"),
        ({"size": "x"}, "", "size of its metadata is not a whole number"),
    ],
)
async def test_a_package_is_checked(
    begin: Any, put: Any, tmp_path: Path, changes: dict[str, Any], without: str, message: str
) -> None:
    put()
    files = package(tmp_path, **changes)
    files = {name: data for name, data in files.items() if not without or not name.endswith(without)}
    uploads = begin()
    with pytest.raises(FailedPreconditionError, match=message):
        await uploads.receive(stream(*whole(files), UploadCommit()))
    assert len(await uploads.held("mine")) == len(files)
