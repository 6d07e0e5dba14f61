"""Ranked lists, and how several become one: the core of booleans and of fusion alike.

Each list contributes a number of 0 or more to the documents in it; a document's score is the sum. Contributions are
added in double precision in the order of the lists, and rounded to float32 once. Equal scores go by `seq_no`.

Lists are read from the top, as deep as is needed (Fagin's threshold algorithm): once the k-th best sum is above the sum
of what each list gives to documents further down, no document unseen can come in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from termwise.storage.types import Condition

LARGEST_SCORE: Final = np.float64(np.finfo(np.float32).max)
"""A score beyond float32 is this one, as storage's are."""

_MARGIN: Final = 1 + 2.0**-22
"""Covers what rounding to float32 took from a score."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """The top of a list: seq_nos (int64), and scores (float64 that float32 holds), best first, ties by seq_no.

    `total` documents are in the list, or at least so many unless `counted`. `complete`: none of them is missing here.
    `exact`: these are the best ones and their scores right; else scores are off by at most `max_error`, of documents
    not given too.
    """

    seq_nos: NDArray[np.int64]
    scores: NDArray[np.float64]
    total: int
    counted: bool = True
    complete: bool = True
    exact: bool = True
    max_error: float = 0.0

    def top(self, depth: int) -> Ranked:
        """Give the first `depth`."""
        if len(self.seq_nos) <= depth:
            return self
        return Ranked(
            self.seq_nos[:depth],
            self.scores[:depth],
            self.total,
            counted=self.counted,
            complete=False,
            exact=self.exact,
            max_error=self.max_error,
        )


class Source(Protocol):
    """A list that can be read from the top."""

    def top(self, depth: int) -> Ranked:
        """Give the best `depth` (1 or more) of the list; fewer only where it holds no more, or looks no deeper."""
        ...

    @property
    def scores_any(self) -> bool:
        """Whether it can `score`; else it is read from the top alone."""
        ...

    def score(self, seq_nos: NDArray[np.int64]) -> NDArray[np.float64]:
        """Give the score of each document, NaN for those not in the list."""
        ...

    def openers(self, depth: int) -> list[Callable[[], object]]:
        """Give calls that may run side by side before `top(depth)`, and make it quicker."""
        ...

    @property
    def condition(self) -> Condition | None:
        """Which documents are in the list; None where that takes reading all of it."""
        ...


class Remembered:
    """A source that keeps the deepest top read so far."""

    def __init__(self, source: Source) -> None:
        """Read from `source`."""
        self._source = source
        self._read: Ranked | None = None
        self._depth = 0

    def top(self, depth: int) -> Ranked:
        """Give the best; see `Source`."""
        if self._read is None or (depth > self._depth and not self._read.complete):
            self._read = self._source.top(depth)
            self._depth = depth
        return self._read.top(depth)

    @property
    def scores_any(self) -> bool:
        """Whether it can `score`."""
        return self._source.scores_any

    def score(self, seq_nos: NDArray[np.int64]) -> NDArray[np.float64]:
        """Score documents; see `Source`."""
        return self._source.score(seq_nos)

    def openers(self, depth: int) -> list[Callable[[], object]]:
        """Read the top, or what it is made of; see `Source`."""
        return self._source.openers(depth) or [lambda: self.top(depth)]

    @property
    def condition(self) -> Condition | None:
        """Which documents are in the list; see `Source`."""
        return self._source.condition


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one list contributes: `values` (float64, falling) to `seq_nos`, and at most `beyond` to any other document.

    `rest` gives the contributions to given others (0 to those not in the list); None: not known, and taken as 0.
    `strict`: a document further down contributes less than the last one or has a larger seq_no, in float32 too.
    """

    seq_nos: NDArray[np.int64]
    values: NDArray[np.float64]
    beyond: float = 0.0
    rest: Callable[[NDArray[np.int64]], NDArray[np.float64]] | None = None
    strict: bool = False
    complete: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """All documents seen, best first: seq_nos, and scores (float64 that float32 holds).

    Each score may be too low by what it is `lacking`. A document not seen scores `beyond` at most.
    """

    seq_nos: NDArray[np.int64]
    scores: NDArray[np.float64]
    lacking: NDArray[np.float64]
    beyond: float
    parts: Sequence[Part]

    def __len__(self) -> int:
        """Count the documents seen."""
        return len(self.seq_nos)

    @property
    def complete(self) -> bool:
        """Whether every document has been seen."""
        return all(part.complete for part in self.parts)

    def settled(self, k: int) -> bool:
        """Whether the best `k` are certain, order and scores."""
        if len(self) < k:
            return self.complete and not self.lacking.any()
        if self.lacking[:k].any():
            return False
        last = self.scores[k - 1]
        if self.lacking.any() and not bool(((self.scores[k:] + self.lacking[k:]) * _MARGIN < last).all()):
            return False
        return (
            self.complete or last > self.beyond or (last == self.beyond and self._wins_ties(int(self.seq_nos[k - 1])))
        )

    def shortfall(self, k: int) -> float:
        """Give the most by which a score may be too low, or one not given may exceed the k-th."""
        last = float(self.scores[k - 1]) if len(self) >= k else 0.0
        worst = float(self.lacking.max(initial=0.0))
        return worst if self.complete else max(worst, self.beyond - last, 0.0)

    def _wins_ties(self, seq_no: int) -> bool:
        """Whether no document unseen can have the last score with a smaller seq_no."""
        opened = [part for part in self.parts if not part.complete]
        return len(opened) == 1 and opened[0].strict and seq_no <= int(opened[0].seq_nos[-1])


def add_up(parts: Sequence[Part]) -> Sums:
    """Sum the contributions of lists."""
    if len(parts) == 1:
        seq_nos = np.sort(parts[0].seq_nos)
    else:
        seq_nos = np.unique(np.concatenate([part.seq_nos for part in parts])) if parts else np.empty(0, np.int64)
    sums = np.zeros(len(seq_nos), dtype=np.float64)
    lacking = np.zeros(len(seq_nos), dtype=np.float64)
    beyond = 0.0
    for part in parts:
        values = np.zeros(len(seq_nos), dtype=np.float64)
        seen = np.searchsorted(seq_nos, part.seq_nos)
        values[seen] = part.values
        if not part.complete and len(seen) < len(seq_nos):
            other = np.ones(len(seq_nos), dtype=np.bool_)
            other[seen] = False
            if part.rest is None:
                lacking[other] += part.beyond
            else:
                values[other] = part.rest(seq_nos[other])
        sums += values
        beyond += part.beyond
    scores = rounded(sums)
    order = np.lexsort((seq_nos, -scores))
    return Sums(seq_nos[order], scores[order], lacking[order], float(rounded(np.float64(beyond))), parts)


def rounded(sums: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    """Round to float32, within its range."""
    return np.minimum(sums, LARGEST_SCORE).astype(np.float32).astype(np.float64)


def keeps_order(factor: float, last: float) -> bool:
    """Whether no float32 below `last`, times `factor`, rounds to the same float32 as `last` does.

    Where it might, a list's order of ties by seq_no is not that of the products.
    """
    below = float(np.nextafter(np.float32(last), np.float32(0)))
    return bool(rounded(np.float64(below * factor)) < rounded(np.float64(last * factor)))
