"""An index as one search sees it: one reader, match sets remembered, and a place to stop at."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from termwise.server.errors import DeadlineExceededError
from termwise.server.search.conditions import FEW
from termwise.storage.types import AllOf, AnyOf, Everything, Lexical, Not, Nothing, Sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from termwise.server.context import RequestContext
    from termwise.storage.base import IndexReader
    from termwise.storage.types import Condition, Leaf, Ranking


class Stop:
    """Whether a search should go on. Storage cannot be interrupted, so the stages between its calls ask."""

    def __init__(self, context: RequestContext) -> None:
        """Take the deadline of the call."""
        self._deadline = context.deadline
        self._left = False

    def leave(self) -> None:
        """The caller has gone."""
        self._left = True

    def check(self) -> None:
        """Raise DeadlineExceededError where nobody waits for the answer any more."""
        if self._left or (self._deadline is not None and time.monotonic() >= self._deadline):
            raise DeadlineExceededError("The deadline passed before the search was done; allow it more time.")


class View:
    """One reader for one search. Threads may share it: at worst a match set is read twice."""

    def __init__(self, reader: IndexReader, stop: Stop) -> None:
        """Look at what `reader` shows until `stop`."""
        self.reader = reader
        self._stop = stop
        # By identity, since a condition may hold thousands of values; it is kept so that its id stays its own.
        self._matches: dict[int, tuple[Condition, NDArray[np.int64]]] = {}

    def check(self) -> None:
        """Raise DeadlineExceededError where nobody waits any more."""
        self._stop.check()

    def rank(self, leaf: Leaf, depth: int, where: Condition, count: int | None) -> Ranking:
        """Rank a leaf's documents that meet a condition, and count them as far as `count`; None: all of them."""
        self._stop.check()
        return self.reader.rank(leaf, depth, None if isinstance(where, Everything) else where, count=count)

    def score(self, leaf: Leaf, seq_nos: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score documents by a leaf, NaN where it does not match."""
        self._stop.check()
        return self.reader.score(leaf, seq_nos)

    def match(self, condition: Condition) -> NDArray[np.int64]:
        """Give the documents that meet a condition, ascending; shared, so not to be written to."""
        found = self._matches.get(id(condition))
        if found is None:
            self._stop.check()
            found = self._matches[id(condition)] = (condition, self.reader.match(condition))
        return found[1]

    def holds(self, condition: Condition, seq_nos: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say of each document whether it meets a condition.

        Scored leaves are asked for these documents alone, since their match sets may be most of the index.
        """
        result: NDArray[np.bool_]
        match condition:
            case Everything():
                result = np.ones(len(seq_nos), dtype=np.bool_)
            case Nothing():
                result = np.zeros(len(seq_nos), dtype=np.bool_)
            case Lexical() | Sparse():
                result = ~np.isnan(self.score(condition, seq_nos))
            case Not():
                result = ~self.holds(condition.condition, seq_nos)
            case AllOf() if len(condition.conditions) <= FEW:
                result = self._count(condition.conditions, seq_nos) == len(condition.conditions)
            case AnyOf() if len(condition.conditions) <= FEW:
                result = self._count(condition.conditions, seq_nos) >= condition.minimum
            case _:
                result = contained(self.match(condition), seq_nos)
        return result

    def _count(self, conditions: Sequence[Condition], seq_nos: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count how many of the conditions each document meets."""
        count = np.zeros(len(seq_nos), dtype=np.int64)
        for condition in conditions:
            count += self.holds(condition, seq_nos)
        return count


def contained(ascending: NDArray[np.int64], seq_nos: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say of each of `seq_nos` whether it is in `ascending`."""
    if not len(ascending):
        return np.zeros(len(seq_nos), dtype=np.bool_)
    places = np.searchsorted(ascending, seq_nos)
    places[places == len(ascending)] = 0
    found: NDArray[np.bool_] = ascending[places] == seq_nos
    return found
