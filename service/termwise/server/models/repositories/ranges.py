"""A file in the making: which of its bytes are there, and a note beside it that is never ahead of the disk."""

from __future__ import annotations

import json
import os
import threading
import time
from bisect import bisect_left, bisect_right
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import Self

_NOTE_SECONDS: Final = 0.5
_NOTE_LEAST: Final = 1 << 20
_NOTE_MOST: Final = 8 << 20
_NOTE_SHARE: Final = 64
"""The note is written every half second, and as soon as a 64th of the file came, 1 MiB at least and 8 MiB at most: so
much may be fetched twice after a kill."""


class Ranges:
    """A set of bytes, kept as ranges `[start, end)` that neither overlap nor touch."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Take ranges in any order."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add the bytes from `start` to before `end`."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    def __iter__(self) -> Any:
        """Give the ranges in order."""
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def count(self) -> int:
        """Count the bytes."""
        return sum(self._ends) - sum(self._starts)

    def missing(self, size: int, piece: int) -> list[tuple[int, int]]:
        """Give what of a file of `size` bytes is not there, in order, in pieces of at most `piece` bytes."""
        edges = [0, *(edge for both in self for edge in both), size]
        gaps = [(edges[place], min(edges[place + 1], size)) for place in range(0, len(edges), 2)]
        return [
            (start, min(start + piece, end)) for low, end in gaps for start in range(low, end, piece) if start < end
        ]


class Part:
    """A file of `size` bytes that comes in ranges. Any thread may write; one thread keeps the note.

    What was written before for another `source` (whatever says what the bytes are: URL, size, ETag) is thrown away.
    """

    def __init__(self, path: Path, size: int, source: str) -> None:
        """Open what an earlier attempt left, or begin."""
        self.path = path
        self.size = size
        self._note = path.with_name(f"{path.name}.ranges")
        self._source = source
        self._lock = threading.Lock()
        self._ranges = Ranges(self._read())
        self._next_note = time.monotonic() + _NOTE_SECONDS
        self._noted = self._ranges.count()
        self._count = self._noted
        if not self._noted:
            path.unlink(missing_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(self._descriptor, size)
        except OSError:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Note what is there, where the disk lets it, and close. Nothing is written any more once this returned."""
        with suppress(OSError):
            self.note(at_once=True)
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def count(self) -> int:
        """How many bytes are there."""
        return self._count

    def missing(self, piece: int) -> list[tuple[int, int]]:
        """Give what is not there, as `Ranges.missing`."""
        with self._lock:
            return self._ranges.missing(self.size, piece)

    def write(self, offset: int, block: bytes) -> None:
        """Write bytes at an offset.

        Raises:
            OSError: the disk is full, or the file is closed.

        """
        with self._lock:
            view, place = memoryview(block), offset
            while view:
                written = os.pwrite(self._descriptor, view, place)
                view, place = view[written:], place + written
            self._ranges.add(offset, place)
            self._count = self._ranges.count()

    def restart(self) -> None:
        """Forget all that is there."""
        with self._lock:
            self._ranges = Ranges()
            self._count = self._noted = 0
            self._note.unlink(missing_ok=True)

    def note(self, *, at_once: bool = False) -> None:
        """Write the note where enough came since the last one, having made sure that those bytes are on the disk."""
        new = self._count - self._noted
        due = min(max(self.size // _NOTE_SHARE, _NOTE_LEAST), _NOTE_MOST)
        if not new or not (at_once or new >= due or time.monotonic() >= self._next_note):
            return
        with self._lock:
            ranges, count = list(self._ranges), self._count
        os.fdatasync(self._descriptor)
        draft = self._note.with_name(f"{self._note.name}.new")
        with draft.open("w", encoding="utf-8") as sink:
            json.dump({"source": self._source, "done": ranges}, sink)
            sink.flush()
            os.fsync(sink.fileno())
        draft.replace(self._note)
        self._noted = count
        self._next_note = time.monotonic() + _NOTE_SECONDS

    def _read(self) -> list[tuple[int, int]]:
        """Read the note; nothing where it is of another source, or says what cannot be."""
        try:
            note = json.loads(self._note.read_bytes())
            done = [(int(start), int(end)) for start, end in note["done"]]
            good = note["source"] == self._source and self.path.stat().st_size == self.size
        except (OSError, ValueError, TypeError, KeyError):
            return []
        return done if good and all(0 <= start < end <= self.size for start, end in done) else []
