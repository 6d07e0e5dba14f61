"""The embedded default backend: a folder of tantivy indices."""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import shutil
import threading
import uuid
from typing import TYPE_CHECKING, Final

from termwise.storage.checks import check_schema
from termwise.storage.errors import (
    IndexExistsError,
    IndexMissingError,
    SchemaError,
    StorageError,
    StorageFullError,
    StorageLockedError,
)
from termwise.storage.tantivy.budget import Budget
from termwise.storage.tantivy.index import TantivyIndex
from termwise.storage.tantivy.layout import Layout, is_full, sync

if TYPE_CHECKING:
    from pathlib import Path

    from termwise.storage.types import IndexSchema

_log: Final = logging.getLogger("termwise.storage")

_TRANSIENT: Final = "#"
"""Begins the names of folders that are being made or removed; leftovers are removed when the store opens."""

_LONGEST_NAME: Final = 255

_PATIENCE: Final = 1.0
"""Seconds without a write after which an index counts as idle."""

_MOST_WRITERS: Final = 8
"""Writers that stay open in a store, each a few threads; busy ones are on top."""


class TantivyStore:
    """Indices in sub-folders, each with a lock of its own while it is open."""

    def __init__(self, folder: Path, *, exact_path: bool = True, memory_bytes: int = 0, mapped_bytes: int = 0) -> None:
        """Open the folder. `exact_path` keeps sparse vectors in memory too, 6 bytes a weight, for fast search.

        `memory_bytes` and `mapped_bytes` limit what that may take (see `budget`).
        """
        self._budget = Budget(memory_bytes, mapped_bytes)
        self._folder = folder
        self._exact_path = exact_path
        self._open: dict[str, tuple[TantivyIndex, int]] = {}
        self._lock = threading.Lock()
        self._writers: list[TantivyIndex] = []
        self._writers_lock = threading.Lock()
        self._upkeep = Upkeep(self._budget)
        for path in folder.iterdir():
            if path.name.startswith(_TRANSIENT):
                shutil.rmtree(path, ignore_errors=True)

    def create(self, name: str, schema: IndexSchema) -> None:
        """See `IndexStore.create`."""
        check_schema(schema)
        target = self._path(name)
        with self._lock:
            if target.exists():
                raise IndexExistsError(f'Index "{name}" exists.')
            fresh = self._transient()
            try:
                fresh.mkdir()
                Layout.new(schema).create(fresh)
                fresh.rename(target)
                sync(self._folder)
            except (OSError, ValueError) as error:
                shutil.rmtree(fresh, ignore_errors=True)
                if is_full(error):
                    raise StorageFullError(f'The disk is full; index "{name}" was not made.') from error
                raise StorageError(f'Index "{name}" cannot be made: {error}') from error

    def open(self, name: str) -> TantivyIndex:
        """See `IndexStore.open`."""
        path = self._path(name)
        with self._lock:
            if name in self._open:
                return self._open[name][0]
            if not path.is_dir():
                raise IndexMissingError(f'Index "{name}" does not exist.')
            layout = Layout.read(path)
            lock = _lock_file(path)
            try:
                index = TantivyIndex(
                    path,
                    layout,
                    exact_path=self._exact_path,
                    budget=self._budget,
                    on_writer=self._limit_writers,
                    on_work=self._upkeep.ask,
                )
            except BaseException:
                os.close(lock)
                raise
            self._open[name] = index, lock
            for cold in self._budget.cold():
                cold.cool()
            return index

    def list(self) -> list[str]:
        """See `IndexStore.list`."""
        return sorted(p.name for p in self._folder.iterdir() if p.is_dir() and not p.name.startswith(_TRANSIENT))

    def drop(self, name: str) -> None:
        """See `IndexStore.drop`."""
        path = self._path(name)
        with self._lock:
            if not path.is_dir():
                raise IndexMissingError(f'Index "{name}" does not exist.')
            self._close(name, dropped=True)
            doomed = self._transient()
            path.rename(doomed)
            sync(self._folder)
        shutil.rmtree(doomed, ignore_errors=True)

    def close(self) -> None:
        """See `IndexStore.close`."""
        with self._lock:
            self._upkeep.close()
            for name in tuple(self._open):
                self._close(name)

    def _limit_writers(self, index: TantivyIndex) -> None:
        """Close the writers that were opened first: each has threads, and memory for documents that are not flushed."""
        with self._writers_lock:
            self._writers = [other for other in self._writers if other is not index]
            idle = self._writers[: -(_MOST_WRITERS - 1)]
            released = [other for other in idle if other.release_writer()]
            self._writers = [other for other in self._writers if other not in released] + [index]

    def _close(self, name: str, *, dropped: bool = False) -> None:
        index, lock = self._open.pop(name, (None, -1))
        if index is not None:
            index.close(dropped=dropped)
            with self._writers_lock:
                self._writers = [other for other in self._writers if other is not index]
            os.close(lock)

    def _path(self, name: str) -> Path:
        if (
            name in {"", ".", ".."}
            or len(name.encode()) > _LONGEST_NAME
            or name[0] == _TRANSIENT
            or set(name) & {"/", "\0"}
        ):
            raise SchemaError(f'Index name "{name[:40]}" cannot name a folder.')
        return self._folder / name

    def _transient(self) -> Path:
        return self._folder / f"{_TRANSIENT}{uuid.uuid4().hex}"


class Upkeep:
    """One thread that sees to the tiles of all indices of a store, one tile at a time."""

    def __init__(self, budget: Budget) -> None:
        """Begin without a thread; the first index that asks starts it. What is cold by the `budget` is cooled."""
        self._budget = budget
        self._waiting: queue.SimpleQueue[TantivyIndex | None] = queue.SimpleQueue()
        self._asked: set[TantivyIndex] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def ask(self, index: TantivyIndex) -> None:
        """See to an index soon; asking again before that changes nothing."""
        with self._lock:
            if self._closed or index in self._asked:
                return
            self._asked.add(index)
            self._waiting.put(index)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End after the tile that is being made."""
        with self._lock:
            self._closed = True
            self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        resting: set[TantivyIndex] = set()
        while not self._closed:
            try:
                index = self._waiting.get(timeout=_PATIENCE / 2 if resting else None)
                if index is None:
                    return
                with self._lock:
                    self._asked.discard(index)
                resting.add(index)
                if self._seen_to(index):
                    self.ask(index)
            except queue.Empty:
                for index in tuple(resting):
                    if index.idle_seconds >= _PATIENCE and not self._seen_to(index, idle=True):
                        resting.discard(index)

    def _seen_to(self, index: TantivyIndex, *, idle: bool = False) -> bool:
        try:
            done = index.upkeep(idle=idle)
            for cold in self._budget.cold() if done else ():
                cold.cool()
        except Exception:  # noqa: BLE001 - they are only faster, not needed
            _log.exception("tiles were left as they are")
            return False
        return done


def _lock_file(folder: Path) -> int:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StorageLockedError(
            f'Index "{folder.name}" is open in another process; stop that process first.'
        ) from None
    return descriptor
