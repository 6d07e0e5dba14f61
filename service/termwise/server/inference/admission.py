"""The line before a deployment's workers: who is admitted, whose texts the next batch takes, and which are the same.

Plain data under one lock of the batcher; nothing here waits, and nothing runs a model.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from termwise.server.inference.cache import CacheFacts, ExpansionCache, Key, cache_key
from termwise.server.inference.calls import Call, Job, JobState, Lane
from termwise.server.inference.statistics import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable

    from termwise.server.inference.base import Expansion, Side

# Texts that one call may put into a batch before the next call has its turn, so that a query does not wait for the
# whole of a large call before it, nor of a stream's calls. Most of the gain of a batch arrives by 8 texts (measured).
_TURN = 8


class Queue:
    """Admission, order, and what equal texts share. Every method is called under the batcher's lock.

    A text whose expansion is in the cache is answered at once; one that equals a text in flight waits for that one's
    job. Neither takes room. A call that does not wait is admitted whole or not at all. One that waits is admitted text
    by text, first come first served, as room appears; together such calls fill at most half of the queue, so that a
    bulk load on a deployment does not shut its searches out. Admitted calls take turns in the batches. Calls of one
    stream have one place in the line, and one turn, between them.

    Answers may come from any of the methods: `take_finished` gives the calls that have all of theirs.
    """

    def __init__(self, capacity: int, cache: ExpansionCache | None = None) -> None:
        """Hold at most `capacity` texts that wait."""
        self.capacity = capacity
        self.waiting = 0
        # A guess of the tokens that wait.
        self.waiting_tokens = 0
        # What happened, until somebody takes it over.
        self.tally = Tally()
        self._cache = ExpansionCache(0) if cache is None else cache
        self._hits = self._misses = 0
        self._flying: dict[Key, Job] = {}
        self._patient_waiting = 0
        self._patient_room = max(1, capacity // 2)
        # Lanes of patient calls with texts that were not looked at yet, and lanes of calls with jobs that may be taken.
        # Calls that are over stay in both until their turn comes, and are skipped.
        self._line: deque[Lane] = deque()
        self._turns: deque[Lane] = deque()
        # Those of them that are groups', as long as they have calls.
        self._outside: dict[str, Lane] = {}
        self._lanes: dict[str, Lane] = {}
        self._finished: list[Call] = []

    @property
    def facts(self) -> CacheFacts:
        """How much was answered without the model."""
        return CacheFacts(self._cache.size_bytes, self._cache.used_bytes, self._hits, self._misses)

    @property
    def ready(self) -> bool:
        """Whether some call has its turn in a batch."""
        return bool(self._turns)

    def admit(self, call: Call) -> bool:
        """Let a call in; False where there is no room and it does not wait."""
        if call.patient:
            lane = self._outside.get(call.group)
            if lane is None:
                lane = Lane(call.group)
                self._line.append(lane)
                if call.group:
                    self._outside[call.group] = lane
            lane.calls.append(call)
            self._refill()
            return True
        keys = [cache_key(text, call.side) for text in call.texts]
        known = {}
        new = set()
        for key in keys:
            found = self._cache.get(key)
            if found is not None:
                known[key] = found
            elif key not in self._flying:
                new.add(key)
        if self.waiting + len(new) > self.capacity:
            return False
        for key in keys:
            self._place(call, key, known.get(key))
        return True

    def clear_cache(self) -> None:
        """Forget the expansions that are kept."""
        self._cache.clear()

    def take(self, budget: int, now: float, jobs: list[Job] | None = None) -> list[Job]:
        """Take texts of one side for a batch of about `budget` tokens; they are put into `jobs` one by one.

        Empty where nothing is ready, or all of it was late: what waited for its room may then be `ready`.
        """
        jobs = [] if jobs is None else jobs
        side: Side | None = None
        others: list[Lane] = []
        while self._turns and budget > 0:
            lane = self._turns.popleft()
            lane.in_turns = False
            call = self._next_call(lane, now)
            if call is None:
                continue
            side = side or call.side
            if call.side is not side:
                others.append(lane)
                continue
            budget, rest = self._take_turn(lane, call, jobs, budget, now)
            if rest:
                self._give_turn(lane, again=budget <= 0 and lane.taken < _TURN)
        # The other side comes first next time.
        for lane in reversed(others):
            lane.in_turns = True
            self._turns.appendleft(lane)
        self._refill()
        return jobs

    def still_wanted(self, jobs: Iterable[Job], now: float) -> list[Job]:
        """Give those of some taken jobs that somebody waits for; the others are over."""
        wanted = []
        for job in jobs:
            if job.is_dead(now):
                self._close(job)
            elif job.state is JobState.TAKEN:
                wanted.append(job)
        return wanted

    def complete(self, job: Job, expansion: Expansion, taken: float, tokenize: float, inference: float) -> None:
        """Answer all who wait for a job that a worker took at `taken`; the others are seconds that it spent.

        The model ran for one of them; for the rest it is as if it had come out of the cache.
        """
        # From here on it is shared.
        expansion.token_ids.flags.writeable = expansion.weights.flags.writeable = False
        hits = -1
        for call, position in job.waiters:
            if not call.over:
                call.spend(max(0.0, taken - call.since), tokenize, inference)
                self._answer(call, position, expansion)
                hits += 1
        self.tally.hits += max(0, hits)
        self._close(job)
        self._cache.put(job.key, expansion)

    def fail(self, job: Job, *, refused: bool = False) -> list[Call]:
        """End a job without an answer; gives the calls that wait for it. `refused`: its text is to blame."""
        waiting = job.callers()
        if not refused and job.state is not JobState.OVER:
            self.tally.errors += len(waiting)
        self._close(job)
        return waiting

    def end(self, call: Call, now: float) -> None:
        """Note that nobody waits for a call any more, and let others have its room."""
        if not call.over:
            call.over = True
            self._drop_lonely(call.ready, now)
            self._refill()

    def take_finished(self) -> list[Call]:
        """Give the calls that got their last answer since this was asked last."""
        finished, self._finished = self._finished, []
        return finished

    def strangers(self) -> list[Call]:
        """Give the calls of which no text was admitted."""
        return [call for lane in self._line for call in lane.calls if not call.seen and not call.over]

    def all_calls(self) -> list[Call]:
        """Give the calls that wait for an answer."""
        waiting = {call: None for job in self._flying.values() for call, _ in job.waiters}
        waiting |= {call: None for lane in self._line for call in lane.calls}
        return [call for call in waiting if not call.over]

    def restore_turns(self) -> None:
        """Put right what was left half done when taking a batch broke: who has texts that wait has a turn."""
        for call in self.all_calls():
            call.ready.clear()
            call.in_lane = False
        self._turns.clear()
        self._lanes.clear()
        for job in self._flying.values():
            if job.state is JobState.WAITING:
                for call in dict.fromkeys(job.callers()):
                    self._make_ready(call, job)

    def _place(self, call: Call, key: Key, known: Expansion | None) -> None:
        """Answer a call's next text, or let it wait in a job."""
        position = call.seen
        call.seen += 1
        self.tally.arrivals += 1
        if known is not None:
            self._hits += 1
            self.tally.hits += 1
            self._answer(call, position, known)
            return
        job = self._flying.get(key)
        if job is None:
            self._misses += 1
            job = Job(call.texts[position], key, call.patient)
            self._flying[key] = job
            self._count(job, 1)
        else:
            self._hits += 1
        again = bool(job.waiters) and job.waiters[-1][0] is call
        job.waiters.append((call, position))
        # Whichever of its calls has its turn first takes a job along.
        if job.state is JobState.WAITING and not again:
            self._make_ready(call, job)

    def _answer(self, call: Call, position: int, expansion: Expansion) -> None:
        call.results[position] = expansion
        call.left -= 1
        self.tally.answered += 1
        if not call.left:
            call.over = True
            self._finished.append(call)

    def _refill(self) -> None:
        """Look at texts of the calls that wait, in order, as long as there is room for those that are new."""
        while self._line:
            lane = self._line[0]
            call = lane.calls[0]
            while not call.over and call.seen < len(call.texts):
                key = cache_key(call.texts[call.seen], call.side)
                known = self._cache.get(key)
                if known is None and key not in self._flying and not self._has_patient_room():
                    return
                self._place(call, key, known)
            lane.calls.popleft()
            self._line.popleft()
            if lane.calls:
                self._line.append(lane)
            else:
                self._outside.pop(lane.group, None)

    def _has_patient_room(self) -> bool:
        return self._patient_waiting < self._patient_room and self.waiting < self.capacity

    def _next_call(self, lane: Lane, now: float) -> Call | None:
        """Give a lane's first call with a text to be taken; those before it leave the lane."""
        while lane.calls:
            call = lane.calls[0]
            if call.is_dead(now):
                self._drop_lonely(call.ready, now)
            while call.ready and call.ready[0].state is not JobState.WAITING:
                call.ready.popleft()  # another call took it along
            if call.ready:
                return call
            call.in_lane = False
            lane.calls.popleft()
        if lane.group:
            self._lanes.pop(lane.group, None)
        return None

    def _take_turn(self, lane: Lane, call: Call, jobs: list[Job], budget: int, now: float) -> tuple[int, bool]:
        """Move jobs of a lane's calls, `call` and others of its side, into a batch.

        Gives what is left of the budget, and whether there is more in the lane.
        """
        side = call.side
        rest: Call | None = call
        while rest and rest.side is side and lane.taken < _TURN and budget > 0:
            ready = rest.ready
            while ready and lane.taken < _TURN and budget > 0:
                job = ready.popleft()
                if job.state is JobState.WAITING:
                    jobs.append(job)
                    self._count(job, -1)
                    job.state = JobState.TAKEN
                    lane.taken += 1
                    budget -= job.tokens
            rest = self._next_call(lane, now)
        return budget, rest is not None

    def _make_ready(self, call: Call, job: Job) -> None:
        """Let a call's turns take a job."""
        call.ready.append(job)
        if not call.in_lane:
            call.in_lane = True
            lane = self._lanes.get(call.group)
            if lane is None:
                lane = Lane(call.group)
                if call.group:
                    self._lanes[call.group] = lane
            lane.calls.append(call)
            self._give_turn(lane)

    def _give_turn(self, lane: Lane, *, again: bool = False) -> None:
        """Let a lane have a turn after the others; or before them, `again`, where a full batch cut its turn short."""
        if not lane.in_turns:
            lane.in_turns = True
            if again:
                self._turns.appendleft(lane)
            else:
                lane.taken = 0
                self._turns.append(lane)

    def _drop_lonely(self, jobs: deque[Job], now: float) -> None:
        """Drop those jobs of a call that is over or late which nobody else waits for."""
        while jobs:
            job = jobs.popleft()
            if job.state is JobState.WAITING and job.is_dead(now):
                self._close(job)

    def _close(self, job: Job) -> None:
        if job.state is JobState.WAITING:
            self._count(job, -1)
        job.state = JobState.OVER
        if self._flying.get(job.key) is job:
            del self._flying[job.key]

    def _count(self, job: Job, texts: int) -> None:
        self.waiting += texts
        self.waiting_tokens += texts * job.tokens
        if job.patient:
            self._patient_waiting += texts
