"""Fusion: several ranked lists become one.

The definition is over whole lists. A document's score is the sum over the lists that hold it, in double precision,
rounded to float32 once, of

- RRF: `weight / (rank_constant + rank)`, rank from 1;
- linear: `weight * normalised score`, where `max` divides by the list's best score, `minmax` is
  `(score - least) / (best - least)`, or 1 where the two are equal, `l2` divides by the list's Euclidean norm, and
  `none` takes the score as it is. Where the divisor is 0, so is the result.

Only a window of each list is read from the top. (Elasticsearch reads no more either, and gives 0 for what is beyond;
here the definition stays, and the answer says how far off it can be.) What is certain in spite of windows is `exact`:

- A list that ends within its window is whole.
- `max` and `none` need the best score alone, and a list of one query gives the score of any document. So each document
  of any window gets its exact sum, and one outside all windows has at most the sum of what the lists give beyond
  theirs. The windows are deepened until the k-th sum is above that; where they may grow no more, the difference is the
  error.
- A rank beyond the window is not known: at most `weight / (rank_constant + window + 1)` is missing.
- `minmax` with the window's `least` instead of the list's, which lies between 0 and that, is off by `least / best` at
  most.
- `l2` with the window's norm instead of the list's, whose other `n` scores are `last` at most, so that its square grows
  by `n * last * last` at most.
- A fused list inside another gives no document's score beyond its window; where it is not exact itself, it can be off
  by all that it contributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import hypot, sqrt
from typing import TYPE_CHECKING, Final

import numpy as np

from termwise.server.search.conditions import any_of
from termwise.server.search.query import Normalizer
from termwise.server.search.ranking import Part, Ranked, Remembered, add_up, keeps_order

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from termwise.server.search.ranking import Source, Sums
    from termwise.server.search.view import View
    from termwise.storage.types import Condition

_FIRST_DEPTH: Final = 256
_DEEPER: Final = 4


class _Fused:
    """What both fusions share: where they are read, and what they hold."""

    scores_any = False

    def __init__(self, view: View, sources: Sequence[Source], window: int) -> None:
        """Fuse `sources`, `window` documents of each at most."""
        self._view = view
        self._sources: list[Source] = [Remembered(source) for source in sources]
        self._window = window

    @property
    def condition(self) -> Condition | None:
        """Which documents are in any of the lists; None where one of them cannot say."""
        conditions = [source.condition for source in self._sources]
        known = [condition for condition in conditions if condition is not None]
        return any_of(known) if len(known) == len(conditions) else None

    def score(self, seq_nos: NDArray[np.int64]) -> NDArray[np.float64]:
        """Refuse: windows are read from the top alone."""
        raise NotImplementedError

    def openers(self, depth: int) -> list[Callable[[], object]]:
        """Read the top of every list, or what it is made of."""
        reach = self._reaches(depth)[0]
        calls = [call for source in self._sources for call in source.openers(reach) or [partial(source.top, reach)]]
        return calls if len(calls) > 1 else []

    def _reaches(self, depth: int) -> list[int]:
        """How deep to read, round by round; the last is the window."""
        del depth
        return [self._window]

    def _ranked(self, sums: Sums, tops: Sequence[Ranked], slack: float, depth: int) -> Ranked:
        """Give the best of the sums. `slack` is how far any score may be off besides."""
        exact = slack == 0 and sums.settled(depth)
        whole = sums.complete and slack == 0
        total, counted = len(sums), whole
        if not whole:
            total = max([total, *(top.total for top in tops)])
            counted = len(tops) == 1 and tops[0].counted
        return Ranked(
            sums.seq_nos[:depth],
            sums.scores[:depth],
            total,
            counted=counted,
            complete=whole and len(sums) <= depth,
            exact=exact,
            max_error=0.0 if exact else float(slack + sums.shortfall(depth)),
        )


class RankFused(_Fused):
    """Reciprocal rank fusion."""

    def __init__(self, view: View, parts: Sequence[tuple[Source, float]], window: int, rank_constant: int) -> None:
        """Fuse lists with their weights."""
        super().__init__(view, [source for source, _ in parts], window)
        self._weights = [weight for _, weight in parts]
        self._constant = rank_constant

    def top(self, depth: int) -> Ranked:
        """Give the best of the windows."""
        tops = [source.top(self._window) for source in self._sources]
        self._view.check()
        sums = add_up([self._part(top, weight) for top, weight in zip(tops, self._weights, strict=True)])
        # A rank that is wrong, or missing from a list that others fused, can be any.
        slack = sum(
            weight / (self._constant + 1) for top, weight in zip(tops, self._weights, strict=True) if not top.exact
        )
        return self._ranked(sums, tops, slack, depth)

    def _part(self, top: Ranked, weight: float) -> Part:
        ranks = np.arange(1, len(top.seq_nos) + 1, dtype=np.float64)
        return Part(
            top.seq_nos,
            weight / (self._constant + ranks),
            beyond=0.0 if top.complete else weight / (self._constant + len(top.seq_nos) + 1),
            complete=top.complete,
        )


@dataclass(frozen=True, slots=True)
class _Scale:
    """How a list's scores become contributions: `(score - least) * factor`, not below 0; off by `slack` at most.

    `everyone`: all scores from `least` on give this instead.
    """

    factor: float
    least: float = 0.0
    slack: float = 0.0
    everyone: float | None = None

    def apply(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the contributions of scores; NaN gives 0."""
        if self.everyone is not None:
            return np.where(scores >= self.least, self.everyone, 0.0)
        return np.nan_to_num(np.maximum((scores - self.least) * self.factor, 0.0), nan=0.0)


class ScoreFused(_Fused):
    """Weighted sum of normalised scores."""

    def __init__(self, view: View, parts: Sequence[tuple[Source, float, Normalizer]], window: int) -> None:
        """Fuse lists with their weights and normalisers."""
        super().__init__(view, [source for source, _, _ in parts], window)
        self._weights = [weight for _, weight, _ in parts]
        self._normalizers = [normalizer for _, _, normalizer in parts]

    def top(self, depth: int) -> Ranked:
        """Give the best, from windows as deep as is needed."""
        for reach in self._reaches(depth):
            tops = [source.top(reach) for source in self._sources]
            self._view.check()
            scales = list(map(_scale, tops, self._weights, self._normalizers))
            sums = add_up(list(map(_part, self._sources, tops, scales)))
            if sums.settled(depth):
                break
        return self._ranked(sums, tops, sum(scale.slack for scale in scales), depth)

    def _reaches(self, depth: int) -> list[int]:
        if any(normalizer in {Normalizer.MINMAX, Normalizer.L2} for normalizer in self._normalizers):
            return [self._window]
        reaches = [max(2 * depth, _FIRST_DEPTH)]
        while reaches[-1] < self._window:
            reaches.append(reaches[-1] * _DEEPER)
        return [*(reach for reach in reaches if reach < self._window), self._window]


def _scale(top: Ranked, weight: float, normalizer: Normalizer) -> _Scale:
    """Find a list's scale from its top."""
    best = float(top.scores[0]) if len(top.scores) else 0.0
    least = float(top.scores[-1]) if len(top.scores) else 0.0
    sure = top.exact
    if normalizer is Normalizer.NONE:
        return _Scale(weight, slack=0.0 if sure else weight * (best + top.max_error))
    if best == 0:
        # Every score is 0: minmax makes 1 of them, the others stay.
        return _Scale(0.0, everyone=weight if normalizer is Normalizer.MINMAX else None, slack=0.0 if sure else weight)
    if normalizer is Normalizer.MAX:
        return _Scale(weight / best, slack=0.0 if sure else weight)
    if normalizer is Normalizer.MINMAX:
        slack = 0.0 if top.complete else weight * least / best
        slack = slack if sure else weight
        if best == least:
            return _Scale(0.0, least, slack, everyone=weight)
        return _Scale(weight / (best - least), least, slack)
    norm = sqrt(float(np.dot(top.scores, top.scores)))
    slack = 0.0
    if not top.complete:
        most = hypot(norm, least * sqrt(top.total - len(top.scores))) if top.counted else float("inf")
        slack = weight * best * (1 / norm - 1 / most)
    return _Scale(weight / norm, slack=slack if sure else weight)


def _part(source: Source, top: Ranked, scale: _Scale) -> Part:
    """Give what the top of a list contributes, and what it may beyond."""
    last = float(top.scores[-1]) if len(top.scores) else 0.0
    open_ = not top.complete

    def rest(seq_nos: NDArray[np.int64]) -> NDArray[np.float64]:
        return scale.apply(source.score(seq_nos))

    return Part(
        top.seq_nos,
        scale.apply(top.scores),
        beyond=float(scale.apply(np.array([last]))[0]) if open_ else 0.0,
        rest=rest if source.scores_any else None,
        strict=open_ and scale.least == 0 and scale.factor > 0 and keeps_order(scale.factor, last),
        complete=top.complete,
    )
