"""Who goes first where the processors do not suffice: deployments of normal priority, then those of low priority."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET_SECONDS = 0.02
"""How long normal work must not have wanted a processor before low work gets it.

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
        self._normal: list[_Normal] = []

    def join(self, threads: int, *, low_priority: bool = False) -> Standing:
        """Give a batcher its standing; each of its turns computes with `threads` threads."""
        if low_priority:
            return _Low(self)
        standing = _Normal(self, threads, self._clock)
        with self._lock:
            self._normal.append(standing)
        return standing

    def drop(self, standing: Standing) -> None:
        """Forget a batcher that is closed."""
        with self._lock:
            self._normal = [each for each in self._normal if each is not standing]

    def is_free(self) -> bool:
        """Whether low work may begin now."""
        now = self._clock()
        with self._lock:
            return sum(each.threads_wanted(now) for each in self._normal) < self._processors


class Standing:
    """Where a batcher stands among others; this one is alone. Its owner has a lock."""

    patience: float | None = None
    """Seconds after which one that may not begin asks again; None: it always may."""

    def may_begin(self) -> bool:
        """Whether it may begin a batch now."""
        return True

    def want(self, turns: int) -> None:
        """Say how many turns would compute now if they could."""

    def leave(self) -> None:
        """Want nothing from now on."""


class _Normal(Standing):
    """Tells what it wants."""

    def __init__(self, gate: PriorityGate, threads: int, clock: Callable[[], float]) -> None:
        self._gate = gate
        self._threads = threads
        self._clock = clock
        self._turns = 0
        # The most that it wanted of late, and when it last came to want less.
        self._before = 0
        self._less_since = float("-inf")

    def want(self, turns: int) -> None:
        if turns < self._turns:
            now = self._clock()
            recent = now - self._less_since < QUIET_SECONDS
            self._before = max(self._turns, self._before) if recent else self._turns
            self._less_since = now
        self._turns = turns

    def threads_wanted(self, now: float) -> int:
        """Give the threads that it wants, or wanted a moment ago."""
        recent = now - self._less_since < QUIET_SECONDS
        return self._threads * (max(self._turns, self._before) if recent else self._turns)

    def leave(self) -> None:
        self._gate.drop(self)


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
