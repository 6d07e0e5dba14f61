"""One model's download: how far it is, whether it is still wanted, and how it ended."""

from __future__ import annotations

import copy
import threading
import time
from typing import TYPE_CHECKING, Final

from termwise.server.models.repositories.base import FetchStoppedError
from termwise.server.models.waiting import Signal

if TYPE_CHECKING:
    import asyncio

    from termwise.server.errors import TermwiseError

_REPORT_SECONDS: Final = 0.1
"""Shortest time between two changes of progress that watchers see."""


class Download:
    """One model's download: how far it is, and how it ended. `bytes_total` is 0 while it waits its turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin at nothing."""
        self.bytes_done = 0
        self.bytes_total = 0
        self.admitted = False
        self.finished = False
        self.stopped = False
        self.cancelled = False
        self.signal = Signal()
        self._error: TermwiseError | None = None
        self._loop = loop
        self._unwanted = threading.Event()
        self._next_report = 0.0

    @property
    def error(self) -> TermwiseError | None:
        """Why it failed: a copy to raise, since several callers may raise it at a time."""
        return copy.copy(self._error)

    def check_wanted(self) -> None:
        """Raise FetchStoppedError, in the thread that fetches, once it shall end."""
        if self._unwanted.is_set():
            raise FetchStoppedError

    def report(self, done: int, total: int) -> None:
        """Take progress from the thread that fetches; raise FetchStoppedError there once it shall end."""
        self.check_wanted()
        now = time.monotonic()
        if now >= self._next_report or done in {0, total}:
            self._next_report = now + _REPORT_SECONDS
            self._loop.call_soon_threadsafe(self._show, done, total)

    def _show(self, done: int, total: int) -> None:
        if done:  # otherwise it begins anew
            done = max(done, self.bytes_done)
        if (done, total) != (self.bytes_done, self.bytes_total):
            self.bytes_done, self.bytes_total = done, total
            self.signal.fire()

    async def turn(self) -> None:
        """Wait until it is admitted; raise FetchStoppedError once it shall end."""
        await self.signal.wait_for(lambda: self.admitted or self._unwanted.is_set())
        self.check_wanted()

    def admit(self) -> None:
        """Let it begin."""
        self.admitted = True
        self.signal.fire()

    def stop(self) -> None:
        """Ask the thread to end; the download then ends without a verdict."""
        self.stopped = True
        self._end_soon()

    def cancel(self) -> None:
        """Ask the thread to end; the download then has failed, because it was cancelled."""
        self.cancelled = True
        self._end_soon()

    def _end_soon(self) -> None:
        self._unwanted.set()
        self.signal.fire()

    def end(self, error: TermwiseError | None) -> None:
        """Note how it ended, and wake everyone."""
        self._error = error
        self.finished = True
        self.signal.fire()

    async def ended(self) -> None:
        """Wait for its end."""
        await self.signal.wait_for(lambda: self.finished)
