"""The indices: made, found, deleted, and brought back after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from termwise.server.errors import (
    DataLossError,
    TermwiseError,
    UnavailableError,
    already_exists,
    invalid_field,
    not_found,
)
from termwise.server.identifiers import check_identifier
from termwise.server.indices.committer import CommitLimits, Committer, WriteOutcome
from termwise.server.indices.mapping import Mapping, check_mapping
from termwise.server.indices.state import IndexSettings, OpenIndex, Reconciliation
from termwise.server.metadata.records import IndexRecord, IndexState
from termwise.storage.errors import BackendMissingError, IndexMissingError, SchemaError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence

    from termwise.server.indices.mapping import FieldMapping
    from termwise.server.metadata.store import MetadataStore
    from termwise.storage.base import IndexStore, SparseIndex
    from termwise.storage.types import IndexStatistics, Operation

__all__ = ["IndexSettings", "Indices", "OpenIndex", "Reconciliation"]

Given = TypeVar("Given")


@dataclass(slots=True, eq=False)
class _Entry:
    """An open index with what belongs to it."""

    record: IndexRecord
    mapping: Mapping
    index: SparseIndex
    committer: Committer
    fingerprints: dict[str, str]


class Indices:
    """The catalogue of indices. One process owns the data folder, so what is open is kept here and never read twice."""

    def __init__(
        self,
        metadata: MetadataStore,
        store: Callable[[str], IndexStore],
        *,
        default_backend: str,
        volatile_backends: Collection[str] = (),
        limits: CommitLimits | None = None,
    ) -> None:
        """Wire the catalogue.

        Args:
            metadata: holds the records.
            store: gives the store of a backend, raising BackendMissingError; it may block.
            default_backend: backend of indices that name none.
            volatile_backends: backends that forget at a restart; their indices are forgotten then too.
            limits: bounds of commits.

        """
        self._metadata = metadata
        self._store = store
        self._default_backend = default_backend
        self._volatile = frozenset(volatile_backends)
        self._limits = limits
        self._entries: dict[str, _Entry] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self.changing = asyncio.Lock()
        """Held while indices are made or deleted, and by whoever must not see that happen (deleting a pipeline)."""

    async def create(self, name: str, mapping: Mapping, settings: IndexSettings | None = None) -> IndexRecord:
        """Make an index.

        Raises:
            AlreadyExistsError: the name is taken.
            InvalidArgumentError: the violation names the entry that cannot work.
            NotFoundError: the default pipeline does not exist.

        """
        check_identifier(name, "index")
        check_mapping(mapping)
        return await self._finish(self._create(name, mapping, settings or IndexSettings()))

    async def get(self, name: str, *, field: str = "index") -> IndexRecord:
        """Give an index's record, whatever its state.

        Raises:
            NotFoundError: there is none.

        """
        entry = self._entries.get(name)
        if entry is not None:
            return entry.record
        record = await asyncio.to_thread(self._metadata.get_index, name)
        if record is None:
            raise await self._missing(name, field)
        return record

    async def list(self, after: str = "", limit: int | None = None) -> Sequence[IndexRecord]:
        """Give records by name, from the one after `after`."""
        return await asyncio.to_thread(self._metadata.list_indices, after, limit)

    async def delete(self, name: str) -> None:
        """Delete an index and its documents. Writes that were accepted are finished first.

        Raises:
            NotFoundError: there is none.

        """
        await self._finish(self._delete(name))

    async def open(self, name: str, *, field: str = "index") -> OpenIndex:
        """Give an index that can be written and searched.

        Raises:
            NotFoundError: there is none; the violation names `field`.
            UnavailableError: it is still being made.
            DataLossError: its storage is gone.
            StorageError: its storage cannot be opened.

        """
        entry = await self._entry(name, field)
        return OpenIndex(entry.record, entry.mapping, entry.index, dict(entry.fingerprints))

    async def write(self, opened: OpenIndex, operations: Sequence[Operation]) -> Sequence[WriteOutcome]:
        """Write operations in order, in one commit with those of other callers; see `Committer.write`.

        Raises:
            NotFoundError: the index was deleted meanwhile.
            UnavailableError: it is being deleted, or the server stops.

        """
        return await (await self._same(opened)).committer.write(operations)

    async def bind_fingerprint(self, opened: OpenIndex, sparse_field: str, fingerprint: str) -> str:
        """Bind a sparse field to the model of its first inferred write, and give the one that it is bound to.

        Raises:
            NotFoundError: the index was deleted meanwhile.

        """
        entry = await self._same(opened)
        bound = entry.fingerprints.get(sparse_field)
        if bound is None:
            bound = await asyncio.to_thread(
                self._metadata.bind_fingerprint, entry.record.storage_name, sparse_field, fingerprint
            )
            entry.fingerprints[sparse_field] = bound
        return bound

    async def statistics(self, name: str) -> tuple[IndexStatistics, dict[str, str]]:
        """Count an index, and give the fingerprints of its sparse fields.

        Raises:
            NotFoundError: there is none.

        """
        opened = await self.open(name)
        counts = await asyncio.to_thread(lambda: opened.index.reader().statistics())
        return counts, opened.fingerprints

    async def references_to_deployment(self, deployment_id: str) -> Sequence[str]:
        """Name the indices whose fields search by a deployment, as 'index "docs"'."""
        return await self._with_field(lambda field: field.search_deployment_id == deployment_id)

    async def references_to_model(self, model_id: str) -> Sequence[str]:
        """Name the indices whose fields hold a model's vectors, by its id or alias, as 'index "docs"'."""
        return await self._with_field(lambda field: field.model_id == model_id)

    async def _with_field(self, wanted: Callable[[FieldMapping], bool]) -> Sequence[str]:
        return [
            f'index "{record.name}"'
            for record in await self.list()
            if any(map(wanted, Mapping.from_json(record.mapping).properties.values()))
        ]

    async def with_default_pipeline(self, pipeline_id: str) -> Sequence[str]:
        """Name the indices whose default pipeline is `pipeline_id`."""
        return [each.name for each in await self.list() if each.settings.get("default_pipeline") == pipeline_id]

    async def reconcile(self) -> Reconciliation:
        """Bring metadata and storage together after a start, before anything is served, and open what is ready."""
        found: dict[str, list[str]] = {"ready": [], "rolled_back": [], "finished": [], "lost": []}
        broken: dict[str, str] = {}
        records = await self.list()
        for record in records:
            try:
                found[await self._reconcile(record)].append(record.name)
            except (TermwiseError, StorageError, OSError) as error:
                broken[record.name] = str(error)
        strays = await asyncio.to_thread(self._strays, records)
        if not records:
            return Reconciliation(strays=tuple(name for _, name in strays))
        for store, name in strays:
            await asyncio.to_thread(store.drop, name)
        return Reconciliation(
            **{kind: tuple(names) for kind, names in found.items()},
            broken=broken,
            dropped=tuple(name for _, name in strays),
        )

    async def close(self) -> None:
        """Finish what was accepted, then refuse writes. The stores are closed by whoever opened them."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.gather(*(entry.committer.close() for entry in self._entries.values()))

    async def _finish(self, work: Coroutine[Any, Any, Given]) -> Given:
        """Run work to its end even where the caller leaves: half of it must not stay."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _create(self, name: str, mapping: Mapping, settings: IndexSettings) -> IndexRecord:
        async with self.changing:
            await self._check_pipeline(settings.default_pipeline)
            backend = settings.storage or self._default_backend
            try:
                store = await asyncio.to_thread(self._store, backend)
            except BackendMissingError as error:
                raise invalid_field("settings.storage", str(error), reason="UNKNOWN_STORAGE") from error
            record = IndexRecord(
                name=name,
                state=IndexState.CREATING,
                storage_name=uuid.uuid4().hex,
                backend=backend,
                mapping=mapping.to_json(),
                settings={"default_pipeline": settings.default_pipeline, "storage": backend},
                create_time=datetime.now(UTC),
            )
            await self._claim(record)
            try:
                await asyncio.to_thread(store.create, record.storage_name, mapping.schema())
                record = replace(record, state=IndexState.READY)
                await asyncio.to_thread(self._metadata.put_index, record)
            except BaseException as error:
                await asyncio.to_thread(self._remove, record)
                if isinstance(error, SchemaError):
                    raise invalid_field("mapping", str(error)) from error
                raise
        return record

    async def _check_pipeline(self, pipeline_id: str) -> None:
        if not pipeline_id:
            return
        where = "settings.default_pipeline"
        check_identifier(pipeline_id, where)
        known = [each.pipeline_id for each in await asyncio.to_thread(self._metadata.list_pipelines)]
        if pipeline_id not in known:
            raise not_found("pipeline", pipeline_id, known, field=where)

    async def _claim(self, record: IndexRecord) -> None:
        """Take the name. What a failed creation or deletion left of it goes first: nobody else is at it meanwhile."""
        old = await asyncio.to_thread(self._metadata.get_index, record.name)
        if old is not None and old.state is not IndexState.READY:
            await asyncio.to_thread(self._remove, old)
        if not await asyncio.to_thread(self._metadata.insert_index, record):
            raise already_exists("index", record.name, hint="Delete it first, or choose another name.")

    async def _delete(self, name: str) -> None:
        record = await self.get(name)
        async with self.changing, self._opening.setdefault(name, asyncio.Lock()):
            record = await self.get(name)
            await asyncio.to_thread(self._metadata.put_index, replace(record, state=IndexState.DELETING))
            entry = self._entries.pop(name, None)
            if entry is not None:
                await entry.committer.close()
            await asyncio.to_thread(self._remove, record)

    def _remove(self, record: IndexRecord) -> None:
        """Take an index out of storage, where it is there, and out of the metadata."""
        with contextlib.suppress(IndexMissingError):
            self._store(record.backend).drop(record.storage_name)
        self._metadata.delete_index(record.name)

    async def _reconcile(self, record: IndexRecord) -> str:
        """Bring one index into order, and say what was done to it in the words of `Reconciliation`."""
        if record.state is not IndexState.READY:
            await asyncio.to_thread(self._remove, record)
            return "rolled_back" if record.state is IndexState.CREATING else "finished"
        try:
            await self._entry(record.name, "index")
        except DataLossError:
            if record.backend not in self._volatile:
                raise
            await asyncio.to_thread(self._metadata.delete_index, record.name)
            return "lost"
        return "ready"

    def _strays(self, records: Sequence[IndexRecord]) -> Sequence[tuple[IndexStore, str]]:
        """Find storage that no record names, in the default backend and in those that records name."""
        known = {record.storage_name for record in records}
        strays: list[tuple[IndexStore, str]] = []
        for backend in {self._default_backend, *(record.backend for record in records)}:
            with contextlib.suppress(StorageError):
                store = self._store(backend)
                strays += [(store, name) for name in store.list() if name not in known]
        return strays

    async def _same(self, opened: OpenIndex) -> _Entry:
        """Give the entry of an index that was opened before, unless it was deleted since."""
        name = opened.record.name
        entry = await self._entry(name, "")
        if entry.record.storage_name != opened.record.storage_name:
            raise not_found("index", name, hint="It was deleted and made anew meanwhile; retry.")
        return entry

    async def _entry(self, name: str, field_name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is not None:
            return entry
        if await asyncio.to_thread(self._metadata.get_index, name) is None:
            raise await self._missing(name, field_name)
        async with self._opening.setdefault(name, asyncio.Lock()):
            return self._entries.get(name) or await self._load(name, field_name)

    async def _load(self, name: str, field_name: str) -> _Entry:
        record = await asyncio.to_thread(self._metadata.get_index, name)
        if record is None or record.state is IndexState.DELETING:
            raise await self._missing(name, field_name)
        if record.state is IndexState.CREATING:
            raise UnavailableError(
                f'Index "{name}" is being made; retry in a moment.', reason="INDEX_NOT_READY", metadata={"index": name}
            )
        try:
            index = await asyncio.to_thread(lambda: self._store(record.backend).open(record.storage_name))
        except IndexMissingError as error:
            raise DataLossError(
                f'The storage of index "{name}" is gone; restore the data folder, or delete the index and refill it.',
                reason="INDEX_STORAGE_MISSING",
                metadata={"index": name, "storage": record.backend},
            ) from error
        fingerprints = await asyncio.to_thread(self._metadata.fingerprints, record.storage_name)
        mapping = Mapping.from_json(record.mapping)
        entry = _Entry(record, mapping, index, Committer(index, self._limits), fingerprints)
        self._entries[name] = entry
        return entry

    async def _missing(self, name: str, field_name: str) -> TermwiseError:
        if not name:
            return invalid_field(field_name, "It is empty; name the index.")
        known = [each.name for each in await self.list() if each.state is IndexState.READY and each.name != name]
        return not_found("index", name, known, field=field_name)
