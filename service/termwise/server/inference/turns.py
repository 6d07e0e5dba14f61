"""Whose turn it is at the model: as many at a time as a deployment has allocations."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Turns:
    """Turns that threads take and give back, under a lock that they share with others."""

    def __init__(self, lock: threading.Lock, number: int) -> None:
        """Begin with all of them free."""
        self.free = number
        self._lock = lock
        self._given_back = threading.Condition(lock)

    def make(self) -> Turn:
        """Give a turn, which is taken at once where one is free. Under the lock."""
        taken = self.free > 0
        self.free -= taken
        return Turn(self, taken=taken)

    def take(self) -> None:
        """Wait for a free turn."""
        with self._lock:
            while not self.free:
                self._given_back.wait()
            self.free -= 1

    def give_back(self) -> None:
        """Let the next have it."""
        with self._lock:
            self.free += 1
            self._given_back.notify()


class Turn:
    """One thread's turn: `with turn:` while the model computes. `held` and `waited` are seconds."""

    def __init__(self, turns: Turns, *, taken: bool) -> None:
        """Begin taken or not."""
        self._turns = turns
        self._taken = taken
        self._since = time.monotonic()
        self.held = 0.0
        self.waited = 0.0

    def take(self) -> None:
        """Wait until it is this thread's turn; nothing where it is already."""
        if not self._taken:
            start = time.monotonic()
            self._turns.take()
            self._taken = True
            self._since = time.monotonic()
            self.waited += self._since - start

    def give_back(self) -> None:
        """Let others have it; nothing where they do."""
        if self._taken:
            self._taken = False
            self.held += time.monotonic() - self._since
            self._turns.give_back()

    def __enter__(self) -> None:
        """Take it."""
        self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self.give_back()
