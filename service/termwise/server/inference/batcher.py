"""Workers, and the batches that feed them."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from termwise.server.inference import refusals
from termwise.server.inference.admission import Queue
from termwise.server.inference.base import Encoder, Expansion, InferenceTimings, Side
from termwise.server.inference.cache import CacheFacts, ExpansionCache
from termwise.server.inference.calls import Call, Job, JobState, settle
from termwise.server.inference.crew import Crew, Worker
from termwise.server.inference.feeder import Feeder
from termwise.server.inference.hardware import set_compute_threads, yield_to_others
from termwise.server.inference.priority import Standing
from termwise.server.inference.runs import encode, tokenize
from termwise.server.inference.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from termwise.server.errors import UnavailableError
    from termwise.server.inference.cache import Key
    from termwise.server.inference.priority import PriorityGate
    from termwise.server.inference.turns import Turn

# Weight of the newest batch in the running mean of seconds a text.
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
        self._sides_differ = encoder.sides_differ
        self._threads = threads
        self._queue = Queue(queue_capacity, ExpansionCache(cache_size_bytes))
        self._lock = threading.Lock()
        self._crew = Crew(self._lock, allocations, work=self._work, bury=self._bury, give_up=self._give_up, name=name)
        self._feeder = Feeder(
            self._lock,
            self._queue,
            allocations,
            batch_tokens=batch_tokens,
            standing=Standing() if gate is None else gate.join(threads, low_priority=low_priority),
            finished=self._deliver,
            retire=self._crew.retire,
        )
        self._seconds_a_text = 0.01
        self._statistics = Statistics() if statistics is None else statistics
        self._low_priority = low_priority
        self._on_broken = on_broken
        self._broken: UnavailableError | None = None
        # Texts that all workers had in hand which died one after the other.
        self._suspects: set[Key] = set()
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
            self._crew.resize(allocations)
            self._feeder.resize(allocations)
        self._crew.fill()

    def clear_cache(self) -> None:
        """Forget the expansions that are kept."""
        with self._lock:
            self._queue.clear_cache()

    async def submit(
        self, texts: Sequence[str], side: Side, *, deadline: float | None, wait: bool, group: str = ""
    ) -> tuple[list[Expansion], InferenceTimings]:
        """Expand texts; the answers are in their order, shared, and not to be changed.

        Args:
            texts: at least one.
            side: which side of the encoder reads them.
            deadline: `time.monotonic` seconds; texts still waiting then never reach the model. None: no deadline.
            wait: wait for room in the queue, any number of texts; otherwise a full queue fails at once.
            group: what a call that waits belongs to, such as a stream: its calls come in order, and share one place in
                the line and one turn. "": a call by itself.

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
        if not self._sides_differ:
            side = Side.DOCUMENT
        call = Call(texts, side, deadline, loop.create_future(), now, wait, group if wait else "")
        with self._lock:
            if self._feeder.closing:
                raise self._broken or refusals.closing()
            if not self._queue.admit(call):
                self._queue.tally.rejected += len(texts)
                self._statistics.add(self._queue.tally, now)
                seconds = (self._queue.waiting + len(texts)) * self._seconds_a_text / self._crew.size
                raise refusals.full(self._queue.waiting, self._queue.capacity, seconds)
            self._loop = loop
            finished = self._queue.take_finished()
            self._statistics.add(self._queue.tally, now)
            self._feeder.call()
        if finished:
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
        """Refuse new texts, answer what was admitted, and end the workers."""
        with self._lock:
            self._feeder.closing = True
            self._crew.end()
            strangers = self._queue.strangers()
        self._leave(strangers)
        settle([], dict.fromkeys(strangers, refusals.closing()))
        # One that dies meanwhile has another take its place, as long as texts wait.
        while threads := self._crew.threads():
            for thread in threads:
                await asyncio.to_thread(thread.join)
        with self._lock:
            self._feeder.leave()
            left = self._queue.all_calls()
        self._leave(left)  # there never was a worker
        settle([], dict.fromkeys(left, refusals.closing()))
        # Batcher, crew and feeder know each other: what is large must not wait for the collector of such circles.
        self.clear_cache()
        with suppress(AttributeError):
            del self._encoder  # unless it was closed before

    def _check(self, texts: Sequence[str], deadline: float | None, now: float, *, wait: bool) -> None:
        if not texts:
            raise refusals.no_text()
        if not wait and len(texts) > self._queue.capacity:
            raise refusals.too_many(len(texts), self._queue.capacity)
        if deadline is not None and now >= deadline:
            with self._lock:
                self._queue.tally.timeouts += len(texts)
                self._statistics.add(self._queue.tally, now)
            raise refusals.late()

    def _leave(self, calls: Iterable[Call]) -> None:
        """Let others have the room of calls that nobody waits for. On the event loop."""
        with self._lock:
            now = time.monotonic()
            for call in calls:
                # One that is cancelled at its deadline comes too late as well.
                if call.deadline is not None and now >= call.deadline - _AT_DEADLINE:
                    self._queue.tally.timeouts += call.left
                self._queue.end(call, now)
            finished = self._queue.take_finished()
            self._statistics.add(self._queue.tally, now)
            self._feeder.call()
        settle(finished, {})

    # From here on: the workers' threads.

    def _work(self, worker: Worker) -> None:
        yield_to_others(low_priority=self._low_priority)
        set_compute_threads(self._threads)
        while (turn := self._feeder.next(worker)) is not None:
            self._run(worker.jobs, turn)
            worker.jobs, worker.turn = [], None

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
            self._statistics.add(self._queue.tally, done, turn.held)
            self._crew.forgive()
            self._deliver()

    def _fail(self, failures: Mapping[Job, Exception], seconds: float = 0.0, *, refused: bool = False) -> None:
        """End jobs without an answer, and the calls that wait for them. Under the lock."""
        failed = {call: error for job, error in failures.items() for call in job.callers()}
        # First of all, so that whatever happens next nobody waits in vain.
        self._tell([], failed)
        for job in failures:
            self._queue.fail(job, refused=refused)
        now = time.monotonic()
        for call in failed:
            self._queue.end(call, now)
        self._statistics.add(self._queue.tally, now, seconds)
        self._deliver()
        self._feeder.call()

    def _bury(self, worker: Worker, delay: float) -> None:
        """Tell those who wait for a dead worker's batch, and see to it that nothing else is lost with it."""
        if worker.turn is not None:
            worker.turn.give_back()
        error = refusals.died(delay)
        with self._lock:
            keys = {job.key for job in worker.jobs}
            self._suspects = keys if self._crew.deaths <= 1 else self._suspects & keys
            if self._suspects and self._crew.deaths > 1:
                # A text that all of the dead had in hand is to blame; others must not lose the deployment by it.
                self._crew.forgive()
            unanswered = [job for job in worker.jobs if job.state is not JobState.OVER]
            self._fail(dict.fromkeys(unanswered, error), worker.turn.held if worker.turn else 0.0)
            self._queue.restore_turns()
            self._feeder.call()

    def _give_up(self, cause: BaseException) -> None:
        """Tell everybody that there are no workers any more."""
        self._broken = refusals.broken(cause)
        with self._lock:
            self._feeder.closing = True
            calls = self._queue.all_calls()
            for call in calls:
                self._queue.end(call, time.monotonic())
            self._tell(self._queue.take_finished(), dict.fromkeys(calls, self._broken))
            self._feeder.call()
        if self._on_broken is not None:
            self._on_broken(self._broken)

    def _deliver(self) -> None:
        """Tell those whose calls are answered. Under the lock."""
        if finished := self._queue.take_finished():
            self._tell(finished, {})

    def _tell(self, finished: list[Call], failures: Mapping[Call, Exception]) -> None:
        """Wake callers by one message to their event loop."""
        if (finished or failures) and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(settle, finished, failures)
            except RuntimeError:
                # The event loop is closed, so nobody waits any more.
                return


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(refusals.late())
