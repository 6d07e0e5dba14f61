"""Whose turn it is at the model: as many at a time as a deployment has allocations."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Turns:
    """The line of those who want the model, under a lock that they share with others.

    A place in it is had before the thread is ready to compute, and kept whatever the threads do meanwhile: one that is
    awake would otherwise have turn after turn before another, whose batch is older, gets to run.
    """

    def __init__(self, lock: threading.Lock, number: int, changed: Callable[[], None] = lambda: None) -> None:
        """Let `number` compute at a time; `changed` hears, under the lock, when `running` may have changed."""
        self.lock = lock
        self._number = number
        self._changed = changed
        self._line: list[Turn] = []

    @property
    def running(self) -> int:
        """How many compute now, or are about to. Under the lock."""
        return min(len(self._line), self._number)

    def resize(self, number: int) -> None:
        """Let another number compute at a time; those beyond it who compute now end first. Under the lock."""
        self._number = number
        self._call()

    def make(self) -> Turn:
        """Give a turn that stands in line. Under the lock."""
        turn = Turn(self)
        self.join(turn)
        return turn

    def join(self, turn: Turn) -> None:
        """Put a turn at the end. Under the lock."""
        self._line.append(turn)
        if len(self._line) <= self._number:
            turn.come()
        self._changed()

    def leave(self, turn: Turn) -> None:
        """Let the next compute. Under the lock."""
        self._line.remove(turn)
        self._call()
        self._changed()

    def _call(self) -> None:
        # Those who compute stand before those who do not: who joins goes to the end, and places open from the front.
        for other in self._line[: self._number]:
            if not other.taken:
                other.come()


class Turn:
    """One thread's turn: `with turn:` while the model computes, as often as there is something to compute.

    `held` and `waited` are seconds.
    """

    def __init__(self, turns: Turns) -> None:
        """Begin in the line, where `Turns.make` puts it."""
        self.taken = False
        self.held = 0.0
        self.waited = 0.0
        self._turns = turns
        # Where its thread waits, once it does.
        self._came: threading.Condition | None = None
        self._in_line = True
        self._since = 0.0

    def come(self) -> None:
        """Let its thread compute from now on. Under the lock; the line says when."""
        self.taken = True
        self._since = time.monotonic()
        if self._came is not None:
            self._came.notify()

    def take(self) -> None:
        """Wait until it is this thread's turn; nothing where it is already."""
        if self.taken:
            return
        start = time.monotonic()
        with self._turns.lock:
            if not self._in_line:
                self._in_line = True
                self._turns.join(self)
            if not self.taken:
                self._came = self._came or threading.Condition(self._turns.lock)
                self._came.wait_for(lambda: self.taken)
        self.waited += time.monotonic() - start

    def give_back(self) -> None:
        """Let others have it, whether or not this thread took it; nothing where they do."""
        if self._in_line:
            with self._turns.lock:
                self._in_line = False
                if self.taken:
                    self.taken = False
                    self.held += time.monotonic() - self._since
                self._turns.leave(self)

    def __enter__(self) -> None:
        """Take it."""
        self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self.give_back()
