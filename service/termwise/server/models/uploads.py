"""Uploads: models whose files a client sends in parts, since the server has no source to fetch them from."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog

from termwise.server.errors import (
    FailedPreconditionError,
    Resource,
    invalid_field,
    not_found,
)
from termwise.server.inference.base import ExpansionConfig
from termwise.server.metadata.records import ModelState
from termwise.server.models import artifacts
from termwise.server.models.downloads import ready
from termwise.server.models.held import HeldFiles, UploadedFile, read_ledger
from termwise.server.models.package_files import as_package, is_archive, package_changes
from termwise.server.models.waiting import Steps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from termwise.server.metadata.records import ModelRecord
    from termwise.server.metadata.store import MetadataStore
    from termwise.server.models.downloads import Inspect

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class UploadHeader:
    """Begins a file, or goes on with it at `offset`."""

    model_id: str
    file_name: str
    size_bytes: int
    sha256: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class UploadData:
    """The next bytes of the file that the last header named."""

    data: bytes


@dataclass(frozen=True, slots=True)
class UploadCommit:
    """All files are there: nothing follows."""


UploadPart: TypeAlias = UploadHeader | UploadData | UploadCommit


class Uploads:
    """Takes the files of models that have no source. `names` is the lock under which a model's record changes."""

    def __init__(
        self,
        store: MetadataStore,
        folder: Path,
        *,
        inspect: Inspect,
        names: asyncio.Lock,
        on_ready: Callable[[str], None],
    ) -> None:
        """Begin with none; `folder` is that of all models; `on_ready` hears the id of each model that is there now."""
        self._store = store
        self._folder = folder
        self._inspect = inspect
        self._names = names
        self._on_ready = on_ready
        self._open: dict[str, HeldFiles] = {}
        self._steps = Steps()
        self._closed = False

    async def receive(self, parts: AsyncIterator[UploadPart]) -> str:
        """Take a stream of parts to its end, and give the model's id. With a commit the model is READY then.

        Whatever ends the stream, what came is kept, and durable once this returns.

        Raises:
            NotFoundError: there is no such model.
            InvalidArgumentError: a part is out of order, or its file cannot be a model's.
            FailedPreconditionError: the model is neither DEFINED nor FAILED or has a source, another stream uploads it,
                an offset is not what is held, a file is not what its header says, or the files cannot be used.
            ResourceExhaustedError: the disk has no room.

        """
        first = await anext(parts, None)
        if not isinstance(first, UploadHeader):
            raise invalid_field("header", "The first part of an upload is a header.")
        model_id = first.model_id
        files = await self._steps.run(self._begin(model_id))
        try:
            await asyncio.to_thread(_take, files, first)
            async for part in parts:
                if isinstance(part, UploadCommit):
                    await self._steps.run(self._commit(model_id, files))
                    return model_id
                if isinstance(part, UploadHeader) and part.model_id != model_id:
                    raise invalid_field("header.model_id", f'A stream uploads one model, and this one "{model_id}".')
                await asyncio.to_thread(_take, files, part)
        finally:
            await self._steps.run(self._end(model_id, files))
        return model_id

    async def _begin(self, model_id: str) -> HeldFiles:
        """Open a model's draft for one stream alone."""
        async with self._names:
            record = await asyncio.to_thread(self._store.get_model, model_id)
            if record is None:
                known = [model.model_id for model in await asyncio.to_thread(self._store.list_models)]
                raise not_found("model", model_id, known, field="header.model_id", hint="Put it first, without source.")
            _check_state(record)
            if self._closed:
                raise FailedPreconditionError("The server stops; go on with the upload later.", reason="UPLOAD_STOPPED")
            if model_id in self._open:
                raise FailedPreconditionError(
                    f'Another stream uploads model "{model_id}"; wait for its end.',
                    reason="UPLOAD_RUNNING",
                    resource=Resource("model", model_id),
                )
            try:
                files = await asyncio.to_thread(_open, self._folder, model_id)
            except OSError as error:
                raise artifacts.from_os_error(error, "beginning the upload") from error
            self._open[model_id] = files
            return files

    async def _end(self, model_id: str, files: HeldFiles) -> None:
        await asyncio.to_thread(files.close)
        if self._open.get(model_id) is files:
            del self._open[model_id]

    async def held(self, model_id: str) -> tuple[UploadedFile, ...]:
        """Give the files of a model's upload, by name, with what is held of each."""
        draft = self._folder / artifacts.draft_name(model_id, "", "")
        files = await asyncio.to_thread(read_ledger, draft)
        return tuple(files[name] for name in sorted(files))

    async def stop(self, model_id: str) -> None:
        """End a model's upload, if one runs, and wait until it has."""
        if (files := self._open.get(model_id)) is not None:
            await self._end(model_id, files)

    async def close(self) -> None:
        """End all uploads; what came of them is kept."""
        self._closed = True
        for model_id in list(self._open):
            await self.stop(model_id)
        await self._steps.finish()

    async def _commit(self, model_id: str, files: HeldFiles) -> None:
        """Make what was uploaded the model's files, if they can be used."""
        record = await asyncio.to_thread(self._store.get_model, model_id)
        if record is None:
            raise not_found("model", model_id)
        try:
            changes = await asyncio.to_thread(files.publish, partial(self._publish, record))
        except OSError as error:
            raise artifacts.from_os_error(error, f'publishing model "{model_id}"') from error
        async with self._names:
            record = await asyncio.to_thread(self._store.get_model, model_id)
            if record is None or record.state not in {ModelState.DEFINED, ModelState.FAILED}:  # it is being deleted
                raise FailedPreconditionError(f'Model "{model_id}" is being deleted.', reason="MODEL_BEING_DELETED")
            await asyncio.to_thread(self._store.put_model, dataclasses.replace(record, **changes))
        await asyncio.to_thread(files.discard)
        _log.info("model_ready", model=model_id)
        self._on_ready(model_id)

    def _publish(self, record: ModelRecord, whole: Mapping[str, Path], folder: Path) -> dict[str, Any]:
        """Lay the files out in a folder, look at them, make it the model's, and give what changes in its record."""
        if any(is_archive(PurePosixPath(name)) for name in whole):
            whole = as_package(whole)
        artifacts.check_names(whole, "The upload")
        for name, file in whole.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            artifacts.link(file, target)
        changes = package_changes(folder, record)
        facts = self._inspect(folder, ExpansionConfig(**changes.get("config", record.config)))
        artifacts.publish(folder, self._folder / record.model_id)
        return changes | ready(facts)


def _open(folder: Path, model_id: str) -> HeldFiles:
    return HeldFiles(artifacts.open_draft(folder, model_id, "", ""))


def _check_state(record: ModelRecord) -> None:
    """Refuse an upload that a model in its state cannot take."""
    model = f'Model "{record.model_id}"'
    if record.source_uri:
        problem = f"{model} has a source; delete it and put it without one to upload its files."
    elif record.state is ModelState.READY:
        problem = f"{model} is READY already; delete it first, or upload to another id."
    elif record.state not in {ModelState.DEFINED, ModelState.FAILED}:
        problem = f"{model} is {record.state.value} and takes no upload now."
    else:
        return
    raise FailedPreconditionError(problem, reason="UPLOAD_REFUSED", resource=Resource("model", record.model_id))


def _take(files: HeldFiles, part: UploadPart) -> None:
    try:
        if isinstance(part, UploadHeader):
            files.begin(UploadedFile(part.file_name, part.size_bytes, part.sha256.lower()), part.offset)
        elif isinstance(part, UploadData):
            files.append(part.data)
    except OSError as error:
        raise artifacts.from_os_error(error, "taking the upload") from error
