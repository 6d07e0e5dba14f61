"""The composition root: the one place that names concrete classes, and the order in which they begin and end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from termwise.server.errors import FailedPreconditionError, NotFoundError, TermwiseError
from termwise.server.indices.catalog import Indices
from termwise.server.inference.loader import inspect_model, load_encoder
from termwise.server.ingest.bulk import Bulk, BulkLimits
from termwise.server.ingest.pipelines import Pipelines
from termwise.server.ingest.writing import Writer
from termwise.server.metadata.folder import DataFolder
from termwise.server.metadata.store import MetadataStore
from termwise.server.models.catalog import ModelCatalog
from termwise.server.models.deployments import Deployments
from termwise.server.models.memory import machine_memory_bytes
from termwise.server.models.packaged import PACKAGED, BuiltInPackages
from termwise.server.models.repositories.file import FileRepository
from termwise.server.models.repositories.hf import HuggingFaceRepository
from termwise.server.models.repositories.http import HttpRepository
from termwise.server.models.repositories.packages import RepositoryPackages
from termwise.server.models.repositories.pypi import PyPIRepository
from termwise.server.models.repositories.web import Access
from termwise.server.models.runner import DeploymentState
from termwise.server.models.stats import Statistics
from termwise.server.rpc.health import HealthServicer
from termwise.server.rpc.indices import IndicesServicer
from termwise.server.rpc.interceptors import CallInterceptor
from termwise.server.rpc.pipeline import PipelineServicer
from termwise.server.rpc.search import SearchServicer
from termwise.server.rpc.server import SERVICES, add_services, address, listen, make_server
from termwise.server.rpc.trained_models import TrainedModelsServicer
from termwise.server.search.searcher import Searcher
from termwise.storage.errors import StorageError
from termwise.storage.registry import find_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from termwise.server.inference.base import Encoder, ExpansionConfig
    from termwise.server.models.packaged import PackageIndex
    from termwise.server.models.repositories.base import Repository
    from termwise.server.rpc.health import Probe
    from termwise.server.settings import Settings
    from termwise.storage.base import IndexStore

_log = structlog.get_logger(__name__)

_BLOCKING_THREADS: Final = 32
"""Threads of `asyncio.to_thread`: SQLite, commits, model files. They wait for disks, not for processors."""
_VOLATILE: Final = ("memory",)
"""Backends that forget at a restart."""
_LARGE: Final = frozenset({"torch", "transformers"})
"""Libraries of so many objects that the garbage collector takes long over them; some models need none of them."""
_LAST_WORDS_SECONDS: Final = 1.0
"""After draining, how long answers on their way may take; watchers of health are cut off then."""


class Stores:
    """The storage backends in use, each opened when it is first asked for. Any thread may ask."""

    def __init__(self, folder: DataFolder, options: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Open none yet. `options` are a backend's own, by its name."""
        self._folder = folder
        self._options = options or {}
        self._lock = threading.Lock()
        self._open: dict[str, IndexStore] = {}

    def get(self, backend: str) -> IndexStore:
        """Give the store of a backend.

        Raises:
            BackendMissingError: none of that name is installed.
            StorageError: it cannot be opened.

        """
        with self._lock:
            if backend not in self._open:
                opener: Callable[..., IndexStore] = find_backend(backend)
                self._open[backend] = opener(self._folder.indices(backend), **self._options.get(backend, {}))
            return self._open[backend]

    def close(self) -> None:
        """Close all."""
        with self._lock:
            for store in self._open.values():
                store.close()
            self._open.clear()


class Service:
    """The whole server. `start` it, then `stop` it."""

    def __init__(self, settings: Settings) -> None:
        """Do nothing yet."""
        self._settings = settings
        self._stack = AsyncExitStack()
        self._interceptor = CallInterceptor(max_message_bytes=settings.max_message_bytes)
        self.port = 0

    async def start(self) -> None:
        """Open the data folder, bring everything back, and listen.

        Deployments load in the background; the health service `readiness` tells when they are there.

        Raises:
            TermwiseError: the folder is held or of a newer format, the port is taken, and the like; nothing stays open.

        """
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        settings, stack = self._settings, self._stack
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_BLOCKING_THREADS, thread_name_prefix="blocking"))
        folder = stack.enter_context(DataFolder.open(settings.data.absolute()))
        metadata = MetadataStore(folder.metadata)
        stack.callback(metadata.close)
        sizes = {"memory_bytes": settings.exact_path_memory_bytes, "mapped_bytes": settings.exact_path_mapped_bytes}
        stores = Stores(folder, {"tantivy": sizes})
        stack.callback(stores.close)
        indices = Indices(metadata, stores.get, default_backend=settings.storage, volatile_backends=_VOLATILE)
        stack.push_async_callback(indices.close)

        async def references(name: str) -> Sequence[str]:
            users: Sequence[str] = await pipelines.references_to_deployment(name)
            return [*users, *await indices.references_to_deployment(name)]

        async def references_to_model(name: str) -> Sequence[str]:
            return [*dict.fromkeys([*await references(name), *await indices.references_to_model(name)])]

        repositories, packages = _sources(settings)
        catalog = ModelCatalog(
            metadata,
            folder.models,
            repositories=repositories,
            packages=packages,
            inspect=inspect_model,
            references=references_to_model,
            downloads_at_once=settings.model_downloads_at_once,
        )
        stack.push_async_callback(catalog.close)
        load = partial(_load, cache=folder.cache, device=settings.device)
        deployments = Deployments(
            metadata,
            catalog,
            load=load,
            references=references,
            precision=settings.precision,
            memory_bytes=settings.model_memory_bytes or machine_memory_bytes() * 3 // 4,
        )
        stack.push_async_callback(deployments.close)
        pipelines = Pipelines(metadata, deployments, indices)
        searching = ThreadPoolExecutor(_search_threads(settings.search_threads), thread_name_prefix="search")
        stack.callback(searching.shutdown, wait=True)

        await catalog.restore()
        # First of all, since models load in threads of their own while the rest is made ready. A deployment that shall
        # run is known, as STARTING, before the port answers.
        await deployments.restore()
        await asyncio.to_thread(find_backend, settings.storage)
        await self._reconcile(indices)
        health = HealthServicer(
            SERVICES, {"deployment": _deployment_probe(deployments), "index": _index_probe(indices)}
        )
        server = make_server(
            self._interceptor,
            max_message_bytes=settings.max_message_bytes,
            keepalive_seconds=settings.keepalive_seconds,
        )
        writer = Writer(indices, pipelines)
        limits = BulkLimits(outstanding_operations=settings.bulk_outstanding_operations)
        add_services(
            server,
            trained_models=TrainedModelsServicer(
                catalog, deployments, Statistics(catalog, deployments, pipelines.references_to_deployment)
            ),
            pipeline=PipelineServicer(pipelines),
            indices=IndicesServicer(indices, writer, Bulk(writer, limits)),
            search=SearchServicer(Searcher(indices, deployments, searching, _pairing(metadata))),
            health=health,
        )
        self.port = listen(server, settings.host, settings.port)
        await server.start()
        self._server, self._health = server, health
        stack.push_async_callback(server.stop, None)
        _wake_collector()
        ready = asyncio.create_task(_make_ready(deployments, health))
        stack.callback(ready.cancel)

    @staticmethod
    async def _reconcile(indices: Indices) -> None:
        """Make metadata and storage agree before anything is served."""
        found = await indices.reconcile()
        for name, error in found.broken.items():
            _log.error("index_broken", index=name, error=error)
        for name in found.lost:
            _log.warning("volatile_index_forgotten", index=name)
        for name in (*found.rolled_back, *found.finished):
            _log.warning("unfinished_index_removed", index=name)
        for name in found.dropped:
            _log.warning("stray_storage_removed", storage=name)
        for name in found.strays:
            _log.warning("stray_storage_kept", storage=name, why="the metadata know no index at all")

    async def stop(self, grace_seconds: float, hurried: asyncio.Event) -> None:
        """Turn health NOT_SERVING, let running calls finish, write what is queued, and close.

        Calls that still run after the grace, or once `hurried` is set, are cut off.
        """
        await self._health.drain()
        draining = asyncio.create_task(self._interceptor.drain(grace_seconds))
        hurry = asyncio.create_task(hurried.wait())
        await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        draining.cancel()
        left = self._interceptor.running
        if left:
            _log.warning("calls_cut_off", calls=left, grace_seconds=grace_seconds)
        await self._server.stop(0 if left else _LAST_WORDS_SECONDS)
        await self._stack.aclose()


def _sources(settings: Settings) -> tuple[Sequence[Repository], PackageIndex]:
    """Make the kinds of sources, and where packaged models are looked up.

    Raises:
        FailedPreconditionError: the file of the model repository's password cannot be read.

    """
    access = Access(
        base=settings.model_repository,
        username=settings.model_repository_username,
        password=_password(settings),
        proxy=settings.model_proxy.get_secret_value(),
        streams=settings.model_download_streams,
    )
    files = FileRepository(settings.model_folder)
    web = [HttpRepository("http", access), HttpRepository("https", access)]
    packages: PackageIndex = BuiltInPackages(PACKAGED)
    if settings.model_repository:
        packages = RepositoryPackages(settings.model_repository, PACKAGED, access=access, files=files)
    return [PyPIRepository(), HuggingFaceRepository(settings.model_download_streams), files, *web], packages


def _password(settings: Settings) -> str:
    file = settings.model_repository_password_file
    if file is None:
        return settings.model_repository_password.get_secret_value()
    try:
        return (file.read_text("utf-8").splitlines() or [""])[0]
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPreconditionError(
            f'Password file "{file}" (model_repository_password_file) cannot be read: '
            f"{getattr(error, 'strerror', None) or 'it is no UTF-8'}.",
            reason="PASSWORD_FILE_UNREADABLE",
        ) from None


def _load(folder: Path, config: ExpansionConfig, threads: int, precision: str, *, cache: Path, device: str) -> Encoder:
    encoder = load_encoder(folder, config, threads=threads, precision=precision, cache=cache, device=device)
    if libraries := _LARGE.intersection(sys.modules):
        _quieten_collector(libraries)
    return encoder


def _wake_collector() -> None:
    """Collect garbage from now on, which a start does without (`__main__`); what it has made is not looked at."""
    gc.freeze()
    gc.enable()


@lru_cache
def _quieten_collector(libraries: frozenset[str]) -> None:
    """Take what a model brought with it (torch above all) out of the garbage collector's sight, once each library.

    It would walk a million objects again and again, for a third of a second each time, while every call waits.
    """
    del libraries
    gc.collect()
    gc.freeze()


def _pairing(metadata: MetadataStore) -> Callable[[str, str], bool]:
    """Make the rule that a query's fingerprint fits a document's: they are the two sides of one model."""

    def paired(query: str, document: str) -> bool:
        sides = ((model.query_fingerprint, model.fingerprint) for model in metadata.list_models())
        return query == document or (query, document) in sides

    return paired


def _search_threads(wanted: int) -> int:
    return wanted or max(2, len(os.sched_getaffinity(0)))


async def _make_ready(deployments: Deployments, health: HealthServicer) -> None:
    await deployments.settled()
    await health.ready()
    _log.info("ready")


def _deployment_probe(deployments: Deployments) -> Probe:
    async def probe(name: str) -> bool | None:
        with suppress(NotFoundError):
            return deployments.get(name).state is DeploymentState.STARTED
        return None

    return probe


def _index_probe(indices: Indices) -> Probe:
    async def probe(name: str) -> bool | None:
        try:
            await indices.open(name)
        except NotFoundError:
            return None
        except (TermwiseError, StorageError, OSError):
            return False
        return True

    return probe


async def serve_until_stopped(settings: Settings) -> None:
    """Run a server until SIGTERM or SIGINT; a second signal cuts the grace short.

    Raises:
        TermwiseError: it cannot start.

    """
    # An encoder's Python parts would hold up the event loop for as long as a thread may keep the interpreter.
    sys.setswitchinterval(settings.switch_interval_ms / 1e3)
    stopped, hurried = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurried if stopped.is_set() else stopped).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    service = Service(settings)
    await service.start()
    try:
        where = address(settings.host, service.port)
        if settings.port_file is not None:
            await asyncio.to_thread(_write_port, settings.port_file, service.port)
        _log.info(f"listening on {where}", address=where, data=str(settings.data), storage=settings.storage)
        await stopped.wait()
        _log.info("stopping", grace_seconds=settings.grace_seconds)
    finally:
        await service.stop(settings.grace_seconds, hurried)
    _log.info("stopped")


def _write_port(file: Path, port: int) -> None:
    """Write the port so that a reader never sees half of it.

    Raises:
        FailedPreconditionError: it cannot be written there.

    """
    draft = file.with_name(f".{file.name}.new")
    try:
        draft.write_text(f"{port}\n", "ascii")
        draft.replace(file)
    except OSError as error:
        raise FailedPreconditionError(
            f'Port file "{file}" cannot be written: {error.strerror}. Give another with --port-file.',
            reason="PORT_FILE_UNWRITABLE",
        ) from error
