"""Which worker gets what waits, and when."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from termwise.server.inference.turns import Turn, Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.server.inference.admission import Queue
    from termwise.server.inference.crew import Worker
    from termwise.server.inference.priority import Standing


class Feeder:
    """Lets workers wait, and gives them batches and their turns at the model.

    First workers take whatever waits. Second ones take full batches alone, and only while no first one is idle.
    """

    def __init__(
        self,
        lock: threading.Lock,
        queue: Queue,
        allocations: int,
        *,
        batch_tokens: int,
        standing: Standing,
        finished: Callable[[], None],
        retire: Callable[[Worker], bool],
    ) -> None:
        """Begin with nobody waiting.

        Args:
            lock: the batcher's.
            queue: what waits.
            allocations: turns at a time.
            batch_tokens: tokens of a batch.
            standing: among the batchers of the server.
            finished: called, under the lock, where calls may have got their last answer.
            retire: tells, under the lock, whether a worker is wanted no more.

        """
        self._lock = lock
        self.closing = False
        self._queue = queue
        self._allocations = allocations
        self._batch_tokens = batch_tokens
        self._standing = standing
        self._finished = finished
        self._retire = retire
        self._turns = Turns(self._lock, allocations, self._tell_gate)
        # Where workers wait for texts, and the second ones for a batch full of them.
        self._texts = threading.Condition(self._lock)
        self._batches = threading.Condition(self._lock)
        # First workers that have nothing to do.
        self._idle = 0

    def resize(self, allocations: int) -> None:
        """Give another number of turns at a time; workers that are too many learn of it. Under the lock."""
        self._allocations = allocations
        self._turns.resize(allocations)
        self._tell_gate()
        self._texts.notify_all()
        self._batches.notify_all()

    def call(self) -> None:
        """Wake a worker where there is something for it; all of them where the batcher closes. Under the lock."""
        self._tell_gate()
        self._wake()

    def _wake(self) -> None:
        if self.closing:
            self._texts.notify_all()
            self._batches.notify_all()
        elif self._idle and self._queue.waiting:
            self._texts.notify()
        elif self._has_batch():
            self._batches.notify()

    def next(self, worker: Worker) -> Turn | None:
        """Wait for a batch, which is then the worker's `jobs`, and for a turn for it, which need not have come yet.

        None once this worker is not wanted, or the batcher closes and nothing is left.
        """
        with self._lock:
            if worker.second:
                while not self._is_over(worker) and not (self._has_batch() and self.take(worker)):
                    self._wait(self._batches)
            else:
                self._idle += 1
                try:
                    while not self._is_over(worker) and not self.take(worker):
                        self._wait(self._texts)
                finally:
                    self._idle -= 1
            self._wake()  # there may be more than this batch, or the others may end too
            return worker.turn

    def take(self, worker: Worker) -> bool:
        """Give a worker a batch and a turn, if there is one and it may. Under the lock."""
        if not self.closing and not self._standing.may_begin():
            return False
        queue = self._queue
        queue.take(self._batch_tokens, time.monotonic(), worker.jobs)
        while not worker.jobs and queue.ready:
            queue.take(self._batch_tokens, time.monotonic(), worker.jobs)
        self._finished()
        if worker.jobs:
            worker.turn = self._turns.make()
        return bool(worker.jobs)

    def _has_batch(self) -> bool:
        return not self._idle and self._queue.waiting_tokens >= self._batch_tokens

    def _is_over(self, worker: Worker) -> bool:
        return (self.closing and not self._queue.waiting) or self._retire(worker)

    def _wait(self, condition: threading.Condition) -> None:
        condition.wait(self._standing.patience if self._queue.waiting else None)

    def leave(self) -> None:
        """Count no more among the batchers of the server."""
        self._standing.leave()

    def _tell_gate(self) -> None:
        """Say how many turns would compute now if they could: all, where texts wait."""
        self._standing.want(self._allocations if self._queue.waiting else self._turns.running)
