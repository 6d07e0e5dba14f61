"""The catalogue of trained models: which there are, where each stands, and how far its download is."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from termwise.server.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    Resource,
    UnavailableError,
    already_exists,
    invalid_field,
    not_found,
)
from termwise.server.metadata.records import ModelRecord, ModelState
from termwise.server.models import artifacts
from termwise.server.models.downloads import Downloads
from termwise.server.models.packaged import PACKAGED
from termwise.server.models.requests import ModelWait, check_model
from termwise.server.models.waiting import Steps, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from termwise.server.context import RequestContext
    from termwise.server.metadata.store import MetadataStore
    from termwise.server.models.downloads import Download, Inspect
    from termwise.server.models.packaged import PackagedModel
    from termwise.server.models.repositories.base import Repository
    from termwise.server.models.requests import NewModel

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far a download is; `bytes_total` is 0 while unknown."""

    model_id: str
    state: ModelState
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model as it stands. `download` is None where it was never begun in this server's life, nor is it READY."""

    record: ModelRecord
    download: DownloadProgress | None


class ModelCatalog:
    """Stores models, fetches their artefacts, and gives them out.

    `names` is held while a name is taken or freed: deployments share the namespace, so `Deployments` takes it too.
    """

    def __init__(
        self,
        store: MetadataStore,
        folder: Path,
        *,
        repositories: Iterable[Repository],
        inspect: Inspect,
        packaged: Mapping[str, PackagedModel] = PACKAGED,
    ) -> None:
        """Take the folder of models, which is there; `inspect` is `inference.loader.inspect_model`."""
        self.names = asyncio.Lock()
        self._store = store
        self._folder = folder
        self._repositories = {repository.scheme: repository for repository in repositories}
        self._packaged = packaged
        self._steps = Steps()
        self._deleting: set[str] = set()
        self._downloads = Downloads(
            store,
            folder,
            repositories=self._repositories,
            inspect=inspect,
            packaged=packaged,
            names=self.names,
            on_ready=self._tell_ready,
        )
        self._listeners: list[Callable[[str], None]] = []

    def when_ready(self, tell: Callable[[str], None]) -> None:
        """Have `tell` called, on the event loop, with the id of each model whose download ends well."""
        self._listeners.append(tell)

    def _tell_ready(self, model_id: str) -> None:
        for tell in self._listeners:
            tell(model_id)

    def folder(self, model_id: str) -> Path:
        """Give the folder of a READY model's files."""
        return self._folder / model_id

    async def put(self, context: RequestContext, model: NewModel, wait: ModelWait = ModelWait.STORED) -> TrainedModel:
        """Store a model and start its download; READY waits for the download's end, well or not.

        Raises:
            InvalidArgumentError: a field breaks a rule; it is named.
            NotFoundError: the id begins with a dot and is no packaged model's.
            AlreadyExistsError: a model or a deployment of that id exists.
            DeadlineExceededError: the deadline passed while waiting; the model is stored and its download goes on.

        """
        check_model(model, self._packaged)
        record = self._record(model)
        download = await self._steps.run(self._insert(record))
        if wait is ModelWait.READY:
            message = f'Model "{model.model_id}" is stored and still downloading; follow it with DownloadTrainedModel.'
            await within(context, download.ended(), message)
        return self._view(await self._require(model.model_id))

    def _record(self, model: NewModel) -> ModelRecord:
        known = self._packaged.get(model.model_id)
        source_uri = known.source_uri if known else model.source_uri
        repository = self._repositories.get(source_uri.partition("://")[0])
        if repository is None:
            kinds = " or ".join(f"{scheme}://" for scheme in sorted(self._repositories))
            raise invalid_field("source_uri", f"Its kind is unknown; give {kinds}.")
        repository.check(source_uri)
        return ModelRecord(
            model_id=model.model_id,
            state=ModelState.DOWNLOADING,
            source_uri=source_uri,
            create_time=datetime.now(UTC),
            sha256=known.sha256 if known else model.sha256.lower(),
            description=model.description or (known.description if known else ""),
            tags=model.tags or (known.tags if known else ()),
            config=dataclasses.asdict(model.config),
            metadata=dict(model.metadata),
        )

    async def _insert(self, record: ModelRecord) -> Download:
        model_id = record.model_id
        async with self.names:
            if await asyncio.to_thread(self._store.get_deployment, model_id) is not None:
                raise AlreadyExistsError(
                    f'A deployment "{model_id}" exists, and a model may not have its id; choose another.',
                    reason="DEPLOYMENT_ALREADY_EXISTS",
                    metadata={"deployment": model_id},
                    resource=Resource("deployment", model_id),
                )
            if not await asyncio.to_thread(self._store.insert_model, record):
                raise already_exists("model", model_id, hint="Delete it first, or choose another id.")
            return self._downloads.start(record)

    async def get(self, model_id: str) -> TrainedModel:
        """Give one model.

        Raises:
            NotFoundError: there is none.

        """
        return self._view(await self._require(model_id))

    async def list(self, after: str = "", limit: int | None = None) -> Sequence[TrainedModel]:
        """Give models by id, from the one after `after`, `limit` at most."""
        records = await asyncio.to_thread(self._store.list_models, after, limit)
        return [self._view(record) for record in records]

    async def delete(self, model_id: str) -> None:
        """Delete a model and its files, ending its download where one runs.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: a deployment runs it, or it is being deleted.

        """
        await self._steps.run(self._delete(model_id))

    async def _delete(self, model_id: str) -> None:
        async with self.names:
            record = await self._require(model_id)
            if model_id in self._deleting:
                raise FailedPreconditionError(f'Model "{model_id}" is being deleted.', reason="MODEL_BEING_DELETED")
            deployments = await asyncio.to_thread(self._store.list_deployments)
            users = [deployment.deployment_id for deployment in deployments if deployment.model_id == model_id]
            if users:
                named = ", ".join(f'"{user}"' for user in users[:10])
                raise FailedPreconditionError(
                    f'Model "{model_id}" is run by deployment {named}; stop it first.'
                    if len(users) == 1
                    else f'Model "{model_id}" is run by {len(users)} deployments ({named}); stop them first.',
                    reason="MODEL_IN_USE",
                    metadata={"model": model_id, "deployments": ",".join(users)},
                    resource=Resource("model", model_id),
                )
            await asyncio.to_thread(
                self._store.put_model, dataclasses.replace(record, state=ModelState.DELETING, error="")
            )
            self._deleting.add(model_id)
        try:
            await self._downloads.stop(model_id)
            await self._erase(model_id)
        finally:
            self._deleting.discard(model_id)

    async def _erase(self, model_id: str) -> None:
        await asyncio.to_thread(artifacts.remove, self.folder(model_id))
        await asyncio.to_thread(self._store.delete_model, model_id)
        self._downloads.forget(model_id)

    async def download(self, context: RequestContext, model_id: str) -> AsyncIterator[DownloadProgress]:
        """Start the download or join the one that runs, and give its progress until the model's state is final.

        Leaving the iterator stops nothing. The last step has the final state; a failed download then raises its error.

        Raises:
            NotFoundError: there is no such model.
            FailedPreconditionError: what the source gave cannot be used, or the model is being deleted.
            UnavailableError: the source cannot be reached, or the server stops.
            ResourceExhaustedError: the disk is full.
            DeadlineExceededError: the call's deadline passed first.

        """
        download = await self._steps.run(self._join(model_id))
        if download is None:
            yield self._progress(await self._require(model_id))
            return
        message = f'Model "{model_id}" is still downloading; ask again to go on watching.'
        while not download.finished:
            yield DownloadProgress(model_id, ModelState.DOWNLOADING, download.bytes_done, download.bytes_total)
            shown = (download.bytes_done, download.bytes_total)
            changed = download.signal.wait_for(
                lambda: download.finished or (download.bytes_done, download.bytes_total) != shown  # noqa: B023
            )
            await within(context, changed, message)
        if download.stopped:
            raise UnavailableError(f'The download of model "{model_id}" was stopped.', reason="DOWNLOAD_STOPPED")
        error = download.error
        state = ModelState.READY if error is None else ModelState.FAILED
        yield DownloadProgress(model_id, state, download.bytes_done, download.bytes_total)
        if error is not None:
            raise error

    async def _join(self, model_id: str) -> Download | None:
        """Give the download that runs, or a new one; None where the model is READY."""
        async with self.names:
            record = await self._require(model_id)
            if record.state is ModelState.READY:
                return None
            if record.state is ModelState.DELETING:
                raise FailedPreconditionError(f'Model "{model_id}" is being deleted.', reason="MODEL_BEING_DELETED")
            running = self._downloads.running(model_id)
            if running is not None:
                return running
            record = dataclasses.replace(record, state=ModelState.DOWNLOADING, error="")
            # Begun first, so that nobody sees the new state beside the old download's end. It cannot end before the
            # state is written: that takes the lock.
            download = self._downloads.start(record)
            await asyncio.to_thread(self._store.put_model, record)
            return download

    async def ready(self, model_id: str) -> ModelRecord:
        """Give a model's record once it is READY, waiting for a download that runs.

        Raises:
            NotFoundError: there is no such model.
            FailedPreconditionError: its download failed, or it is being deleted.
            UnavailableError: the server stops.

        """
        while True:
            record = self._view(await self._require(model_id)).record
            if record.state is ModelState.READY:
                return record
            check_usable(record)
            download = self._downloads.get(model_id)
            if download is None or download.stopped:
                raise UnavailableError(f'The download of model "{model_id}" was stopped.', reason="DOWNLOAD_STOPPED")
            await download.ended()

    async def has(self, model_id: str) -> bool:
        """Tell whether an id is a model's, be it stored or only packaged."""
        return model_id in self._packaged or await asyncio.to_thread(self._store.get_model, model_id) is not None

    async def restore(self) -> None:
        """Bring the catalogue up after a start: end deletions, resume downloads, miss lost folders, remove stray ones.

        Downloads are only started; they go on in the background.
        """
        records = await asyncio.to_thread(self._store.list_models)
        for record in records:
            if record.state is ModelState.DELETING:
                await self._erase(record.model_id)
        here = {record.model_id for record in records if record.state in {ModelState.READY, ModelState.DOWNLOADING}}
        for name in await asyncio.to_thread(artifacts.sweep, self._folder, here):
            _log.warning("stray_model_folder_removed", folder=name)
        for record in records:
            if record.state is ModelState.DOWNLOADING:
                self._downloads.start(record)
            elif record.state is ModelState.READY:
                await self._check_folder(record)

    async def _check_folder(self, record: ModelRecord) -> None:
        folder = self.folder(record.model_id)
        if await asyncio.to_thread(artifacts.is_complete, folder):
            return
        error = "Its files are gone from the data folder; call DownloadTrainedModel to fetch them again."
        _log.error("model_files_gone", model=record.model_id)
        await asyncio.to_thread(
            self._store.put_model, dataclasses.replace(record, state=ModelState.FAILED, error=error)
        )

    async def close(self) -> None:
        """Stop downloads, to be resumed at the next start, and finish steps that were begun."""
        await self._downloads.close()
        await self._steps.finish()

    async def _require(self, model_id: str) -> ModelRecord:
        record = await asyncio.to_thread(self._store.get_model, model_id)
        if record is not None:
            return record
        if model_id in self._packaged:
            raise not_found("model", model_id, field="model_id", hint="It is a packaged model; put it first.")
        known = [model.model_id for model in await asyncio.to_thread(self._store.list_models)]
        raise not_found("model", model_id, known, field="model_id")

    def _view(self, record: ModelRecord) -> TrainedModel:
        download = self._downloads.get(record.model_id)
        if download is None and record.state is not ModelState.READY:
            return TrainedModel(record, None)
        error = download.error if download is not None and download.finished else None
        if record.state is ModelState.DOWNLOADING and error is not None:  # its failure could not be stored
            record = dataclasses.replace(record, state=ModelState.FAILED, error=error.message)
        return TrainedModel(record, self._progress(record))

    def _progress(self, record: ModelRecord) -> DownloadProgress:
        download = self._downloads.get(record.model_id)
        if download is None or (record.state is ModelState.READY and not download.bytes_total):
            # It was downloaded in an earlier life of the server.
            return DownloadProgress(record.model_id, record.state, record.size_bytes, record.size_bytes)
        return DownloadProgress(record.model_id, record.state, download.bytes_done, download.bytes_total)


def check_usable(record: ModelRecord) -> None:
    """Refuse a model whose artefacts are not there and are not coming.

    Raises:
        FailedPreconditionError: it FAILED, or is being deleted.

    """
    if record.state is ModelState.FAILED:
        raise FailedPreconditionError(
            f'Model "{record.model_id}" failed to download: {record.error} Call DownloadTrainedModel to try again.',
            reason="MODEL_FAILED",
            resource=Resource("model", record.model_id),
        )
    if record.state is ModelState.DELETING:
        raise FailedPreconditionError(f'Model "{record.model_id}" is being deleted.', reason="MODEL_BEING_DELETED")
