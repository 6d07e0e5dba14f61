"""Calls and the texts of them that wait: plain data under one lock of the batcher; nothing here waits."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from termwise.server.inference.base import Expansion, InferenceTimings, Side

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Mapping, Sequence

    from termwise.server.inference.cache import Key

# Characters of a token, to guess a text's length before it is cut; English has four to five, with its blank.
_CHARACTERS_A_TOKEN = 4
# Longest guess: models cut off the rest.
_LONGEST_TEXT = 512


@dataclass(eq=False, slots=True)
class Call:
    """One call's texts, and where the answer goes.

    The first `seen` of the texts were looked at: they are answered, or wait in jobs; `ready` holds those jobs that its
    turns may take. `left` texts are not answered yet. A call is `over` once nobody waits for it: answered, failed,
    cancelled or late. A `patient` one waits for room. Patient calls of one `group` take turns as if they were one call;
    those of "" are by themselves.
    """

    texts: Sequence[str]
    side: Side
    deadline: float | None
    future: asyncio.Future[None]
    since: float
    patient: bool
    group: str = ""
    left: int = 0
    results: list[Expansion | None] = field(default_factory=list)
    seen: int = 0
    over: bool = False
    in_lane: bool = False
    ready: deque[Job] = field(default_factory=deque)
    timings: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        """Begin with no text answered."""
        self.left = len(self.texts)
        self.results = [None] * self.left

    def is_dead(self, now: float) -> bool:
        """Whether the answer would come too late, or to nobody."""
        return self.over or (self.deadline is not None and now >= self.deadline)

    def spend(self, queue: float, tokenize: float, inference: float) -> None:
        """Note where the time of some of the texts went; the longest counts."""
        before = self.timings
        self.timings = (max(before[0], queue), max(before[1], tokenize), max(before[2], inference))

    def answer(self) -> tuple[list[Expansion], InferenceTimings]:
        """Give the expansions of a call that is done."""
        return [each for each in self.results if each is not None], InferenceTimings(*self.timings)


@dataclass(eq=False, slots=True)
class Lane:
    """Calls of a group, in order, that have one place or one turn among others; "" is the group of a call alone.

    Its present turn took `taken` texts so far.
    """

    group: str
    calls: deque[Call] = field(default_factory=deque)
    in_turns: bool = False
    taken: int = 0


class JobState(Enum):
    """Where a job stands."""

    WAITING = "waiting"
    TAKEN = "taken"
    OVER = "over"


@dataclass(eq=False, slots=True)
class Job:
    """One run of the model for a text, of about `tokens`, whoever waits: calls, and the text's positions in them.

    Whoever asks for an equal text while the job is WAITING or TAKEN joins those who wait.
    """

    text: str
    key: Key
    patient: bool
    waiters: list[tuple[Call, int]] = field(default_factory=list)
    state: JobState = JobState.WAITING
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        """Guess the text's length."""
        self.tokens = min(len(self.text) // _CHARACTERS_A_TOKEN + 2, _LONGEST_TEXT)

    @property
    def side(self) -> Side:
        """The side that reads the text."""
        return self.key[0]

    def callers(self) -> list[Call]:
        """Give the calls that wait for it, one twice that has the text twice."""
        return [call for call, _ in self.waiters if not call.over]

    def is_dead(self, now: float) -> bool:
        """Whether nobody waits for it any more."""
        return all(call.is_dead(now) for call, _ in self.waiters)


def settle(finished: Iterable[Call], failures: Mapping[Call, Exception]) -> None:
    """Wake those who wait for calls that ended. On their event loop."""
    for call in finished:
        if not call.future.done():
            call.future.set_result(None)
    for call, error in failures.items():
        if not call.future.done():
            call.future.set_exception(error)
