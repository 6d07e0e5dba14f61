"""The threads behind a batcher: as many as its allocations want, and a new one for each that dies."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.server.inference.calls import Job
    from termwise.server.inference.turns import Turn

DELAYS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds before the successors of workers that die one after the other; after one more death there is none."""
# Seconds after which a death has nothing to do with the one before.
_APART = 60.0
# How often a dead worker is buried, where that breaks too.
_ATTEMPTS = 4

_log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Worker:
    """One thread, and what it has in hand.

    `second`: it shares its allocation with a first one, see `Batcher`. `retired`: it is not needed any more and ends.
    """

    second: bool
    jobs: list[Job] = field(default_factory=list)
    turn: Turn | None = None
    retired: bool = False


class Crew:
    """Keeps workers: `size` first ones and as many second ones. Shares a lock with its owner.

    A worker ends when its work returns. One whose work raises has died: its owner buries it, and another takes its
    place, at once after the first death, later and later where none gets a batch done in between.
    """

    def __init__(
        self,
        lock: threading.Lock,
        size: int,
        *,
        work: Callable[[Worker], None],
        bury: Callable[[Worker, float], None],
        give_up: Callable[[BaseException], None],
        name: str = "",
    ) -> None:
        """Prepare; `start` starts.

        Args:
            lock: the owner's.
            size: allocations.
            work: what a worker does, in its thread.
            bury: ends what a dead worker had in hand; gets the seconds until another takes its place. Where it raises
                it is called again, a few times.
            give_up: hears the last death when there are too many in a row; there are no workers from then on.
            name: whose crew it is, for the log.

        """
        self.size = size
        self._lock = lock
        self._work, self._bury, self._give_up = work, bury, give_up
        self._name = name
        self._started = self._ending = False
        # By kind, first and second: workers that run, and those together with the ones to come in a dead one's place.
        self._present = [0, 0]
        self._places = [0, 0]
        self._threads: list[threading.Thread] = []
        self._hired = 0
        # Deaths in a row.
        self.deaths = 0
        self._last_death = float("-inf")
        self._changed = threading.Condition(lock)

    @property
    def present(self) -> int:
        """Allocations that have a worker."""
        return self._present[False]

    def start(self) -> None:
        """Start the workers.

        Raises:
            RuntimeError: the system gives no more threads; some workers may run.

        """
        self._started = True
        self.fill()

    def resize(self, size: int) -> None:
        """Want another number of workers: too many end as soon as they ask `retire`, `fill` starts those that lack.

        Under the lock.
        """
        self.size = size
        self._changed.notify_all()

    def end(self) -> None:
        """Let nobody wait to take a dead one's place. Under the lock."""
        self._ending = True
        self._changed.notify_all()

    def retire(self, worker: Worker) -> bool:
        """Tell whether there are more workers than wanted, so that this one shall end. Under the lock."""
        if self._places[worker.second] <= self.size:
            return False
        worker.retired = True
        self._places[worker.second] -= 1
        self._present[worker.second] -= 1
        return True

    def forgive(self) -> None:
        """Forget the deaths so far, since a batch is done, or since it is not the workers' fault. Under the lock."""
        self.deaths = 0

    def threads(self) -> list[threading.Thread]:
        """Give the threads that may run still."""
        with self._lock:
            return [thread for thread in self._threads if thread.is_alive()]

    def fill(self) -> None:
        """Start the workers that lack, once `start` was called.

        Raises:
            RuntimeError: the system gives no more threads; fewer workers run.

        """
        for second in (False, True):
            while True:
                with self._lock:
                    if not self._started or self._ending or self._places[second] >= self.size:
                        break
                    self._places[second] += 1
                try:
                    self._hire(second)
                except BaseException:
                    with self._lock:
                        self._places[second] -= 1
                    raise

    def _hire(self, second: bool) -> None:
        worker = Worker(second)
        name = f"encoder-{self._hired}{'b' * second}"
        thread = threading.Thread(target=self._live, args=(worker,), name=name, daemon=True)
        with self._lock:
            self._hired += 1
            self._present[second] += 1
            self._threads = [each for each in self._threads if each.is_alive() or each.ident is None]
            self._threads.append(thread)
        try:
            thread.start()
        except BaseException:
            with self._lock:
                self._present[second] -= 1
                self._threads.remove(thread)
            raise

    # From here on: the workers' threads.

    def _live(self, worker: Worker) -> None:
        try:
            self._work(worker)
        except BaseException as error:  # noqa: BLE001 - whatever it is: a panic in Rust is no Exception
            delay = self._mourn(worker, error)
        else:
            with self._lock:
                if not worker.retired:
                    self._places[worker.second] -= 1
                    self._present[worker.second] -= 1
            return
        while delay is not None:
            delay = self._replace(worker.second, delay)

    def _mourn(self, worker: Worker, error: BaseException) -> float | None:
        """Bury a worker; gives the seconds until another takes its place, None where none does."""
        with self._lock:
            if not worker.retired:
                self._present[worker.second] -= 1
            delay = self._note_death()
        _log.error("worker_died", deployment=self._name, error=type(error).__name__, replaced_in=delay, exc_info=error)
        for _ in range(_ATTEMPTS):
            try:
                self._bury(worker, delay or 0.0)
                break
            except Exception:  # noqa: BLE001 - another worker is needed all the same
                _log.exception("worker_not_buried", deployment=self._name)
        if worker.retired:
            return None
        if delay is None:
            self._desist(worker.second, error)
        return delay

    def _replace(self, second: bool, delay: float) -> float | None:
        """Start another worker after some seconds; gives the seconds until the next attempt, None where it is there."""
        with self._lock:
            self._changed.wait_for(lambda: self._ending or self._places[second] > self.size, delay)
            if self._places[second] > self.size:
                self._places[second] -= 1
                return None
        try:
            self._hire(second)
        except Exception as error:  # noqa: BLE001 - there may be room for a thread later
            with self._lock:
                again = self._note_death()
            _log.warning("worker_not_replaced", deployment=self._name, error=str(error), next_attempt_in=again)
            if again is None:
                self._desist(second, error)
            return again
        return None

    def _note_death(self) -> float | None:
        """Give the seconds until there may be another worker; None after too many deaths in a row. Under the lock."""
        now = time.monotonic()
        if now - self._last_death > _APART:
            self.deaths = 0
        self._last_death = now
        self.deaths += 1
        return DELAYS[self.deaths - 1] if self.deaths <= len(DELAYS) else None

    def _desist(self, second: bool, error: BaseException) -> None:
        with self._lock:
            self._places[second] -= 1
            first = not self._ending
            self.end()
        if first:
            self._give_up(error)
