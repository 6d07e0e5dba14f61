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
    UnavailableError,
)
from termwise.server.inference.admission import Call, Job, JobState, Queue
from termwise.server.inference.base import Encoder, Expansion, InferenceTimings, Side
from termwise.server.inference.cache import CacheFacts, ExpansionCache
from termwise.server.inference.crew import Crew, Worker
from termwise.server.inference.hardware import set_compute_threads, yield_to_others
from termwise.server.inference.runs import encode, tokenize
from termwise.server.inference.statistics import Statistics
from termwise.server.inference.turns import Turn, Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from termwise.server.inference.priority import PriorityGate

# Bounds of the advice when to retry, in seconds.
_LEAST_RETRY = 0.05
_MOST_RETRY = 30.0
# Share of the newest batch in the running mean of seconds a text.
_NEWEST = 0.2
# Seconds before its deadline in which a call that is cancelled counts as late: its caller's clock is not ours.
_AT_DEADLINE = 0.01


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

    An error of the model, or of a text, goes to those who wait for the batch. Whatever else a worker meets ends it:
    those who wait for its batch may retry, and another worker takes its place.
    """

    def __init__(  # noqa: PLR0913 - all but four have defaults
        self,
        encoder: Encoder,
        *,
        allocations: int,
        threads: int,
        queue_capacity: int,
        batch_tokens: int = 4096,
        cache_size_bytes: int = 0,
        statistics: Statistics | None = None,
        gate: PriorityGate | None = None,
        low_priority: bool = False,
        on_broken: Callable[[UnavailableError], None] | None = None,
        name: str = "",
    ) -> None:
        """Prepare; `start` starts.

        Args:
            encoder: shared by all workers.
            allocations: runs of the model at a time, at least 1.
            threads: processor threads of each of them.
            queue_capacity: texts that may wait for a worker; those in a batch count no more.
            batch_tokens: tokens of a batch, by a guess from its characters; the encoder splits what turns out longer.
            cache_size_bytes: most bytes of expansions that are kept for equal texts to come.
            statistics: counts what happens; None: nobody asks.
            gate: shared by the batchers of a server; None: this one is alone.
            low_priority: begin no batch while others, of normal priority, fill the processors.
            on_broken: hears, once and in a worker's thread, that workers die one after the other and there will be no
                more; everybody was told then, and only `close` is left to do.
            name: the deployment's, for the log.

        """
        self._encoder = encoder
        self._threads = threads
        self._batch_tokens = batch_tokens
        self._queue = Queue(queue_capacity, ExpansionCache(cache_size_bytes))
        self._lock = threading.Lock()
        # Where workers wait for texts, and the second ones for a batch full of them.
        self._texts = threading.Condition(self._lock)
        self._batches = threading.Condition(self._lock)
        self._turns = Turns(self._lock, allocations, self._tell_gate)
        # First workers that have nothing to do.
        self._idle = 0
        self._closing = False
        self._seconds_a_text = 0.01
        self._statistics = Statistics() if statistics is None else statistics
        self._gate = gate if low_priority else None
        self._share = None if gate is None or low_priority else gate.join()
        self._low_priority = low_priority
        self._on_broken = on_broken
        self._broken: UnavailableError | None = None
        self._crew = Crew(self._lock, allocations, work=self._work, bury=self._bury, give_up=self._give_up, name=name)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def allocation_count(self) -> int:
        """Allocations that run."""
        return self._crew.present

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
        self._crew.start()

    def resize(self, allocations: int) -> None:
        """Have more allocations at once, or fewer as soon as they end their batches; what was admitted is answered.

        Raises:
            ValueError: fewer than one.
            RuntimeError: the system gives no more threads; fewer allocations run.

        """
        if allocations < 1:
            message = f"{allocations} allocations are too few; one is the least."
            raise ValueError(message)
        with self._lock:
            self._turns.resize(allocations)
            self._texts.notify_all()
            self._batches.notify_all()
        self._crew.resize(allocations)

    def clear_cache(self) -> None:
        """Forget the expansions that are kept."""
        with self._lock:
            self._queue.clear_cache()

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
                raise self._broken or _closing()
            if not self._queue.admit(call):
                self._count(rejected=len(texts))
                raise self._full(len(texts))
            self._loop = loop
            finished = self._queue.take_finished()
            self._count()
            self._call_for_work()
        settle(finished, {})
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
            self._crew.end()
            strangers = self._queue.strangers()
        self._leave(strangers)
        settle([], dict.fromkeys(strangers, _closing()))
        # One that dies meanwhile has another take its place, as long as texts wait.
        while threads := self._crew.threads():
            for thread in threads:
                await asyncio.to_thread(thread.join)
        with self._lock:
            left = self._queue.all_calls()
        self._leave(left)  # there never was a worker
        settle([], dict.fromkeys(left, _closing()))

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
            with self._lock:
                self._count(timeouts=len(texts))
            raise _late()

    def _full(self, count: int) -> ResourceExhaustedError:
        waiting = self._queue.waiting
        seconds = (waiting + count) * self._seconds_a_text / self._crew.size
        return ResourceExhaustedError(
            f"The deployment's queue is full ({waiting} of {self._queue.capacity} texts wait); retry later.",
            reason="QUEUE_FULL",
            metadata={"limit": str(self._queue.capacity), "actual": str(waiting)},
            retry_after=timedelta(seconds=min(max(seconds, _LEAST_RETRY), _MOST_RETRY)),
        )

    def _leave(self, calls: Iterable[Call]) -> None:
        """Let others have the room of calls that nobody waits for. On the event loop."""
        with self._lock:
            now = time.monotonic()
            for call in calls:
                # One that is cancelled at its deadline comes too late as well.
                late = call.deadline is not None and now >= call.deadline - _AT_DEADLINE
                self._count(timeouts=call.left * late)
                self._queue.end(call, now)
            finished = self._queue.take_finished()
            self._count()
            self._call_for_work()
        settle(finished, {})

    def _count(self, seconds: float = 0.0, *, rejected: int = 0, timeouts: int = 0) -> None:
        """Hand over what happened to the queue's texts, and the model's seconds. Under the lock."""
        tally = self._queue.tally
        tally.rejected += rejected
        tally.timeouts += timeouts
        self._statistics.add(tally, seconds)

    def _tell_gate(self) -> None:
        """Say how many threads would compute now if they could: all, where texts wait. Under the lock."""
        if self._share is not None:
            turns = self._crew.size if self._queue.waiting else self._turns.running
            self._share.want(self._threads * turns)

    def _call_for_work(self) -> None:
        """Wake a worker where there is something for it; all of them where the batcher closes. Under the lock."""
        self._tell_gate()
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

    def _work(self, worker: Worker) -> None:
        yield_to_others(low_priority=self._low_priority)
        set_compute_threads(self._threads)
        while (turn := self._next_batch(worker) if worker.second else self._next(worker)) is not None:
            self._run(worker.jobs, turn)
            worker.jobs, worker.turn = [], None

    def _next(self, worker: Worker) -> Turn | None:
        """Wait for texts; None once this worker is not wanted, or the batcher closes and nothing is left."""
        with self._lock:
            self._idle += 1
            try:
                while not self._is_over(worker) and not self._take(worker):
                    self._wait(self._texts)
            finally:
                self._idle -= 1
            self._call_for_work()  # there may be more than this batch, or the others may end too
            return worker.turn

    def _next_batch(self, worker: Worker) -> Turn | None:
        """Wait for a full batch that no first worker is free for; None as above."""
        with self._lock:
            while not self._is_over(worker) and not (self._has_batch() and self._take(worker)):
                self._wait(self._batches)
            self._call_for_work()
            return worker.turn

    def _wait(self, condition: threading.Condition) -> None:
        held_back = self._gate is not None and self._queue.waiting
        condition.wait(self._pause() if held_back else None)

    def _pause(self) -> float:
        """Give the seconds for which work of low priority must wait; 0.0: it may begin."""
        return 0.0 if self._gate is None or self._closing else self._gate.pause()

    def _take(self, worker: Worker) -> bool:
        """Take a batch, and a turn for it, if there is one."""
        if self._pause():
            return False
        queue = self._queue
        queue.take(self._batch_tokens, time.monotonic(), worker.jobs)
        while not worker.jobs and queue.ready:
            queue.take(self._batch_tokens, time.monotonic(), worker.jobs)
        self._deliver(queue.take_finished(), {})
        if worker.jobs:
            worker.turn = self._turns.make()
        return bool(worker.jobs)

    def _is_over(self, worker: Worker) -> bool:
        return (self._closing and not self._queue.waiting) or self._crew.retire(worker)

    def _run(self, jobs: list[Job], turn: Turn) -> None:
        """Expand a batch and tell its callers. What goes wrong with it fails them alone."""
        taken = time.monotonic()
        try:
            tokenized, refused = tokenize(self._encoder, jobs)
            if refused:
                with self._lock:
                    self._fail(refused, refused=True)
            cut = time.monotonic()
            turn.take()
            # That takes a while: what nobody waits for any more is not run.
            with self._lock:
                ready = self._queue.still_wanted(tokenized, time.monotonic())
            expansions = encode(self._encoder, [tokenized[job] for job in ready], jobs[0].side, turn)
            answers = list(zip(ready, expansions, strict=True))
        except Exception as error:  # noqa: BLE001 - it goes to the callers; the worker goes on
            turn.give_back()
            with self._lock:
                self._fail(dict.fromkeys(jobs, error), turn.held)
            return
        turn.give_back()
        done = time.monotonic()
        if answers:
            self._seconds_a_text += _NEWEST * (turn.held / len(answers) - self._seconds_a_text)
        # Under the lock, since other workers may hold texts of the same calls.
        with self._lock:
            for job, expansion in answers:
                self._queue.complete(job, expansion, taken + turn.waited, cut - taken, done - cut - turn.waited)
            self._count(turn.held)
            self._crew.praise()
            self._deliver(self._queue.take_finished(), {})

    def _fail(self, failures: Mapping[Job, Exception], seconds: float = 0.0, *, refused: bool = False) -> None:
        """End jobs without an answer, and the calls that wait for them. Under the lock."""
        failed = {call: error for job, error in failures.items() for call in self._queue.fail(job, refused=refused)}
        for call in failed:
            self._queue.end(call, time.monotonic())
        self._count(seconds)
        self._deliver(self._queue.take_finished(), failed)
        self._call_for_work()

    def _bury(self, worker: Worker, delay: float) -> None:
        """Tell those who wait for a dead worker's batch, and see to it that nothing else is lost with it."""
        if worker.turn is not None:
            worker.turn.give_back()
        error = UnavailableError(
            "The worker that had these texts died, and another takes its place; retry.",
            reason="WORKER_DIED",
            retry_after=timedelta(seconds=max(delay, _LEAST_RETRY)),
        )
        with self._lock:
            unanswered = [job for job in worker.jobs if job.state is not JobState.OVER]
            self._fail(dict.fromkeys(unanswered, error), worker.turn.held if worker.turn else 0.0)
            self._queue.restore_turns()
            self._call_for_work()

    def _give_up(self, cause: BaseException) -> None:
        """Tell everybody that there are no workers any more."""
        self._broken = UnavailableError(
            f"The deployment's workers die one after the other ({type(cause).__name__}); the server's log says more.",
            reason="WORKERS_DIED",
        )
        with self._lock:
            self._closing = True
            calls = self._queue.all_calls()
            for call in calls:
                self._queue.end(call, time.monotonic())
            self._deliver(self._queue.take_finished(), dict.fromkeys(calls, self._broken))
            self._call_for_work()
        if self._on_broken is not None:
            self._on_broken(self._broken)

    def _deliver(self, finished: list[Call], failures: Mapping[Call, Exception]) -> None:
        """Wake callers by one message to their event loop."""
        if (finished or failures) and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(settle, finished, failures)
            except RuntimeError:
                # The event loop is closed, so nobody waits any more.
                return


def settle(finished: Iterable[Call], failures: Mapping[Call, Exception]) -> None:
    """Wake those who wait for calls that ended. On their event loop."""
    for call in finished:
        if not call.future.done():
            call.future.set_result(None)
    for call, error in failures.items():
        if not call.future.done():
            call.future.set_exception(error)


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(_late())


def _closing() -> UnavailableError:
    return UnavailableError("The deployment is stopping; retry once it runs again.", reason="DEPLOYMENT_STOPPING")


def _late() -> DeadlineExceededError:
    return DeadlineExceededError("The deadline passed before the texts were expanded; allow more time or send fewer.")
