"""Blocking work of others' code that can be left: it runs in a thread of its own, and is watched meanwhile."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, TypeVar

from termwise.server.models.repositories.base import FetchStoppedError

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

_TICK_SECONDS: Final = 0.1


class Wish:
    """Whether a job shall end."""

    def __init__(self) -> None:
        """Begin with a job that is wanted."""
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Have the job end."""
        self._stopped.set()

    def check(self) -> None:
        """Raise FetchStoppedError once the job shall end."""
        if self._stopped.is_set():
            raise FetchStoppedError

    def wait(self, seconds: float) -> None:
        """Wait; raise FetchStoppedError once the job shall end."""
        if self._stopped.wait(seconds):
            raise FetchStoppedError


def attended(job: Callable[[], Result], wish: Wish, tick: Callable[[], None]) -> Result:
    """Run a job, calling `tick` every tenth of a second, and give what it gives.

    Where `tick` raises, its error is raised at once. The job is told to stop, and left alone: it may hang in a read
    until its connection's time limit. So what it writes to has to refuse it after that.
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
            tick()
        tick()
    except BaseException:
        wish.stop()
        raise
    if failures:
        wish.stop()
        raise failures[0]
    return results[0]
