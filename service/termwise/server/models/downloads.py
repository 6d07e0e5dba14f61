"""Downloads that run: each fetches one model's files in a thread, checks them, and makes them its folder."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import structlog

from termwise.server.errors import FailedPreconditionError, Resource, TermwiseError, UnavailableError
from termwise.server.inference.base import ExpansionConfig
from termwise.server.metadata.records import ModelRecord, ModelState
from termwise.server.models import artifacts
from termwise.server.models.download import Download
from termwise.server.models.package_files import package_changes
from termwise.server.models.repositories.base import FetchStoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from termwise.server.inference.loader import ModelFacts
    from termwise.server.metadata.store import MetadataStore
    from termwise.server.models.artifacts import Draft
    from termwise.server.models.packaged import PackagedModel
    from termwise.server.models.repositories.base import Repository

Inspect: TypeAlias = "Callable[[Path, ExpansionConfig], ModelFacts]"
"""Looks at a model's folder and gives its facts (`inference.loader.inspect_model`)."""

AT_ONCE: Final = 4
"""Downloads that run at a time, unless the server's settings say otherwise; later ones wait their turn."""

_log = structlog.get_logger(__name__)


class Downloads:
    """Runs downloads and writes what became of them into the metadata store.

    `names` is the lock under which a model's record changes its state.
    """

    def __init__(
        self,
        store: MetadataStore,
        folder: Path,
        *,
        repositories: Mapping[str, Repository],
        inspect: Inspect,
        packaged: Mapping[str, PackagedModel],
        names: asyncio.Lock,
        on_ready: Callable[[str], None],
        at_once: int = AT_ONCE,
    ) -> None:
        """Begin with none; `folder` is that of all models; `on_ready` hears the id of each model that is there now."""
        self._store = store
        self._folder = folder
        self._repositories = repositories
        self._inspect = inspect
        self._packaged = packaged
        self._names = names
        self._on_ready = on_ready
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="model-download")
        self._places = at_once
        self._waiting: deque[Download] = deque()
        self._downloads: dict[str, Download] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def get(self, model_id: str) -> Download | None:
        """Give a model's download of this server's life: the one that runs, or the last."""
        return self._downloads.get(model_id)

    def running(self, model_id: str) -> Download | None:
        """Give a model's download while it runs."""
        download = self._downloads.get(model_id)
        return None if download is None or download.finished else download

    def start(self, record: ModelRecord) -> Download:
        """Start a model's download. `record` is DOWNLOADING and stored; no download of it runs."""
        download = self._downloads[record.model_id] = Download(asyncio.get_running_loop())
        if self._closed:
            download.stop()
            download.end(None)
            return download
        task = asyncio.create_task(self._run(record, download))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return download

    def forget(self, model_id: str) -> None:
        """Drop what is known of a deleted model's last download."""
        self._downloads.pop(model_id, None)

    async def stop(self, model_id: str) -> None:
        """End a model's download, if one runs, and wait until it has."""
        if (download := self.running(model_id)) is not None:
            download.stop()
            await download.ended()

    async def cancel(self, model_id: str) -> None:
        """Cancel a model's download, and return once nothing of it runs and nothing of its files is left.

        The model is FAILED then, and says that its download was cancelled; another download begins anew.

        Raises:
            FailedPreconditionError: none runs, or it ended first.
            UnavailableError: the server stops, or the model is deleted meanwhile.

        """
        download = self.running(model_id)
        if download is None:
            raise FailedPreconditionError(
                f'No download of model "{model_id}" is running, so there is nothing to cancel.',
                reason="DOWNLOAD_NOT_RUNNING",
                resource=Resource("model", model_id),
            )
        download.cancel()
        await download.ended()
        if download.stopped:
            raise UnavailableError(f'The download of model "{model_id}" was stopped.', reason="DOWNLOAD_STOPPED")
        if download.error is None:
            raise FailedPreconditionError(
                f'The download of model "{model_id}" ended before it could be cancelled.',
                reason="DOWNLOAD_NOT_RUNNING",
                resource=Resource("model", model_id),
            )

    async def close(self) -> None:
        """End all downloads; their models stay DOWNLOADING, and the next start resumes them."""
        self._closed = True
        for download in self._downloads.values():
            if not download.cancelled:
                download.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._threads.shutdown(wait=False)

    async def _run(self, record: ModelRecord, download: Download) -> None:
        error: TermwiseError | None = None
        began = time.monotonic()
        try:
            changes = await self._in_turn(record, download)
            await self._settle(download, record.model_id, **changes)
            _log.info("model_ready", model=record.model_id, seconds=round(time.monotonic() - began, 3))
            self._on_ready(record.model_id)
        except asyncio.CancelledError:
            raise
        except BaseException as caught:  # noqa: BLE001 - whatever happens (a panic in Rust is no Exception), it says so
            if download.cancelled:
                error = await self._cancelled(record, download)
            elif not isinstance(caught, FetchStoppedError):
                error = self._explain(record, caught)
                await self._fail(record, download, error)
        download.end(error)

    async def _in_turn(self, record: ModelRecord, download: Download) -> dict[str, Any]:
        """Wait for one of the places, and fetch."""
        self._waiting.append(download)
        self._admit()
        try:
            await download.turn()
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._fetch, record, download)
        finally:
            if download.admitted:
                self._places += 1
                self._admit()
            else:
                self._waiting.remove(download)

    def _admit(self) -> None:
        while self._places and self._waiting:
            self._places -= 1
            self._waiting.popleft().admit()

    def _fetch(self, record: ModelRecord, download: Download) -> dict[str, Any]:
        """Fetch, check and publish, and give what changes in the model's record; runs in a thread."""
        target = self._folder / record.model_id
        if artifacts.is_complete(target):  # published, but the server ended before the model's record said so
            try:
                changes = self._look(target, record)
            except FailedPreconditionError:
                _log.warning("model_files_broken", model=record.model_id)
            else:
                artifacts.remove_drafts(self._folder, record.model_id)
                return changes
        scheme = record.source_uri.partition("://")[0]
        repository = self._repositories.get(scheme)
        if repository is None:
            raise FailedPreconditionError(f'Sources of the kind "{scheme}" are not configured on this server.')
        download.check_wanted()
        draft = artifacts.open_draft(self._folder, record.model_id, record.source_uri, record.sha256)
        keep = False
        try:
            changes = self._fill(draft, repository, record, download)
            download.check_wanted()
            artifacts.publish(draft.files, target)
        except (FetchStoppedError, UnavailableError):
            keep = True
            raise
        finally:
            # What failed for another reason is not worth going on from: it is wrong, or the disk is full of it.
            artifacts.close_draft(draft, keep=keep)
        return changes

    def _look(self, folder: Path, record: ModelRecord) -> dict[str, Any]:
        """Look at a model's files, and give what changes in its record."""
        changes = package_changes(folder, record)
        return changes | ready(self._inspect(folder, ExpansionConfig(**changes.get("config", record.config))))

    def _fill(self, draft: Draft, repository: Repository, record: ModelRecord, download: Download) -> dict[str, Any]:
        """Fetch into a draft, and check what came."""
        resumed = artifacts.is_begun(draft)
        try:
            repository.fetch(
                record.source_uri, draft.files, scratch=draft.scratch, sha256=record.sha256, report=download.report
            )
            known = self._packaged.get(record.model_id)
            if known is not None and known.source_uri == record.source_uri:
                artifacts.check_digest(draft.files / artifacts.WEIGHTS, known.weights_sha256, artifacts.WEIGHTS)
            return self._look(draft.files, record)
        except FailedPreconditionError as error:
            if not resumed:
                raise
            # What an earlier attempt left may be what is wrong, and not the source.
            _log.warning("download_begun_anew", model=record.model_id, why=error.message)
            artifacts.clear_draft(draft)
            download.report(0, 0)
            return self._fill(draft, repository, record, download)

    async def _settle(self, download: Download, model_id: str, **changes: Any) -> None:
        """Write what became of a model, unless it is being deleted, or nobody wants it any more."""
        async with self._names:
            if download.stopped or (download.cancelled and changes["state"] is ModelState.READY):
                raise FetchStoppedError
            record = await asyncio.to_thread(self._store.get_model, model_id)
            if record is None:
                raise FetchStoppedError
            await asyncio.to_thread(self._store.put_model, dataclasses.replace(record, **changes))

    async def _fail(self, record: ModelRecord, download: Download, error: TermwiseError) -> None:
        try:
            await self._settle(download, record.model_id, state=ModelState.FAILED, error=error.message)
        except FetchStoppedError:
            pass
        except Exception:  # noqa: BLE001 - it is logged, and the download still has to end
            # The full disk that failed the download may fail this too. The download itself knows its error until the
            # server ends; the next start finds the model DOWNLOADING, and tries again.
            _log.exception("model_state_not_stored", model=record.model_id)

    async def _cancelled(self, record: ModelRecord, download: Download) -> TermwiseError:
        """Leave nothing of a download that was cancelled, and say what became of it."""
        model_id = record.model_id
        error = FailedPreconditionError(
            f'The download of model "{model_id}" was cancelled; call DownloadTrainedModel to begin it anew.',
            reason="DOWNLOAD_CANCELLED",
            resource=Resource("model", model_id),
        )
        with suppress(OSError):  # the next start sweeps what could not be removed
            await asyncio.to_thread(artifacts.remove, self._folder / model_id)
        await self._fail(record, download, error)
        _log.info("download_cancelled", model=model_id)
        return error

    def _explain(self, record: ModelRecord, caught: BaseException) -> TermwiseError:
        if isinstance(caught, TermwiseError):
            error = caught
        elif isinstance(caught, OSError):
            error = artifacts.from_os_error(caught, f'fetching model "{record.model_id}"')
        else:
            _log.exception("download_broke", model=record.model_id, exc_info=caught)
            error = FailedPreconditionError(
                f'Model "{record.model_id}" could not be fetched ({type(caught).__name__}); see the server\'s log.',
                reason="DOWNLOAD_FAILED",
            )
        _log.warning("model_failed", model=record.model_id, error=error.message)
        return error


def ready(facts: ModelFacts) -> dict[str, Any]:
    """Give what changes in a model's record once its files are there."""
    found = dataclasses.asdict(facts)
    columns = {each.name for each in dataclasses.fields(ModelRecord)}
    return {
        **{name: value for name, value in found.items() if name in columns},
        "facts": {name: value for name, value in found.items() if name not in columns},
        "state": ModelState.READY,
        "error": "",
    }
