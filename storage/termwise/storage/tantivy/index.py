"""One open tantivy index: groups of operations in, one durable commit each out."""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tantivy

from termwise.storage.checks import refusal
from termwise.storage.errors import StorageError, StorageFullError, StorageLockedError
from termwise.storage.tantivy.accelerator import Accelerator, is_unkept, tiles_size
from termwise.storage.tantivy.codec import count_marks
from termwise.storage.tantivy.layout import (
    commit_stamp,
    has_room,
    is_full,
    read_last_seq_no,
    sync_commit,
    write_last_seq_no,
)
from termwise.storage.tantivy.preparing import prepare
from termwise.storage.tantivy.reader import TantivyReader
from termwise.storage.tantivy.sealing import seal
from termwise.storage.tantivy.tile_files import TileFileError, cool
from termwise.storage.tantivy.tiles import SparseTiles
from termwise.storage.tantivy.upkeep import released, reserved, swapped, tiles_to_seal
from termwise.storage.types import Delete, Put, Result, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from termwise.storage.tantivy.budget import Budget
    from termwise.storage.tantivy.layout import Layout
    from termwise.storage.tantivy.preparing import Prepared
    from termwise.storage.tantivy.tile import Tile, Vocabulary
    from termwise.storage.types import Document, IndexSchema, Operation, Outcome

_log: Final = logging.getLogger("termwise.storage")

_WRITER_BYTES: Final = 64 * 1024 * 1024
"""Memory in which tantivy gathers documents before it writes a segment."""

_KEEP_AGAIN: Final = 30.0
"""Seconds after which a tile that could not be written is tried again."""


@dataclass(slots=True)
class _Change:
    """What a batch comes to: the newest version of each document it writes, and the old versions it ends."""

    last_seq_no: int
    outcomes: list[Outcome] = field(default_factory=list)
    puts: dict[str, tuple[int, int, Document]] = field(default_factory=dict)
    """Seq_no, place in the batch and document, by id."""
    removed: dict[str, int] = field(default_factory=dict)
    """Seq_no of the version from before the batch, by id."""
    versions: dict[str, int] = field(default_factory=dict)
    """What each document's version is by now, 0 for none, by id."""


@dataclass(frozen=True, slots=True)
class _Job:
    """Neighbours of a field that are to become one sealed tile."""

    field: str
    vocabulary: Vocabulary
    old: Sequence[Tile]
    marked: bool = False
    """Whether they are `reserved`: those that were sealed before need not be."""
    again: bool = False
    """Whether it is one that is well, but could not be written to a file."""


class TantivyIndex:
    """An open index. The store makes it, and holds the lock of its folder."""

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        *,
        exact_path: bool,
        budget: Budget,
        on_writer: Callable[[TantivyIndex], None],
        on_work: Callable[[TantivyIndex], None],
    ) -> None:
        """Open tantivy's files and, where wanted and within the `budget`, the exact path.

        `on_writer` hears of each writer that opens, so that the store can close others; `on_work` of tiles that
        `upkeep` should see to.
        """
        self._folder = folder
        self._layout = layout
        self._accelerator = Accelerator(folder, layout) if exact_path and layout.sparse_places() else None
        self._index = layout.open(folder)
        self._on_writer = on_writer
        self._on_work = on_work
        self._tiles: Mapping[str, SparseTiles] | None = None
        self._keeping = threading.Lock()
        self._written = self.searched = -math.inf
        self._budget = budget
        self._limited = False
        self._writer: Any = None
        self._writing = threading.Lock()
        self._closed = False
        self._stale = False
        self._keep_again = -math.inf
        try:
            self._load()
        except BaseException:
            budget.leave(self)
            raise

    @property
    def schema(self) -> IndexSchema:
        """See `SparseIndex.schema`."""
        return self._layout.schema

    def write(self, operations: Sequence[Operation]) -> list[Outcome]:
        """See `SparseIndex.write`."""
        puts = [(place, op.document) for place, op in enumerate(operations) if isinstance(op, Put)]
        prepared = prepare(self._layout, puts)
        with self._writing:
            if self._closed:
                raise StorageError(f"Index {self._folder.name} is closed; open it again.")
            if self._stale:  # the write before may be on the disk, and something like a lack of memory got in the way
                self._load()
                self._stale = False
            change = self._plan(operations)
            if change.versions:
                self._commit(change, prepared)
            return change.outcomes

    def reader(self) -> TantivyReader:
        """See `SparseIndex.reader`."""
        self.searched = time.monotonic()
        return self._reader

    def close(self, *, dropped: bool = False, until: float = math.inf) -> None:
        """See `SparseIndex.close`. What is `dropped` leaves nothing for the next start.

        After `until`, by the monotonic clock, no more tiles are written: the next start makes them instead.
        """
        with self._writing:
            closed, self._closed = self._closed, True
            self._writer = None
            self._budget.leave(self)
        with self._keeping:  # what upkeep still writes ends first
            if not (closed or dropped or self._stale) and self._accelerator and self._tiles:
                with suppress_logged("open tiles were not kept"):
                    self._accelerator.keep_rest(self._tiles, until)

    @property
    def idle_seconds(self) -> float:
        """How long ago the last write was."""
        return time.monotonic() - self._written

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def unkept(self) -> bool:
        """Whether there are sealed tiles that could not be written to files."""
        return any(is_unkept(tile) for held in (self._tiles or {}).values() for tile in held.tiles)

    def upkeep(self, *, idle: bool = False) -> bool:
        """Make one tile of those that should be one, and keep it in a file; False where there was nothing to do.

        Writes and searches go on meanwhile. `idle` does what is worth doing where nobody writes, and writes a tile
        again whose file could not be written.
        """
        with self._keeping:
            with self._writing:
                job, accelerator = self._next_job(idle=idle), self._accelerator
            if job is None or accelerator is None:
                return False
            try:
                fresh = job.old[0] if job.again else seal(job.old)
                self._keep_again = time.monotonic() + _KEEP_AGAIN
                with suppress_logged("a tile was not kept"):
                    fresh = accelerator.keep(self._layout.places[job.field], job.vocabulary, fresh)
                    self._keep_again = -math.inf
                with self._writing:
                    return self._swap(job, fresh) and not (job.again and is_unkept(fresh))
            except BaseException:
                if job.marked:
                    self._release(job)
                raise

    def _swap(self, job: _Job, fresh: Tile) -> bool:
        """Put a new tile in the place of old ones; False where the index is closed or has to be read anew."""
        if self._tiles is None or self._stale:
            return False
        held = self._tiles[job.field]
        tiles = swapped(held.tiles, job.old, fresh)
        if tiles is not None:
            changed = {**self._tiles, job.field: SparseTiles(held.vocabulary, tuple(tiles))}
            if self._closed:  # only `close` looks at it, for what is not kept yet
                self._tiles = changed
            else:
                self._show(changed, self._reader.last_seq_no, self._reader.searcher)
        return not self._closed

    def _release(self, job: _Job) -> None:
        """Let writes join tiles again that did not become one."""
        with self._writing:
            if self._tiles is not None and not self._stale:
                held = self._tiles[job.field]
                tiles = released(held.tiles, job.old)
                self._tiles = {**self._tiles, job.field: SparseTiles(held.vocabulary, tuple(tiles))}

    def _next_job(self, *, idle: bool) -> _Job | None:
        """Choose tiles that are to become one, and keep writes from joining them with others."""
        if self._tiles is None or self._closed or self._stale:
            return None
        for name, held in self._tiles.items():
            run = tiles_to_seal(held.tiles, idle=idle)
            if run is not None:
                if held.tiles[run.start].sealed:
                    return _Job(name, held.vocabulary, held.tiles[run])
                tiles = reserved(held.tiles, run)
                self._tiles = {**self._tiles, name: SparseTiles(held.vocabulary, tuple(tiles))}
                return _Job(name, held.vocabulary, tiles[run], marked=True)
        if idle and time.monotonic() >= self._keep_again:
            for name, held in self._tiles.items():
                for tile in filter(is_unkept, held.tiles):
                    return _Job(name, held.vocabulary, [tile], again=True)
        return None

    def release_writer(self) -> bool:
        """Give back the writer's threads and memory; the next write gets new ones. False where a write is running."""
        if not self._writing.acquire(blocking=False):
            return False
        try:
            self._writer = None
        finally:
            self._writing.release()
        return True

    def _plan(self, operations: Sequence[Operation]) -> _Change:
        change = _Change(self._reader.last_seq_no)
        ids = [op.id if isinstance(op, Delete) else op.document.id for op in operations]
        versions = self._reader.versions(ids)
        for place, operation in enumerate(operations):
            id_ = ids[place]
            before = versions.get(id_, 0) if id_ not in change.versions else 0
            found = change.versions.get(id_, before)
            error = refusal(operation, id_, found)
            if error is not None:
                change.outcomes.append(error)
                continue
            if before:
                change.removed[id_] = before
            change.last_seq_no += 1
            if isinstance(operation, Delete):
                change.versions[id_] = 0
                change.puts.pop(id_, None)
                result = Result.DELETED
            else:
                change.versions[id_] = change.last_seq_no
                change.puts.pop(id_, None)  # so that puts stay in the order of seq_no
                change.puts[id_] = change.last_seq_no, place, operation.document
                result = Result.UPDATED if found else Result.CREATED
            change.outcomes.append(Written(id_, change.last_seq_no, result))
        return change

    def _commit(self, change: _Change, prepared: Prepared) -> None:
        stamp = commit_stamp(self._folder)
        try:
            if change.last_seq_no not in {seq_no for seq_no, _, _ in change.puts.values()}:
                write_last_seq_no(self._folder, change.last_seq_no)
            writer = self._open_writer()
            for id_ in change.removed:
                writer.delete_documents_by_term("key", id_)
            for seq_no, place, document in change.puts.values():
                writer.add_document(self._tantivy_document(seq_no, document, place, prepared))
            tiles = self._changed_tiles(change, prepared)  # while tantivy's thread still indexes
            writer.commit()
            sync_commit(self._folder)
        except BaseException as error:
            # Drops what was added; a writer that met an error is of no more use. The name is emptied too: the traceback
            # keeps it for as long as somebody keeps the error, and with it tantivy's lock.
            self._writer = writer = None
            self._stale = True
            translated = self._translated(error)
            self._clear_leftovers()
            with suppress(Exception):  # what is on the disk cannot be told now: the next write looks again
                if commit_stamp(self._folder) != stamp:
                    self._load()
                self._stale = False
            raise translated from error
        self._stale = True
        self._written = time.monotonic()
        self._index.reload()
        self._show(tiles, change.last_seq_no, self._index.searcher())
        self._stale = False

    def _open_writer(self) -> Any:
        if self._writer is None:
            self._on_writer(self)
            writer: Any = self._index.writer(heap_size=_WRITER_BYTES, num_threads=1)
            # A writer's first operation gets the number of the last commit. As a delete, it would be lost to segments
            # that begin to merge before the next commit, and the old version would come back: so it deletes nothing.
            writer.delete_documents_by_term("key", "")
            self._writer = writer
        return self._writer

    def _tantivy_document(self, seq_no: int, document: Document, place: int, prepared: Prepared) -> tantivy.Document:
        places = self._layout.places
        content: dict[str, Any] = {"key": document.id, "seq_no": seq_no, "source": document.source}
        has = []
        for name, values in chain(document.texts.items(), prepared.columns[place].items()):
            if values:
                content[places[name].column] = list(values)
                has.append(str(places[name].number))
        if place in prepared.sparse:
            for name, held in document.vectors().items():
                number = str(places[name].number)
                has += [number, *(f"{number}{mark}" for mark in count_marks(len(held) - 1))]
            content["sparse"], content["vec"] = prepared.sparse[place]
        content["has"] = has
        return tantivy.Document.from_dict(content, self._index.schema)

    def _changed_tiles(self, change: _Change, prepared: Prepared) -> Mapping[str, SparseTiles] | None:
        tiles = self._tiles
        if tiles is None:
            return None
        removed = np.sort(np.fromiter(change.removed.values(), np.int64, len(change.removed)))
        seq_nos = {place: seq_no for seq_no, place, _ in change.puts.values()}
        result = {}
        for name, held in tiles.items():
            brought = prepared.fields[name]
            numbers = np.array([seq_nos.get(place, 0) for place in brought.operations.tolist()], np.int64)
            kept = numbers > 0
            result[name] = held.changed(removed, brought.vectors.batch(numbers[kept], kept))
        return result

    def cool(self) -> None:
        """Tell the kernel to reclaim the tiles' pages before others; they are read again where they are needed."""
        for held in (self._tiles or {}).values():
            for tile in held.tiles:
                cool(tile.docs)

    def _show(self, tiles: Mapping[str, SparseTiles] | None, last_seq_no: int, searcher: tantivy.Searcher) -> None:
        if tiles is not None and not self._budget.take(self, tiles_size(tiles)):
            tiles = None
            self._go_without()
        self._tiles = tiles
        self._reader = TantivyReader(
            self._folder, self._layout, searcher, self._index.schema, tiles, last_seq_no, limited=self._limited
        )
        if tiles is not None and any(tiles_to_seal(held.tiles, idle=True) for held in tiles.values()):
            self._on_work(self)

    def _go_without(self) -> None:
        self._accelerator, self._limited = None, True
        _log.warning("index %s is searched without the exact path: its limit is reached", self._folder.name)

    def _load(self) -> None:
        """Read what is on the disk: the newest seq_no, and the exact path."""
        self._index.reload()
        searcher = self._index.searcher()
        newest: Any = searcher.search(
            tantivy.Query.all_query(), limit=1, count=False, order_by_field="seq_no", order=tantivy.Order.Desc
        ).hits
        last = max(read_last_seq_no(self._folder), *(int(seq_no) for seq_no, _ in newest), 0)
        if self._accelerator is not None and not self._budget.take(self, self._accelerator.size_of_files()):
            self._go_without()
        tiles = None if self._accelerator is None else self._accelerator.load(searcher, self._index.schema, last)
        self._show(tiles, last, searcher)

    def _clear_leftovers(self) -> None:
        """Remove the files of a failed batch at once: where the disk is full, they may be what fills it."""
        with suppress(OSError, ValueError, RuntimeError):
            self._open_writer().garbage_collect_files()

    def _translated(self, error: BaseException) -> BaseException:
        text = str(error)
        # A thread of tantivy's that cannot write dies, and the error does not say why: then the disk itself is asked.
        if is_full(error) or ("writer was killed" in text and not has_room(self._folder, _WRITER_BYTES)):
            return StorageFullError("The disk is full; nothing was written. Make room and write again.")
        if "LockBusy" in text:
            return StorageLockedError(f"Another process writes to index {self._folder.name}; stop it first.")
        if isinstance(error, (OSError, ValueError, RuntimeError)) or type(error).__name__ == "PanicException":
            return StorageError(f"Index {self._folder.name} cannot be written: {text}")
        return error


@contextmanager
def suppress_logged(event: str) -> Iterator[None]:
    """Log errors of files that are only a cache, and go on without them."""
    try:
        yield
    except (OSError, TileFileError) as error:
        _log.warning("%s: %s", event, error)
