"""What the catalogue makes of uploads, cancelled downloads and drafts."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.errors import FailedPreconditionError, NotFoundError
from termwise.server.metadata.records import ModelState
from termwise.server.models.requests import ModelWait, NewModel
from termwise.server.models.uploads import UploadCommit, UploadData, UploadHeader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from termwise.server.context import RequestContext
    from termwise.server.models.uploads import UploadPart

FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}
HELD = NewModel("mine", "held://anything")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


async def parts(*listed: UploadPart) -> AsyncIterator[UploadPart]:
    for part in listed:
        yield part


def whole(**files: bytes) -> list[UploadPart]:
    given = {name.replace("__", "."): data for name, data in files.items()} or FILES
    return [
        part
        for name, data in given.items()
        for part in (UploadHeader("mine", name, len(data), hashlib.sha256(data).hexdigest()), UploadData(data))
    ]


async def reach(event: Any) -> None:
    assert await asyncio.to_thread(event.wait, 30)


async def follow(life: Any, context: RequestContext) -> list[Any]:
    return [step async for step in life.catalog.download(context, "mine")]


async def test_a_model_without_a_source_is_uploaded(life: Any, context: RequestContext, models: Path) -> None:
    put = await life.catalog.put(context, NewModel("mine"), ModelWait.READY)
    assert (put.record.state, put.uploads) == (ModelState.DEFINED, ())
    partly = await life.catalog.upload(parts(*whole(config__json=b"{}")))
    assert [(file.file_name, file.bytes_held) for file in partly.uploads] == [("config.json", 2)]
    assert (await life.catalog.get("mine")).uploads == partly.uploads
    done = await life.catalog.upload(parts(*whole(), UploadCommit()))
    assert (done.record.state, done.uploads, done.record.size_bytes) == (ModelState.READY, (), 11)
    assert names(models) == ["mine"]


async def test_a_model_without_a_source_is_not_downloaded(life: Any, context: RequestContext) -> None:
    await life.catalog.put(context, NewModel("mine"))
    with pytest.raises(FailedPreconditionError, match="send its files by UploadTrainedModel"):
        await follow(life, context)
    with pytest.raises(FailedPreconditionError, match="nothing to cancel"):
        await life.catalog.cancel("mine")


async def test_an_upload_outlives_a_restart(
    live: Callable[..., Any], context: RequestContext, models: Path, tree: Any
) -> None:
    first = live()
    await first.catalog.put(context, NewModel("mine"))
    await first.catalog.upload(parts(*whole(config__json=b"{}", tokenizer__json=b"{}")))
    await first.end()
    second = live()
    await second.restore()
    assert [file.file_name for file in (await second.catalog.get("mine")).uploads] == ["config.json", "tokenizer.json"]
    await second.catalog.upload(parts(*whole(model__safetensors=b"weights"), UploadCommit()))
    assert tree(models / "mine") == FILES


async def test_delete_ends_an_upload(life: Any, context: RequestContext, models: Path) -> None:
    await life.catalog.put(context, NewModel("mine"))
    began = asyncio.Event()

    async def slow() -> AsyncIterator[UploadPart]:
        yield whole()[0]
        began.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(life.catalog.upload(slow()))
    await began.wait()
    await life.catalog.delete("mine")
    assert names(models) == []
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert names(models) == []
    await life.catalog.put(context, NewModel("mine"))
    await life.catalog.upload(parts(*whole(), UploadCommit()))
    assert names(models) == ["mine"]


async def test_a_deleted_models_upload_is_not_the_next_ones(life: Any, context: RequestContext) -> None:
    await life.catalog.put(context, NewModel("mine"))
    await life.catalog.upload(parts(*whole(config__json=b"{}")))
    await life.catalog.delete("mine")
    assert (await life.catalog.put(context, NewModel("mine"))).uploads == ()


async def test_watchers_of_a_cancelled_download_hear_of_it(life: Any, context: RequestContext, models: Path) -> None:
    await life.catalog.put(context, HELD)
    await reach(life.repository.half)
    watcher = asyncio.create_task(follow(life, context))
    await asyncio.sleep(0)
    model = await life.catalog.cancel("mine")
    assert model.record.state is ModelState.FAILED
    assert "was cancelled; call DownloadTrainedModel" in model.record.error
    assert names(models) == []
    with pytest.raises(FailedPreconditionError, match="was cancelled"):
        await watcher
    with pytest.raises(FailedPreconditionError, match="nothing to cancel"):
        await life.catalog.cancel("mine")
    life.repository.go.set()
    assert (await follow(life, context))[-1].state is ModelState.READY
    with pytest.raises(FailedPreconditionError, match="nothing to cancel"):
        await life.catalog.cancel("mine")
    with pytest.raises(NotFoundError):
        await life.catalog.cancel("others")


async def test_a_lost_upload_asks_for_another(live: Callable[..., Any], context: RequestContext, models: Path) -> None:
    first = live()
    await first.catalog.put(context, NewModel("mine"))
    await first.catalog.upload(parts(*whole(), UploadCommit()))
    await first.end()
    (models / "mine").rename(models / "elsewhere")
    second = live()
    await second.restore()
    lost = await second.catalog.get("mine")
    assert lost.record.state is ModelState.FAILED
    assert "upload them again" in lost.record.error
    await second.catalog.upload(parts(*whole(), UploadCommit()))
    assert names(models) == ["mine"]
