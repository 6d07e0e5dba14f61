"""The catalogue of trained models: which there are, where each stands, and how far its download is."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Final

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
from termwise.server.metadata.records import ModelState
from termwise.server.models import artifacts
from termwise.server.models.aliases import Aliases, References, nobody, some
from termwise.server.models.downloads import AT_ONCE, Downloads
from termwise.server.models.packaged import PACKAGED, BuiltInPackages
from termwise.server.models.patterns import Patterns
from termwise.server.models.registration import Registration
from termwise.server.models.requests import ModelWait, check_model
from termwise.server.models.trained_model import DownloadProgress, TrainedModel, being_deleted, check_usable
from termwise.server.models.uploads import Uploads
from termwise.server.models.waiting import Steps, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path

    from termwise.server.context import RequestContext
    from termwise.server.metadata.records import ModelRecord
    from termwise.server.metadata.store import MetadataStore
    from termwise.server.models.download import Download
    from termwise.server.models.downloads import Inspect
    from termwise.server.models.packaged import PackageIndex
    from termwise.server.models.repositories.base import Repository
    from termwise.server.models.requests import NewModel
    from termwise.server.models.uploads import UploadPart

_BUILT_IN: Final = BuiltInPackages(PACKAGED)

_log = structlog.get_logger(__name__)


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
        packages: PackageIndex = _BUILT_IN,
        references: References = nobody,
        downloads_at_once: int = AT_ONCE,
    ) -> None:
        """Take the folder of models, which is there; `inspect` is `inference.loader.inspect_model`."""
        self.names = asyncio.Lock()
        self._store = store
        self._folder = folder
        self._repositories = {repository.scheme: repository for repository in repositories}
        self._packages = packages
        self._registration = Registration(self._repositories, packages)
        self._references = references
        self.aliases = Aliases(store, self.names, references, reserved=packages.built_in)
        self._steps = Steps()
        self._deleting: set[str] = set()
        self._downloads = Downloads(
            store,
            folder,
            repositories=self._repositories,
            inspect=inspect,
            packaged=packages.built_in,
            names=self.names,
            on_ready=self._tell_ready,
            at_once=downloads_at_once,
        )
        self._uploads = Uploads(store, folder, inspect=inspect, names=self.names, on_ready=self._tell_ready)
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
        """Store a model and start its download, where it has a source; READY waits for the download's end, well or not.

        Raises:
            InvalidArgumentError: a field breaks a rule; it is named.
            NotFoundError: the id begins with a dot and is no packaged model's.
            AlreadyExistsError: a model, an alias or a deployment of that id exists.
            UnavailableError: the model repository cannot be reached.
            FailedPreconditionError: the model's package cannot be used, or is another platform's.
            DeadlineExceededError: the deadline passed while waiting; the model is stored and its download goes on.

        """
        check_model(model)
        await self._check_free(model.model_id, model.tags)
        record = await self._registration.record(context, model)
        download = await self._steps.run(self._insert(record))
        if wait is ModelWait.READY and download is not None:
            message = f'Model "{model.model_id}" is stored and still downloading; follow it with DownloadTrainedModel.'
            await within(context, download.ended(), message)
        return await self._view(await self._require(model.model_id))

    async def _check_free(self, model_id: str, tags: Sequence[str]) -> None:
        """Refuse an id that a model, an alias or a deployment has, and tags that are ids of models."""
        if await asyncio.to_thread(self._store.get_model, model_id) is not None:
            raise already_exists("model", model_id, hint="Delete it first, or choose another id.")
        if model_id in self.aliases:
            raise AlreadyExistsError(
                f'"{model_id}" is an alias of model "{self.aliases.model_of(model_id)}", and a model may not have its '
                "name; choose another.",
                reason="ALIAS_ALREADY_EXISTS",
                metadata={"alias": model_id},
                resource=Resource("alias", model_id),
            )
        if await asyncio.to_thread(self._store.get_deployment, model_id) is not None:
            raise AlreadyExistsError(
                f'A deployment "{model_id}" exists, and a model may not have its id; choose another.',
                reason="DEPLOYMENT_ALREADY_EXISTS",
                metadata={"deployment": model_id},
                resource=Resource("deployment", model_id),
            )
        for place, tag in enumerate(tags):
            if tag == model_id or await self.has(tag):
                raise invalid_field(f"tags[{place}]", f'"{tag}" is the id of a model; choose another label.')

    async def _insert(self, record: ModelRecord) -> Download | None:
        async with self.names:
            await self._check_free(record.model_id, record.tags)
            await asyncio.to_thread(self._store.insert_model, record)
            return self._downloads.start(record) if record.source_uri else None

    async def upload(self, parts: AsyncIterator[UploadPart]) -> TrainedModel:
        """Take a stream of the files of a model that has no source; see `uploads.Uploads.receive`."""
        return await self._view(await self._require(await self._uploads.receive(parts)))

    async def cancel(self, model_id: str) -> TrainedModel:
        """End a model's download; see `downloads.Downloads.cancel`.

        Raises:
            NotFoundError: there is no such model.
            FailedPreconditionError: it is not being downloaded.

        """
        await self._require(model_id)
        await self._steps.run(self._downloads.cancel(model_id))
        return await self._view(await self._require(model_id))

    async def put_alias(self, alias: str, model_id: str, *, reassign: bool = False) -> TrainedModel:
        """Give a model another name; see `aliases.Aliases.assign`."""
        await self._steps.run(self.aliases.assign(alias, model_id, reassign=reassign))
        return await self.get(model_id)

    async def delete_alias(self, alias: str, model_id: str = "") -> None:
        """Take an alias away; see `aliases.Aliases.delete`."""
        await self._steps.run(self.aliases.delete(alias, model_id))

    async def get(self, model_id: str) -> TrainedModel:
        """Give one model, by its id or an alias.

        Raises:
            NotFoundError: there is none.

        """
        return await self._view(await self._require(self.aliases.model_of(model_id)))

    async def list(
        self, after: str = "", limit: int | None = None, *, patterns: Sequence[str] = (), tags: Sequence[str] = ()
    ) -> Sequence[TrainedModel]:
        """Give models by id, from the one after `after`, `limit` at most.

        With `patterns` those of which the id or an alias fits one; with `tags` those that have all of them.
        """
        if not patterns and not tags:
            records = await asyncio.to_thread(self._store.list_models, after, limit)
        else:
            wanted = Patterns(patterns)
            records = [
                record
                for record in await asyncio.to_thread(self._store.list_models, after)
                if wanted.fit(record.model_id, *self.aliases.of(record.model_id)) and set(tags) <= set(record.tags)
            ][:limit]
        return [await self._view(record) for record in records]

    async def delete(self, model_id: str, *, force: bool = False) -> None:
        """Delete a model, its files and its aliases, ending its download or upload where one runs.

        `force` is for what uses it by name; `Deployments.delete_model` stops its deployments.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: a deployment runs it, a pipeline or an index uses it (not with `force`), or it is
                being deleted.

        """
        await self._steps.run(self._delete(model_id, force=force))

    async def _delete(self, model_id: str, *, force: bool) -> None:
        async with self.names:
            record = await self._require(model_id)
            if model_id in self._deleting:
                raise being_deleted(model_id)
            await self._check_unused(model_id, force=force)
            await asyncio.to_thread(
                self._store.put_model, dataclasses.replace(record, state=ModelState.DELETING, error="")
            )
            self._deleting.add(model_id)
        try:
            await self._downloads.stop(model_id)
            await self._uploads.stop(model_id)
            await self._erase(model_id)
        finally:
            self._deleting.discard(model_id)

    async def _check_unused(self, model_id: str, *, force: bool) -> None:
        """Refuse to delete a model that deployments run (with `force` too), or that a pipeline or an index names."""
        deployments = await asyncio.to_thread(self._store.list_deployments)
        running = [each.deployment_id for each in deployments if each.model_id == model_id]
        users = [f'deployment "{deployment_id}"' for deployment_id in running]
        if not force:
            names = dict.fromkeys((*running, model_id, *self.aliases.of(model_id)))
            users += dict.fromkeys([user for name in names for user in await self._references(name)])
        if users:
            cure = "stop it first" if running else "change that first"
            raise FailedPreconditionError(
                f'Model "{model_id}" is used by {some(users)}; {cure}, or set force.',
                reason="MODEL_IN_USE",
                metadata={"model": model_id, "deployments": ",".join(running)},
                resource=Resource("model", model_id),
            )

    async def _erase(self, model_id: str) -> None:
        await asyncio.to_thread(artifacts.remove, self.folder(model_id))
        await asyncio.to_thread(self._store.delete_model, model_id)
        self.aliases.forget(model_id)
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
                raise being_deleted(model_id)
            if not record.source_uri:
                raise FailedPreconditionError(
                    f'Model "{model_id}" has no source to download from; send its files by UploadTrainedModel.',
                    reason="MODEL_HAS_NO_SOURCE",
                    resource=Resource("model", model_id),
                )
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
            record = self._as_known(await self._require(model_id))
            if record.state is ModelState.READY:
                return record
            check_usable(record)
            download = self._downloads.get(model_id)
            if download is None or download.stopped:
                raise UnavailableError(f'The download of model "{model_id}" was stopped.', reason="DOWNLOAD_STOPPED")
            await download.ended()

    async def has(self, model_id: str) -> bool:
        """Tell whether an id is a model's, be it stored or only built in."""
        return (
            model_id in self._packages.built_in or await asyncio.to_thread(self._store.get_model, model_id) is not None
        )

    async def restore(self) -> None:
        """Bring the catalogue up after a start: end deletions, resume downloads, miss lost folders, remove stray ones.

        Downloads are only started; they go on in the background.
        """
        await self.aliases.restore()
        records = await asyncio.to_thread(self._store.list_models)
        for record in records:
            if record.state is ModelState.DELETING:
                await self._erase(record.model_id)
        here = {record.model_id for record in records if record.state in {ModelState.READY, ModelState.DOWNLOADING}}
        fetching = {ModelState.DOWNLOADING, ModelState.FAILED, ModelState.DEFINED}
        begun = {record.model_id for record in records if record.state in fetching}
        for name in await asyncio.to_thread(artifacts.sweep, self._folder, here, begun):
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
        cure = "call DownloadTrainedModel to fetch them again" if record.source_uri else "upload them again"
        error = f"Its files are gone from the data folder; {cure}."
        _log.error("model_files_gone", model=record.model_id)
        await asyncio.to_thread(
            self._store.put_model, dataclasses.replace(record, state=ModelState.FAILED, error=error)
        )

    async def close(self) -> None:
        """Stop downloads, to be resumed at the next start, and finish steps that were begun."""
        await self._downloads.close()
        await self._uploads.close()
        await self._steps.finish()

    async def _require(self, model_id: str) -> ModelRecord:
        record = await asyncio.to_thread(self._store.get_model, model_id)
        if record is not None:
            return record
        if model_id in self._packages.built_in:
            raise not_found("model", model_id, field="model_id", hint="It is a packaged model; put it first.")
        known = [model.model_id for model in await asyncio.to_thread(self._store.list_models)]
        raise not_found("model", model_id, known, field="model_id")

    async def _view(self, record: ModelRecord) -> TrainedModel:
        model_id = record.model_id
        aliases = self.aliases.of(model_id)
        if not record.source_uri:
            uploading = record.state in {ModelState.DEFINED, ModelState.FAILED}
            return TrainedModel(record, None, aliases, await self._uploads.held(model_id) if uploading else ())
        if self._downloads.get(model_id) is None and record.state is not ModelState.READY:
            return TrainedModel(record, None, aliases)
        record = self._as_known(record)
        return TrainedModel(record, self._progress(record), aliases)

    def _as_known(self, record: ModelRecord) -> ModelRecord:
        """Give a record as it should be: a full disk may keep a download's failure out of the store."""
        download = self._downloads.get(record.model_id)
        error = download.error if download is not None and download.finished else None
        if record.state is ModelState.DOWNLOADING and error is not None:
            return dataclasses.replace(record, state=ModelState.FAILED, error=error.message)
        return record

    def _progress(self, record: ModelRecord) -> DownloadProgress:
        download = self._downloads.get(record.model_id)
        if download is None or (record.state is ModelState.READY and not download.bytes_total):
            # It was downloaded in an earlier life of the server.
            return DownloadProgress(record.model_id, record.state, record.size_bytes, record.size_bytes)
        return DownloadProgress(record.model_id, record.state, download.bytes_done, download.bytes_total)
