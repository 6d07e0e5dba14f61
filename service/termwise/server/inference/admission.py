"""The line before a deployment's workers: who is admitted, and whose texts the next batch takes.

Plain data under one lock of the batcher; nothing here waits, and nothing runs a model.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from termwise.server.inference.base import Expansion, InferenceTimings, Side

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

# Characters of a token, to guess a text's length before it is cut; English has four to five, with its blank.
_CHARACTERS_A_TOKEN = 4
# Longest guess: models cut off the rest.
_LONGEST_TEXT = 512
# Texts that one call may put into a batch before the next call has its turn, so that a query does not wait for the
# whole of a large call before it. Most of the gain of a batch arrives by 8 texts (measured).
_TURN = 8


@dataclass(eq=False, slots=True)
class Call:
    """One call's texts, where each of them stands, and where the answer goes.

    `admitted` texts of the front may be taken, `taken` of them are with a worker or done, `left` are not done yet. A
    call is `over` once nobody waits for it: answered, failed, cancelled or late. A `patient` one waits for room.
    """

    texts: Sequence[str]
    side: Side
    deadline: float | None
    future: asyncio.Future[None]
    since: float
    left: int
    results: list[Expansion | None]
    patient: bool
    admitted: int = 0
    taken: int = 0
    over: bool = False
    timings: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def is_dead(self, now: float) -> bool:
        """Whether the answer would come too late, or to nobody."""
        return self.over or (self.deadline is not None and now >= self.deadline)

    def spend(self, queue: float, tokenize: float, inference: float) -> None:
        """Note where the time of some of the texts went; the longest counts."""
        self.timings = [max(pair) for pair in zip(self.timings, (queue, tokenize, inference), strict=True)]

    def answer(self) -> tuple[list[Expansion], InferenceTimings]:
        """Give the expansions of a call that is done."""
        return [each for each in self.results if each is not None], InferenceTimings(*self.timings)


@dataclass(frozen=True, slots=True)
class Entry:
    """One text in a batch: `position` in its call."""

    call: Call
    position: int

    @property
    def text(self) -> str:
        """The text."""
        return self.call.texts[self.position]


class Queue:
    """Admission and order. Every method is called under the batcher's lock.

    A call that does not wait is admitted whole or not at all. One that waits is admitted text by text, first come first
    served, as room appears; together such calls fill at most half of the queue, so that a bulk load on a deployment
    does not shut its searches out. Admitted calls take turns in the batches.
    """

    def __init__(self, capacity: int) -> None:
        """Hold at most `capacity` texts."""
        self.capacity = capacity
        self.waiting = 0
        self._patient_waiting = 0
        self._patient_room = max(1, capacity // 2)
        # Patient calls with texts that are not admitted yet, and calls with texts that may be taken. Calls that are
        # over stay in both until their turn comes, and are skipped.
        self._line: deque[Call] = deque()
        self._turns: deque[Call] = deque()

    def admit(self, call: Call) -> bool:
        """Let a call in; False where there is no room and it does not wait."""
        if call.patient:
            self._line.append(call)
            self._refill()
            return True
        if self.waiting + len(call.texts) > self.capacity:
            return False
        self._advance(call, len(call.texts))
        return True

    def take(self, budget: int, now: float) -> list[Entry]:
        """Take texts of one side for a batch of about `budget` tokens; empty where nothing is ready."""
        entries: list[Entry] = []
        side: Side | None = None
        others: list[Call] = []
        while self._turns and budget > 0:
            call = self._turns.popleft()
            if call.is_dead(now):
                continue
            side = side or call.side
            if call.side is not side:
                others.append(call)
                continue
            for position in range(call.taken, min(call.admitted, call.taken + _TURN)):
                entries.append(Entry(call, position))
                self._count(call, -1)
                call.taken += 1
                budget -= min(len(call.texts[position]) // _CHARACTERS_A_TOKEN + 2, _LONGEST_TEXT)
                if budget <= 0:
                    break
            if call.taken < call.admitted:
                self._turns.append(call)
        # The other side comes first next time.
        self._turns.extendleft(reversed(others))
        self._refill()
        return entries

    def end(self, call: Call) -> None:
        """Note that nobody waits for a call any more, and let others have its room."""
        if not call.over:
            call.over = True
            self._count(call, call.taken - call.admitted)
            self._refill()

    def strangers(self) -> list[Call]:
        """Give the calls of which no text was admitted."""
        return [call for call in self._line if not call.admitted and not call.over]

    def _refill(self) -> None:
        """Admit texts of the calls that wait, in order, where there is room now."""
        while self._line:
            call = self._line[0]
            room = min(self._patient_room - self._patient_waiting, self.capacity - self.waiting)
            if not call.over:
                if room <= 0:
                    return
                self._advance(call, min(room, len(call.texts) - call.admitted))
            if call.over or call.admitted == len(call.texts):
                self._line.popleft()

    def _advance(self, call: Call, texts: int) -> None:
        if call.admitted == call.taken:
            self._turns.append(call)
        call.admitted += texts
        self._count(call, texts)

    def _count(self, call: Call, texts: int) -> None:
        self.waiting += texts
        if call.patient:
            self._patient_waiting += texts
