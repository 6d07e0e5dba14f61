"""Blocking work of others' code that can be left: it runs in a thread of its own, and is watched meanwhile."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from termwise.server.models.repositories.base import FetchStoppedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import RawIOBase

    from termwise.server.models.repositories.base import Report

Result = TypeVar("Result")

_TICK_SECONDS: Final = 0.1


@dataclass(slots=True)
class Progress:
    """How far the work is, in bytes, and whether it shall end. Written by the work, read by who watches it."""

    done: int = 0
    total: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def stop(self) -> None:
        """Have the work end. Nothing is written once this returned."""
        with self._writing:
            self._stopped.set()

    def write(self, sink: RawIOBase, block: bytes) -> None:
        """Write to a file without a buffer, and count the bytes; raise FetchStoppedError once the work shall end."""
        with self._writing:
            if self._stopped.is_set():
                raise FetchStoppedError
            left = memoryview(block)
            while left:
                left = left[sink.write(left) or 0 :]
            self.done += len(block)

    def wait(self, seconds: float) -> None:
        """Wait; raise FetchStoppedError once the work shall end."""
        if self._stopped.wait(seconds):
            raise FetchStoppedError


def attended(job: Callable[[], Result], progress: Progress, report: Report) -> Result:
    """Run a job, reporting its progress every tenth of a second, and give what it gives.

    Where `report` raises, its error is raised at once. The job is told to stop, and left alone: it may hang in a read
    until its connection's time limit; it writes nothing after that.
    """
    results: list[Result] = []
    failures: list[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        try:
            results.append(job())
        except BaseException as error:  # noqa: BLE001 - it is raised by who watches
            failures.append(error)
        finally:
            ended.set()

    threading.Thread(target=work, name="model-fetch", daemon=True).start()
    try:
        while not ended.wait(_TICK_SECONDS):
            report(progress.done, progress.total)
        report(progress.done, progress.total)
    except BaseException:
        progress.stop()
        raise
    if failures:
        raise failures[0]
    return results[0]
