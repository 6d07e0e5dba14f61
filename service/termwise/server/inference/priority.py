"""Who goes first where the processors do not suffice: deployments of normal priority, then those of low priority."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET_SECONDS = 0.02
"""How long processors must have been free of normal work before low work begins.

Callers who ask again as soon as they are answered leave a gap of some milliseconds after each batch, which is no idle
time.
"""


class PriorityGate:
    """What deployments of normal priority want of the processors, and whether that leaves any to those of low priority.

    One for a server, shared by all of its batchers. Thread-safe. Low ones ask, and ask again while they are held back:
    normal ones pay for a number and no more, and no message can be lost that a low one would wait for.
    """

    def __init__(self, processors: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin free; `processors` None: all that this process may use."""
        self._processors = processors or _usable_processors()
        self._clock = clock
        self._lock = threading.Lock()
        self._wanted = 0
        # Since when processors are free; None while they are not. At first they have been so for long.
        self._free_since: float | None = float("-inf")

    def join(self) -> Share:
        """Give a normal batcher what it tells its wants by."""
        return Share(self)

    def pause(self) -> float:
        """Give the seconds after which low work may ask again; 0.0: it may begin now."""
        since = self._free_since
        if since is None:
            return QUIET_SECONDS
        return max(0.0, since + QUIET_SECONDS - self._clock())

    def change(self, by: int) -> None:
        """Note that normal work wants `by` threads more than it did; fewer where negative."""
        with self._lock:
            self._wanted += by
            if self._wanted >= self._processors:
                self._free_since = None
            elif self._free_since is None:
                self._free_since = self._clock()


class Share:
    """The threads that one batcher of normal priority wants. Its owner has a lock."""

    def __init__(self, gate: PriorityGate) -> None:
        """Begin with none."""
        self._gate = gate
        self._threads = 0

    def want(self, threads: int) -> None:
        """Say how many threads would compute now if they could."""
        if threads != self._threads:
            self._gate.change(threads - self._threads)
            self._threads = threads


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
