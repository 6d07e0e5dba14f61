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
from termwise.server.inference.admission import Call, Job, Queue
from termwise.server.inference.base import Encoder, Expansion, InferenceTimings, Side, TokenizedText
from termwise.server.inference.cache import CacheFacts, ExpansionCache
from termwise.server.inference.hardware import set_compute_threads, yield_to_others
from termwise.server.inference.turns import Turn, Turns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Bounds of the advice when to retry, in seconds.
_LEAST_RETRY = 0.05
_MOST_RETRY = 30.0
# Share of the newest batch in the running mean of seconds a text.
_NEWEST = 0.2


class Batcher:
    """The line before an encoder, and the workers behind it.

    A worker takes what waits, up to a budget of tokens, cuts it into tokens and runs the model; it never sleeps to wait
    for more, so a lone text starts at once and batches grow with the load. Cutting happens in the worker too: one
    change of threads each way is all that a call costs.

    An allocation is a turn at the model, a worker, and a second one that shares the turn: while one computes, the other
    reads out what it computed before and prepares what is next. The second takes full batches alone, and only while the
    first is at work: less, taken early, would lack the texts that still come, and two threads that take turns at small
    batches find their processor's cache cold (measured: 16 callers got 6 to 14 % fewer short queries through).

    Texts that equal one in flight, or one whose expansion is kept, do not reach the model. Used from one event loop.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        allocations: int,
        threads: int,
        queue_capacity: int,
        batch_tokens: int = 4096,
        cache_size_bytes: int = 0,
    ) -> None:
        """Prepare; `start` starts.

        Args:
            encoder: shared by all workers.
            allocations: runs of the model at a time, at least 1.
            threads: processor threads of each of them.
            queue_capacity: texts that may wait for a worker; those in a batch count no more.
            batch_tokens: tokens of a batch, by a guess from its characters; the encoder splits what turns out longer.
            cache_size_bytes: most bytes of expansions that are kept for equal texts to come.

        """
        self._encoder = encoder
        self._threads = threads
        self._batch_tokens = batch_tokens
        self._queue = Queue(queue_capacity, ExpansionCache(cache_size_bytes))
        self._lock = threading.Lock()
        # Where workers wait for texts, and the second ones for a batch full of them.
        self._texts = threading.Condition(self._lock)
        self._batches = threading.Condition(self._lock)
        self._turns = Turns(self._lock, allocations)
        # First workers that have nothing to do.
        self._idle = 0
        self._closing = False
        self._seconds_a_text = 0.01
        self._allocations = allocations
        self._workers = [
            threading.Thread(target=self._work, args=(second,), name=f"encoder-{number}{'b' * second}", daemon=True)
            for number in range(allocations)
            for second in (False, True)
        ]
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def allocation_count(self) -> int:
        """Allocations that run."""
        return sum(worker.is_alive() for worker in self._workers[::2])

    @property
    def pending(self) -> int:
        """Texts that are admitted and wait for a worker."""
        return self._queue.waiting

    @property
    def cache_facts(self) -> CacheFacts:
        """How many texts were answered without a run of the model."""
        return self._queue.facts

    def start(self) -> None:
        """Start the workers."""
        for worker in self._workers:
            worker.start()

    async def submit(
        self, texts: Sequence[str], side: Side, *, deadline: float | None, wait: bool
    ) -> tuple[list[Expansion], InferenceTimings]:
        """Expand texts; the answers are in their order, shared, and not to be changed.

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
        call = Call(texts, side, deadline, loop.create_future(), now, patient=wait)
        with self._lock:
            if self._closing:
                raise _closing()
            if not self._queue.admit(call):
                raise self._full(len(texts))
            self._loop = loop
            finished = self._queue.take_finished()
            self._call_for_work()
        _settle(finished, {})
        timer = None
        if deadline is not None and not call.future.done():
            timer = loop.call_later(deadline - now, _expire, call.future)
        try:
            await call.future
        finally:
            # However it ended - answered, failed, late or cancelled - what still waits must not reach the model, unless
            # somebody else waits for it too.
            if timer is not None:
                timer.cancel()
            if not call.over:
                self._leave([call])
        return call.answer()

    async def close(self) -> None:
        """Refuse new texts, answer those that were admitted, and end the workers."""
        with self._lock:
            self._closing = True
            strangers = self._queue.strangers()
        self._leave(strangers)
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
        seconds = (waiting + count) * self._seconds_a_text / self._allocations
        return ResourceExhaustedError(
            f"The deployment's queue is full ({waiting} of {self._queue.capacity} texts wait); retry later.",
            reason="QUEUE_FULL",
            metadata={"limit": str(self._queue.capacity), "actual": str(waiting)},
            retry_after=timedelta(seconds=min(max(seconds, _LEAST_RETRY), _MOST_RETRY)),
        )

    def _leave(self, calls: Iterable[Call]) -> None:
        """Let others have the room of calls that nobody waits for. On the event loop."""
        with self._lock:
            for call in calls:
                self._queue.end(call, time.monotonic())
            finished = self._queue.take_finished()
            self._call_for_work()
        _settle(finished, {})

    def _call_for_work(self) -> None:
        """Wake a worker where there is something for it; all of them where the batcher closes. Under the lock."""
        if self._closing:
            self._texts.notify_all()
            self._batches.notify_all()
        elif self._idle and self._queue.waiting:
            self._texts.notify()
        elif self._has_batch():
            self._batches.notify()

    def _has_batch(self) -> bool:
        return not self._idle and self._queue.waiting_tokens >= self._batch_tokens

    # From here on: the workers' threads.

    def _work(self, second: bool) -> None:
        yield_to_others()
        set_compute_threads(self._threads)
        while taken := self._next_batch() if second else self._next():
            self._run(*taken)

    def _next(self) -> tuple[list[Job], Turn] | None:
        """Wait for texts; None once the batcher closes and nothing is left."""
        with self._lock:
            self._idle += 1
            try:
                while not (taken := self._take()) and not self._is_over():
                    self._texts.wait()
            finally:
                self._idle -= 1
            self._call_for_work()  # there may be more than this batch, or the others may end too
            return taken

    def _next_batch(self) -> tuple[list[Job], Turn] | None:
        """Wait for a full batch that no first worker is free for; None as above."""
        with self._lock:
            while not self._is_over():
                if self._has_batch() and (taken := self._take()):
                    self._call_for_work()
                    return taken
                self._batches.wait()
            return None

    def _take(self) -> tuple[list[Job], Turn] | None:
        jobs = self._queue.take(self._batch_tokens, time.monotonic())
        while not jobs and self._queue.ready:
            jobs = self._queue.take(self._batch_tokens, time.monotonic())
        self._deliver(self._queue.take_finished(), {})
        return (jobs, self._turns.make()) if jobs else None

    def _is_over(self) -> bool:
        return self._closing and not self._queue.waiting

    def _run(self, jobs: list[Job], turn: Turn) -> None:
        """Expand a batch and tell its callers. Whatever goes wrong fails them alone."""
        taken = time.monotonic()
        try:
            tokenized = self._tokenize(jobs)
            cut = time.monotonic()
            turn.take()
            # That takes a while: what nobody waits for any more is not run.
            with self._lock:
                ready = self._queue.still_wanted(tokenized, time.monotonic())
            expansions = self._encode([tokenized[job] for job in ready], jobs[0].side, turn)
            answers = list(zip(ready, expansions, strict=True))
        except BaseException as caught:  # noqa: BLE001 - it goes to the callers; the worker goes on
            # A panic of a library in Rust is no Exception; as one it ends their calls as any other bug does.
            error = caught if isinstance(caught, Exception) else RuntimeError(f"{type(caught).__name__}: {caught}")
            with self._lock:
                self._fail(dict.fromkeys(jobs, error))
            return
        finally:
            turn.give_back()
        done = time.monotonic()
        if answers:
            self._seconds_a_text += _NEWEST * (turn.held / len(answers) - self._seconds_a_text)
        # Under the lock, since other workers may hold texts of the same calls.
        with self._lock:
            for job, expansion in answers:
                self._queue.complete(job, expansion, taken + turn.waited, cut - taken, done - cut - turn.waited)
            self._deliver(self._queue.take_finished(), {})

    def _fail(self, failures: dict[Job, Exception]) -> None:
        """End jobs without an answer, and the calls that wait for them. Under the lock."""
        failed = {call: error for job, error in failures.items() for call in self._queue.fail(job)}
        for call in failed:
            self._queue.end(call, time.monotonic())
        self._deliver(self._queue.take_finished(), failed)
        self._call_for_work()

    def _encode(self, texts: list[TokenizedText], side: Side, turn: Turn) -> list[Expansion]:
        """Run the model, once for texts that are cut into the same tokens."""
        places: dict[tuple[tuple[int, ...], bool], int] = {}
        order = [places.setdefault((tuple(text.ids), text.truncated), len(places)) for text in texts]
        if len(places) == len(texts):
            return self._encoder.encode(texts, side, turn) if texts else []
        firsts = dict(zip(reversed(order), reversed(texts), strict=True))
        expansions = self._encoder.encode([firsts[place] for place in range(len(places))], side, turn)
        return [expansions[place] for place in order]

    def _tokenize(self, jobs: list[Job]) -> dict[Job, TokenizedText]:
        """Cut a batch's texts into tokens; where one is refused, those who wait for it fail at once."""
        side = jobs[0].side
        try:
            return dict(zip(jobs, self._encoder.tokenize([job.text for job in jobs], side), strict=True))
        except TermwiseError:
            tokenized = {}
            for job in jobs:
                try:
                    tokenized[job] = self._encoder.tokenize([job.text], side)[0]
                except TermwiseError as error:
                    with self._lock:
                        self._fail({job: error})
            return tokenized

    def _deliver(self, finished: list[Call], failures: dict[Call, Exception]) -> None:
        """Wake callers by one message to their event loop."""
        if (finished or failures) and self._loop is not None:
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
