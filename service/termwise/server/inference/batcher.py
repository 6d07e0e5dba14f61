"""Workers, and the batches that feed them."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from termwise.server.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    TermwiseError,
    UnavailableError,
)
from termwise.server.inference.admission import Call, Entry, Queue
from termwise.server.inference.base import Encoder, Expansion, InferenceTimings, Side, TokenizedText
from termwise.server.inference.hardware import set_compute_threads, yield_to_others

if TYPE_CHECKING:
    from collections.abc import Sequence

# Bounds of the advice when to retry, in seconds.
_LEAST_RETRY = 0.05
_MOST_RETRY = 30.0
# Share of the newest batch in the running mean of seconds a text.
_NEWEST = 0.2


class Batcher:
    """The line before an encoder, and one worker thread an allocation.

    A worker takes what waits, up to a budget of tokens, cuts it into tokens and runs the model; it never sleeps to wait
    for more, so a lone text starts at once and batches grow with the load. Cutting happens in the worker too: one
    change of threads each way is all that a call costs. Used from one event loop.
    """

    def __init__(
        self, encoder: Encoder, *, allocations: int, threads: int, queue_capacity: int, batch_tokens: int = 4096
    ) -> None:
        """Prepare; `start` starts.

        Args:
            encoder: shared by all workers.
            allocations: workers, at least 1.
            threads: processor threads of each worker.
            queue_capacity: texts that may wait for a worker; those in a batch count no more.
            batch_tokens: tokens of a batch, by a guess from its characters; the encoder splits what turns out longer.

        """
        self._encoder = encoder
        self._threads = threads
        self._batch_tokens = batch_tokens
        self._queue = Queue(queue_capacity)
        self._changed = threading.Condition(threading.Lock())
        self._closing = False
        self._seconds_a_text = 0.01
        self._workers = [
            threading.Thread(target=self._work, name=f"encoder-{number}", daemon=True) for number in range(allocations)
        ]
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def allocation_count(self) -> int:
        """Workers that run."""
        return sum(worker.is_alive() for worker in self._workers)

    @property
    def pending(self) -> int:
        """Texts that are admitted and wait for a worker."""
        return self._queue.waiting

    def start(self) -> None:
        """Start the workers."""
        for worker in self._workers:
            worker.start()

    async def submit(
        self, texts: Sequence[str], side: Side, *, deadline: float | None, wait: bool
    ) -> tuple[list[Expansion], InferenceTimings]:
        """Expand texts; the answers are in their order.

        Args:
            texts: at least one.
            side: which side of the encoder reads them.
            deadline: `time.monotonic` seconds; texts still waiting then never reach the model. None: no deadline.
            wait: wait for room in the queue, any number of texts; otherwise a full queue fails at once.

        Raises:
            ResourceExhaustedError: no room for all of the texts, and `wait` is False.
            InvalidArgumentError: no text, more texts than the queue ever holds (not with `wait`), or a text that is too
                long for a model that refuses to truncate.
            DeadlineExceededError: the deadline passed first.
            UnavailableError: the batcher closes.

        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        self._check(texts, deadline, now, wait=wait)
        if not self._encoder.sides_differ:
            side = Side.DOCUMENT
        future: asyncio.Future[None] = loop.create_future()
        count = len(texts)
        call = Call(texts, side, deadline, future, now, count, [None] * count, patient=wait)
        with self._changed:
            if self._closing:
                raise _closing()
            if not self._queue.admit(call):
                raise self._full(count)
            self._loop = loop
            self._changed.notify()
        timer = loop.call_later(deadline - now, _expire, future) if deadline is not None else None
        try:
            await future
        finally:
            # However it ended - answered, failed, late or cancelled - what still waits must not reach the model.
            if timer is not None:
                timer.cancel()
            with self._changed:
                self._queue.end(call)
                # Its room may have let others in, and a batcher that closes waits for an empty queue.
                self._changed.notify_all()
        return call.answer()

    async def close(self) -> None:
        """Refuse new texts, answer those that were admitted, and end the workers."""
        with self._changed:
            self._closing = True
            strangers = self._queue.strangers()
            for call in strangers:
                self._queue.end(call)
            self._changed.notify_all()
        for call in strangers:
            _fail(call.future, _closing())
        for worker in self._workers:
            if worker.ident is not None:
                await asyncio.to_thread(worker.join)

    def _check(self, texts: Sequence[str], deadline: float | None, now: float, *, wait: bool) -> None:
        if not texts:
            raise InvalidArgumentError("There is no text to expand; give at least one.", reason="NO_TEXT")
        if not wait and len(texts) > self._queue.capacity:
            raise InvalidArgumentError(
                f"{len(texts)} texts are more than the queue holds ({self._queue.capacity}); send fewer in a call.",
                reason="TOO_MANY_TEXTS",
                metadata={"limit": str(self._queue.capacity), "actual": str(len(texts))},
            )
        if deadline is not None and now >= deadline:
            raise _late()

    def _full(self, count: int) -> ResourceExhaustedError:
        waiting = self._queue.waiting
        seconds = (waiting + count) * self._seconds_a_text / max(1, len(self._workers))
        return ResourceExhaustedError(
            f"The deployment's queue is full ({waiting} of {self._queue.capacity} texts wait); retry later.",
            reason="QUEUE_FULL",
            metadata={"limit": str(self._queue.capacity), "actual": str(waiting)},
            retry_after=timedelta(seconds=min(max(seconds, _LEAST_RETRY), _MOST_RETRY)),
        )

    # From here on: the workers' threads.

    def _work(self) -> None:
        yield_to_others()
        set_compute_threads(self._threads)
        while entries := self._next():
            self._run(entries)

    def _next(self) -> list[Entry]:
        """Wait for texts; empty once the batcher closes and nothing is left."""
        with self._changed:
            while True:
                entries = self._queue.take(self._batch_tokens, time.monotonic())
                if entries or (self._closing and not self._queue.waiting):
                    # There may be more than this batch: wake another worker, or let it see that all is done.
                    if self._queue.waiting or not entries:
                        self._changed.notify_all()
                    return entries
                self._changed.wait()

    def _run(self, entries: list[Entry]) -> None:
        """Expand a batch and tell its callers. Whatever goes wrong fails them alone."""
        taken = time.monotonic()
        side = entries[0].call.side
        failures: dict[Call, Exception] = {}
        try:
            tokenized = self._tokenize(entries, side, failures)
            cut = time.monotonic()
            # Cutting takes a while: whoever left meanwhile is not run.
            ready = [pair for pair in tokenized if pair[0].call not in failures and not pair[0].call.is_dead(cut)]
            expansions = self._encoder.encode([text for _, text in ready], side) if ready else []
            pairs = list(zip(ready, expansions, strict=True))
        except BaseException as caught:  # noqa: BLE001 - it goes to the callers; the worker goes on
            # A panic of a library in Rust is no Exception; as one it ends their calls as any other bug does.
            error = caught if isinstance(caught, Exception) else RuntimeError(f"{type(caught).__name__}: {caught}")
            failures |= {entry.call: error for entry in entries if entry.call not in failures}
            self._deliver([], failures)
            return
        done = time.monotonic()
        if ready:
            self._seconds_a_text += _NEWEST * ((done - taken) / len(ready) - self._seconds_a_text)
        finished = []
        # Under the lock, since other workers may hold texts of the same calls.
        with self._changed:
            for (entry, _), expansion in pairs:
                call = entry.call
                call.results[entry.position] = expansion
                call.left -= 1
                call.spend(taken - call.since, cut - taken, done - cut)
                if not call.left:
                    finished.append(call)
        self._deliver(finished, failures)

    def _tokenize(
        self, entries: list[Entry], side: Side, failures: dict[Call, Exception]
    ) -> list[tuple[Entry, TokenizedText]]:
        """Cut a batch's texts into tokens; where one is refused, only its call fails."""
        try:
            texts = self._encoder.tokenize([entry.text for entry in entries], side)
            return list(zip(entries, texts, strict=True))
        except TermwiseError:
            tokenized = []
            for entry in entries:
                try:
                    tokenized.append((entry, self._encoder.tokenize([entry.text], side)[0]))
                except TermwiseError as error:
                    failures.setdefault(entry.call, error)
            return tokenized

    def _deliver(self, finished: list[Call], failures: dict[Call, Exception]) -> None:
        """Wake the callers of a batch by one message to their event loop."""
        if not finished and not failures:
            return
        with self._changed:
            for call in (*finished, *failures):
                self._queue.end(call)
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(_settle, finished, failures)
            except RuntimeError:
                # The event loop is closed, so nobody waits any more.
                return


def _settle(finished: list[Call], failures: dict[Call, Exception]) -> None:
    for call in finished:
        if not call.future.done():
            call.future.set_result(None)
    for call, error in failures.items():
        _fail(call.future, error)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _expire(future: asyncio.Future[None]) -> None:
    _fail(future, _late())


def _closing() -> UnavailableError:
    return UnavailableError("The deployment is stopping; retry once it runs again.", reason="DEPLOYMENT_STOPPING")


def _late() -> DeadlineExceededError:
    return DeadlineExceededError("The deadline passed before the texts were expanded; allow more time or send fewer.")
