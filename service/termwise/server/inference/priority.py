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

    def join(self, threads: int, *, low_priority: bool = False) -> Standing:
        """Give a batcher its standing; each of its turns computes with `threads` threads."""
        return _Low(self) if low_priority else _Normal(self, threads)

    def is_free(self) -> bool:
        """Whether low work may begin now."""
        since = self._free_since
        return since is not None and self._clock() - since >= QUIET_SECONDS

    def change(self, by: int) -> None:
        """Note that normal work wants `by` threads more than it did; fewer where negative."""
        with self._lock:
            self._wanted += by
            if self._wanted >= self._processors:
                self._free_since = None
            elif self._free_since is None:
                self._free_since = self._clock()


class Standing:
    """Where a batcher stands among others; this one is alone. Its owner has a lock."""

    patience: float | None = None
    """Seconds after which one that may not begin asks again; None: it always may."""

    def may_begin(self) -> bool:
        """Whether it may begin a batch now."""
        return True

    def want(self, turns: int) -> None:
        """Say how many turns would compute now if they could."""


class _Normal(Standing):
    """Tells what it wants."""

    def __init__(self, gate: PriorityGate, threads: int) -> None:
        self._gate = gate
        self._threads = threads
        self._turns = 0

    def want(self, turns: int) -> None:
        if turns != self._turns:
            self._gate.change((turns - self._turns) * self._threads)
            self._turns = turns


class _Low(Standing):
    """Asks what is left."""

    patience = QUIET_SECONDS

    def __init__(self, gate: PriorityGate) -> None:
        self._gate = gate

    def may_begin(self) -> bool:
        return self._gate.is_free()


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
