"""How much memory the exact paths of a store's indices may take together, and what happens beyond.

Sealed tiles are mapped from files, so what they take is page cache, which the kernel gives up under pressure. Up to
`memory` bytes they count as resident. Beyond, the indices that were searched least recently are cold: the kernel is
told to reclaim their pages first, and they are read again as searches need them. Beyond `mapped` bytes an index goes
without: tantivy ranks, within a budget of postings, and says how far off it may be (see `plan`). That stays so until
the index is opened again, even where there is room by then.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAPPED_TIMES: Final = 4
"""How many times `memory` is mapped at most where nobody says."""


class Mapped(Protocol):
    """An index that has tiles."""

    searched: float
    """When it was searched last, by the monotonic clock."""

    def cool(self) -> None:
        """Tell the kernel to reclaim its tiles before other pages."""
        ...


class Budget:
    """Keeps account of a store's tiles. Any thread may ask."""

    def __init__(self, memory: int = 0, mapped: int = 0) -> None:
        """Take both limits in bytes; 0: half of the machine's memory, and four times that."""
        self._memory = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        self._mapped = mapped or _MAPPED_TIMES * self._memory
        self._sizes: dict[Mapped, int] = {}
        self._lock = threading.Lock()

    def take(self, index: Mapped, size: int) -> bool:
        """Account for an index's tiles of so many bytes; False where they are too many, and it must do without."""
        with self._lock:
            others = sum(self._sizes.values()) - self._sizes.pop(index, 0)
            if others + size > self._mapped:
                return False
            self._sizes[index] = size
            return True

    def leave(self, index: Mapped) -> None:
        """Account for an index's tiles no more."""
        with self._lock:
            self._sizes.pop(index, None)

    def cold(self) -> Iterator[Mapped]:
        """Give the indices that do not fit into memory, beside those that were searched after them."""
        with self._lock:
            sizes = dict(self._sizes)
        room = self._memory
        for index in sorted(sizes, key=lambda each: -each.searched):
            room -= sizes[index]
            if room < 0:
                yield index
