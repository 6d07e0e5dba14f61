"""The embedded default backend: a folder of tantivy indices."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import shutil
import threading
import time
import uuid
from contextlib import contextmanager, suppress
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
    from collections.abc import Iterator
    from pathlib import Path

    from termwise.storage.types import IndexSchema

_log: Final = logging.getLogger("termwise.storage")

_TRANSIENT: Final = "#"
"""Begins the names of folders that are being made or removed; leftovers are removed when the store opens."""

_LONGEST_NAME: Final = 255

_PATIENCE: Final = 1.0
"""Seconds without a write after which an index counts as idle."""

_RETRY: Final = 30.0
"""Seconds after which upkeep that failed is tried again."""

_CLOSING: Final = 5.0
"""Seconds for which a store that closes begins to write tiles: a service is killed when it takes too long to stop."""

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
        self._taken: set[str] = set()
        self._lock = threading.Condition()
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
        with self._alone_with(name):
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
        with self._alone_with(name):
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
        with self._alone_with(name):
            if not path.is_dir():
                raise IndexMissingError(f'Index "{name}" does not exist.')
            self._close(name, dropped=True)
            doomed = self._transient()
            path.rename(doomed)
            sync(self._folder)
        shutil.rmtree(doomed, ignore_errors=True)

    def close(self) -> None:
        """See `IndexStore.close`. Tiles are written for a few seconds, over all indices; the rest at the next start."""
        self._upkeep.close()
        until = time.monotonic() + _CLOSING
        for name in tuple(self._open):
            with self._alone_with(name):
                self._close(name, until=until)

    @contextmanager
    def _alone_with(self, name: str) -> Iterator[None]:
        """Keep others from opening, closing, making and dropping this index; other indices are not held up."""
        with self._lock:
            self._lock.wait_for(lambda: name not in self._taken)
            self._taken.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._taken.discard(name)
                self._lock.notify_all()

    def _limit_writers(self, index: TantivyIndex) -> None:
        """Close the writers that were opened first: each has threads, and memory for documents that are not flushed."""
        with self._writers_lock:
            self._writers = [other for other in self._writers if other is not index]
            idle = self._writers[: -(_MOST_WRITERS - 1)]
            released = [other for other in idle if other.release_writer()]
            self._writers = [other for other in self._writers if other not in released] + [index]

    def _close(self, name: str, *, dropped: bool = False, until: float = math.inf) -> None:
        index, lock = self._open.pop(name, (None, -1))
        if index is not None:
            index.close(dropped=dropped, until=until)
            self._upkeep.forget(index)
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
    """One thread that sees to the tiles of all indices of a store, one tile at a time, whoever is due first."""

    def __init__(self, budget: Budget) -> None:
        """Begin without a thread; the first index that asks starts it. What is cold by the `budget` is cooled."""
        self._budget = budget
        self._due: dict[tuple[TantivyIndex, bool], float] = {}
        """When by the monotonic clock, by index and whether that is for what is done while nobody writes."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def ask(self, index: TantivyIndex) -> None:
        """See to an index soon, and once more when it rests; asking again before that changes nothing."""
        with self._changed:
            if self._closed:
                return
            now = time.monotonic()
            self._due.setdefault((index, False), now)
            self._due.setdefault((index, True), now + _PATIENCE)
            self._changed.notify()
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
                with suppress(RuntimeError):  # no thread can be had now; what asks next tries again
                    thread.start()
                    self._thread = thread

    def forget(self, index: TantivyIndex) -> None:
        """See no more to an index that was closed."""
        with self._changed:
            for idle in (False, True):
                self._due.pop((index, idle), None)

    def close(self) -> None:
        """End after the tile that is being made."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._wait():
            self._see_to_next()

    def _wait(self) -> bool:
        """Wait until an index is due; False once it is time to end."""
        with self._changed:
            while not self._closed:
                delay = min(self._due.values(), default=math.inf) - time.monotonic()
                if delay <= 0:
                    return True
                self._changed.wait(None if delay == math.inf else delay)
        return False

    def _see_to_next(self) -> None:
        with self._changed:
            if not self._due:  # forgotten meanwhile
                return
            index, idle = min(self._due, key=self._due.__getitem__)
            self._due.pop((index, idle))
        rest = _PATIENCE - index.idle_seconds if idle else 0.0
        if rest <= 0:
            rest = self._see_to(index, idle=idle)
        with self._changed:
            if rest < math.inf and not index.closed:
                self._due.setdefault((index, idle), time.monotonic() + rest)

    def _see_to(self, index: TantivyIndex, *, idle: bool) -> float:
        """Make a tile, and give the seconds after which to look again."""
        try:
            if index.upkeep(idle=idle):
                for cold in self._budget.cold():
                    cold.cool()
                return 0.0
        except Exception:  # noqa: BLE001 - they are only faster, not needed
            _log.exception("tiles were left as they are")
            return _RETRY if idle else math.inf
        return _RETRY if idle and index.unkept else math.inf


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
