"""One open tantivy index: groups of operations in, one durable commit each out."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tantivy

from termwise.storage.checks import check_document, refusal
from termwise.storage.errors import StorageError, StorageFullError, StorageLockedError
from termwise.storage.tantivy.codec import encode_vectors, read_vectors, sparse_terms
from termwise.storage.tantivy.layout import (
    commit_stamp,
    has_room,
    is_full,
    read_last_seq_no,
    sync_commit,
    write_last_seq_no,
)
from termwise.storage.tantivy.reader import TantivyReader
from termwise.storage.types import Delete, Put, Result, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from termwise.storage.checks import Column
    from termwise.storage.tantivy.layout import Layout
    from termwise.storage.tantivy.tiles import SparseTiles
    from termwise.storage.types import Document, IndexSchema, Operation, Outcome, SparseVector

_WRITER_BYTES: Final = 64 * 1024 * 1024
"""Memory in which tantivy gathers documents before it writes a segment."""


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


class TantivyIndex:
    """An open index. The store makes it, and holds the lock of its folder."""

    def __init__(
        self, folder: Path, layout: Layout, *, exact_path: bool, on_writer: Callable[[TantivyIndex], None]
    ) -> None:
        """Open tantivy's files and, where wanted, build the exact path from the stored vectors.

        `on_writer` hears of each writer that opens, so that the store can close others.
        """
        self._folder = folder
        self._layout = layout
        self._exact_path = exact_path and bool(layout.sparse_places())
        self._index = layout.open(folder)
        self._on_writer = on_writer
        self._writer: Any = None
        self._writing = threading.Lock()
        self._closed = False
        self._stale = False
        self._load()

    @property
    def schema(self) -> IndexSchema:
        """See `SparseIndex.schema`."""
        return self._layout.schema

    def write(self, operations: Sequence[Operation]) -> list[Outcome]:
        """See `SparseIndex.write`."""
        columns = {
            place: check_document(self.schema, operation.document)
            for place, operation in enumerate(operations)
            if isinstance(operation, Put)
        }
        with self._writing:
            if self._closed:
                raise StorageError(f"Index {self._folder.name} is closed; open it again.")
            if self._stale:  # the write before was committed, and then something like a lack of memory got in the way
                self._load()
                self._stale = False
            change = self._plan(operations)
            if change.versions:
                self._commit(change, columns)
            return change.outcomes

    def reader(self) -> TantivyReader:
        """See `SparseIndex.reader`."""
        return self._reader

    def close(self) -> None:
        """See `SparseIndex.close`."""
        with self._writing:
            self._closed = True
            self._writer = None

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
        for place, operation in enumerate(operations):
            id_ = operation.id if isinstance(operation, Delete) else operation.document.id
            before = self._reader.version(id_) if id_ not in change.versions else 0
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

    def _commit(self, change: _Change, columns: Mapping[int, Mapping[str, tuple[Column, ...]]]) -> None:
        stamp = commit_stamp(self._folder)
        try:
            if change.last_seq_no not in {seq_no for seq_no, _, _ in change.puts.values()}:
                write_last_seq_no(self._folder, change.last_seq_no)
            writer = self._open_writer()
            for id_ in change.removed:
                writer.delete_documents_by_term("key", id_)
            for seq_no, place, document in change.puts.values():
                writer.add_document(self._tantivy_document(seq_no, document, columns[place]))
            tiles = self._changed_tiles(change)  # while tantivy's thread still indexes
            writer.commit()
            sync_commit(self._folder)
        except BaseException as error:
            # Drops what was added; a writer that met an error is of no more use. The name is emptied too: the traceback
            # keeps it for as long as somebody keeps the error, and with it tantivy's lock.
            self._writer = writer = None
            translated = self._translated(error)
            self._clear_leftovers()
            if commit_stamp(self._folder) != stamp:
                self._load()
            raise translated from error
        self._stale = True
        self._index.reload()
        self._show(tiles, change.last_seq_no)
        self._stale = False

    def _open_writer(self) -> Any:
        if self._writer is None:
            self._on_writer(self)
            self._writer = self._index.writer(heap_size=_WRITER_BYTES, num_threads=1)
        return self._writer

    def _tantivy_document(
        self, seq_no: int, document: Document, columns: Mapping[str, tuple[Column, ...]]
    ) -> tantivy.Document:
        places = self._layout.places
        content: dict[str, Any] = {"key": document.id, "seq_no": seq_no, "source": document.source}
        has = []
        for name, values in chain(document.texts.items(), columns.items()):
            if values:
                content[places[name].column] = list(values)
                has.append(str(places[name].number))
        terms: list[str] = []
        for name, vector in document.sparse.items():
            terms += sparse_terms(places[name].prefix, vector)
            has.append(str(places[name].number))
        if terms:
            content["sparse"] = terms
        if document.sparse:
            content["vec"] = encode_vectors((places[name].number, v) for name, v in document.sparse.items())
        content["has"] = has
        return tantivy.Document.from_dict(content, self._index.schema)

    def _changed_tiles(self, change: _Change) -> Mapping[str, SparseTiles] | None:
        tiles = self._reader.tiles
        if tiles is None:
            return None
        removed = np.sort(np.fromiter(change.removed.values(), np.int64, len(change.removed)))
        written: dict[str, list[tuple[int, SparseVector]]] = {name: [] for name in tiles}
        for seq_no, _, document in change.puts.values():
            for name, vector in document.sparse.items():
                written[name].append((seq_no, vector))
        return {name: _changed(held, removed, written[name]) for name, held in tiles.items()}

    def _show(self, tiles: Mapping[str, SparseTiles] | None, last_seq_no: int) -> None:
        searcher = self._index.searcher()
        self._reader = TantivyReader(self._folder, self._layout, searcher, self._index.schema, tiles, last_seq_no)

    def _load(self) -> None:
        """Read what is on the disk: the newest seq_no, and the vectors of the exact path."""
        self._index.reload()
        searcher = self._index.searcher()
        hits: Any = searcher.search(tantivy.Query.all_query(), limit=max(1, searcher.num_docs), count=False).hits
        addresses = [address for _, address in hits]
        values: Any = searcher.fast_field_values("seq_no", addresses)
        seq_nos = np.array(list(values), dtype=np.int64)
        last = max(read_last_seq_no(self._folder), int(seq_nos.max()) if len(seq_nos) else 0)
        self._show(self._load_tiles(searcher, addresses, seq_nos) if self._exact_path else None, last)

    def _load_tiles(
        self, searcher: tantivy.Searcher, addresses: list[tantivy.DocAddress], seq_nos: NDArray[np.int64]
    ) -> Mapping[str, SparseTiles]:
        from termwise.storage.tantivy.loading import Loading  # noqa: PLC0415 - loads the kernels

        places = self._layout.sparse_places()
        order = np.argsort(seq_nos)
        with ThreadPoolExecutor(1, "loading") as worker:
            fields = {place.number: Loading(worker) for place in places}
            for n, seq_no in zip(order.tolist(), seq_nos[order].tolist(), strict=True):
                data: Any = searcher.doc(addresses[n]).get_first("vec")
                for number, vector in read_vectors(data or b""):
                    fields[number].add(seq_no, vector)
            return {place.name: fields[place.number].finish() for place in places}

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


def _changed(
    tiles: SparseTiles, removed: np.ndarray[Any, np.dtype[np.int64]], written: list[tuple[int, SparseVector]]
) -> SparseTiles:
    seq_nos = np.array([seq_no for seq_no, _ in written], dtype=np.int64)
    return tiles.changed(removed, seq_nos, [vector for _, vector in written])
