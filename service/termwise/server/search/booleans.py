"""Exact lists of scored leaves and booleans over them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from termwise.server.search.conditions import FEW, all_of, is_cheap
from termwise.server.search.ranking import Part, Ranked, Remembered, Sums, add_up, keeps_order, rounded
from termwise.server.search.view import contained

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from termwise.server.search.ranking import Source
    from termwise.server.search.view import View
    from termwise.storage.types import Condition, Leaf

_FIRST_DEPTH: Final = 128
_DEEPER: Final = 4
"""Each round reads the lists again, this many times as deep: all rounds together cost a third more than the last."""


@dataclass(frozen=True, slots=True, eq=False)
class Addend:
    """A leaf, or a constant where `leaf` is None, that adds `weight` times its score to some documents of a boolean.

    Those are the ones that meet `own`, which is the leaf itself or the constant's condition, and `where`: what the
    boolean and the booleans between ask besides. Of a document known to be in the boolean `guard` is asked instead.
    """

    leaf: Leaf | None
    own: Condition
    weight: float
    where: Condition
    guard: Condition


class LeafList:
    """The documents of a leaf, with its own scores."""

    scores_any = True

    def __init__(
        self, view: View, leaf: Leaf, where: Condition, guard: Condition, whole: Condition, *, count: int | None
    ) -> None:
        """Rank what meets `where`; ask documents from elsewhere for `guard`. `whole` is the list's condition.

        Documents are counted as far as `count`; None: all of them.
        """
        self._view = view
        self._leaf = leaf
        self._where = where
        self._guard = guard
        self._whole = whole
        self._count = count

    @property
    def condition(self) -> Condition | None:
        """Which documents are in the list."""
        return self._whole

    def top(self, depth: int) -> Ranked:
        """Give the best; storage ranks them."""
        found = self._view.rank(self._leaf, depth, self._where, self._count)
        return Ranked(
            found.seq_nos,
            found.scores.astype(np.float64),
            max(found.total, len(found.seq_nos)),
            counted=found.counted,
            complete=found.exhausted or len(found.seq_nos) < depth,
            exact=found.max_error == 0,
            max_error=found.max_error,
        )

    def score(self, seq_nos: NDArray[np.int64]) -> NDArray[np.float64]:
        """Score documents, NaN for those not in the list."""
        scores = self._view.score(self._leaf, seq_nos).astype(np.float64)
        scores[~self._view.holds(self._guard, seq_nos)] = np.nan
        return scores

    def openers(self, depth: int) -> list[Callable[[], object]]:
        """There is nothing to prepare."""
        del depth
        return []


class ConstantList:
    """Documents that meet conditions, each with the sum of their weights. It is read as a whole."""

    scores_any = True

    def __init__(self, view: View, addends: Sequence[Addend]) -> None:
        """Take the constants of a boolean."""
        self._view = view
        self._addends = addends

    @property
    def condition(self) -> Condition | None:
        """Nobody asks: it is but a part of a boolean."""
        return None

    def top(self, depth: int) -> Ranked:
        """Give the best."""
        sets = [self._documents(addend) for addend in self._addends]
        if len(sets) == 1:
            seq_nos = sets[0]
            return Ranked(
                seq_nos[:depth],
                np.full(min(depth, len(seq_nos)), self._addends[0].weight, dtype=np.float64),
                len(seq_nos),
                complete=len(seq_nos) <= depth,
            )
        seq_nos, places = np.unique(np.concatenate(sets), return_inverse=True)
        weights = np.repeat([addend.weight for addend in self._addends], [len(each) for each in sets])
        sums = np.bincount(places, weights, minlength=len(seq_nos)).astype(np.float64, copy=False)
        order = np.lexsort((seq_nos, -sums))[:depth]
        return Ranked(seq_nos[order], sums[order], len(seq_nos), complete=len(seq_nos) <= depth)

    def _documents(self, addend: Addend) -> NDArray[np.int64]:
        """Give the documents that a constant scores, ascending."""
        if len(self._addends) <= FEW:
            return self._view.match(all_of([addend.where, addend.own]))
        # `where` may be long, and the same for all.
        own = self._view.match(addend.own)
        return own[contained(self._view.match(addend.where), own)]

    def score(self, seq_nos: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sum the weights for documents, NaN for those that meet no condition."""
        sums = np.zeros(len(seq_nos))
        found = np.zeros(len(seq_nos), dtype=np.bool_)
        guards: dict[int, NDArray[np.bool_]] = {}
        for addend in self._addends:
            if id(addend.guard) not in guards:
                guards[id(addend.guard)] = self._view.holds(addend.guard, seq_nos)
            holds = guards[id(addend.guard)] & self._view.holds(addend.own, seq_nos)
            sums[holds] += addend.weight
            found |= holds
        sums[~found] = np.nan
        return sums

    def openers(self, depth: int) -> list[Callable[[], object]]:
        """There is nothing to prepare."""
        del depth
        return []


@dataclass(frozen=True, slots=True, eq=False)
class _Weighed:
    """A list of a sum, and its weight. `ordered`: its scores are float32s, or all equal."""

    source: Source
    weight: float
    ordered: bool = True

    def part(self, top: Ranked) -> Part:
        """Give what the top of the list contributes."""
        last = float(top.scores[-1]) if len(top.scores) else 0.0
        return Part(
            top.seq_nos,
            top.scores * self.weight,
            beyond=0.0 if top.complete else last * self.weight,
            rest=self.rest,
            strict=not top.complete and self.ordered and keeps_order(self.weight, last),
            complete=top.complete,
        )

    def rest(self, seq_nos: NDArray[np.int64]) -> NDArray[np.float64]:
        """Give what the list contributes to given documents: 0 to those not in it."""
        return np.nan_to_num(self.source.score(seq_nos), nan=0.0) * self.weight


class SumList:
    """The documents that meet a condition, each with the sum of what its addends give (`ranking` has the arithmetic).

    `covered`: every document of the list has an addend. Otherwise those that have none score 0, and come last.
    `whole_leaf`: the addend whose documents are all of the list, where there is one; if it is the only one, its `guard`
    is its `where`.
    """

    scores_any = True

    def __init__(
        self,
        view: View,
        condition: Condition,
        addends: Sequence[Addend],
        *,
        covered: bool,
        whole_leaf: Addend | None,
        count: int | None,
    ) -> None:
        """Sum `addends` over the documents that meet `condition`, and count those as far as `count`."""
        self._view = view
        self._condition = condition
        self._covered = covered
        self._count = count
        scored = [addend for addend in addends if addend.leaf is not None]
        constants = [addend for addend in addends if addend.leaf is None]
        self._lists = [
            _Weighed(
                Remembered(LeafList(view, addend.leaf, addend.where, addend.guard, condition, count=count)),
                addend.weight,
            )
            for addend in scored
            if addend.leaf is not None
        ]
        self._whole = scored.index(whole_leaf) if whole_leaf is not None else None
        if constants:
            # Different sums of constants may round to one float32, so only equal ones keep their order.
            self._lists.append(_Weighed(Remembered(ConstantList(view, constants)), 1.0, ordered=len(constants) == 1))

    @property
    def condition(self) -> Condition | None:
        """Which documents are in the list."""
        return self._condition

    def top(self, depth: int) -> Ranked:
        """Give the best: deepen the lists until they are certain."""
        reach = self._first(depth)
        while True:
            tops = [each.source.top(reach) for each in self._lists]
            sums = add_up([each.part(top) for each, top in zip(self._lists, tops, strict=True)])
            if sums.settled(depth) or sums.complete:
                break
            reach *= _DEEPER
        error = sum(each.weight * top.max_error for each, top in zip(self._lists, tops, strict=True))
        seq_nos, scores = sums.seq_nos[:depth], sums.scores[:depth]
        if not self._covered and sums.complete and (len(sums) < depth or scores[-1] == 0):
            seq_nos, scores = self._with_tail(sums, depth)
        total, counted = self._total(sums, tops)
        return Ranked(
            seq_nos,
            scores,
            total,
            counted=counted,
            complete=counted and len(seq_nos) >= total,
            exact=error == 0,
            max_error=float(error),
        )

    def score(self, seq_nos: NDArray[np.int64]) -> NDArray[np.float64]:
        """Score documents, NaN for those not in the list."""
        if self._covered and len(self._lists) == 1 and self._whole is not None:
            return rounded(self._lists[0].source.score(seq_nos) * self._lists[0].weight)
        scores = np.full(len(seq_nos), np.nan)
        inside = self._view.holds(self._condition, seq_nos)
        chosen = seq_nos[inside]
        sums = np.zeros(len(chosen))
        for each in self._lists:
            sums += each.rest(chosen)
        scores[inside] = rounded(sums)
        return scores

    def openers(self, depth: int) -> list[Callable[[], object]]:
        """Read the top of every list."""
        reach = self._first(depth)
        if len(self._lists) < 2:  # noqa: PLR2004 - one list has nothing beside it
            return []
        return [partial(each.source.top, reach) for each in self._lists]

    def _first(self, depth: int) -> int:
        """How deep to read at first; one list alone need go no deeper than its reader."""
        return depth if len(self._lists) == 1 and self._lists[0].ordered else max(2 * depth, _FIRST_DEPTH)

    def _with_tail(self, sums: Sums, depth: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Add the documents that nothing scores."""
        matched = self._view.match(self._condition)
        tail = matched[~contained(np.sort(sums.seq_nos), matched)][:depth]
        seq_nos = np.concatenate([sums.seq_nos, tail])
        scores = np.concatenate([sums.scores, np.zeros(len(tail))])
        order = np.lexsort((seq_nos, -scores))[:depth]
        return seq_nos[order], scores[order]

    def _total(self, sums: Sums, tops: Sequence[Ranked]) -> tuple[int, bool]:
        """Count the list, and say whether that is exact; nothing costly is done for it."""
        if self._whole is not None:
            return tops[self._whole].total, tops[self._whole].counted
        if self._covered and sums.complete:
            return len(sums), True
        least = max([len(sums), *(top.total for top in tops)])
        wanted = self._count is None or least < self._count
        if sums.complete or (wanted and is_cheap(self._condition)):
            return len(self._view.match(self._condition)), True
        return least, False


class Floor:
    """A list without what scores below a minimum."""

    def __init__(self, source: Source, minimum: float) -> None:
        """Cut `source` at `minimum`."""
        self._source = source
        self._minimum = minimum

    @property
    def condition(self) -> Condition | None:
        """No condition says it."""
        return None

    def top(self, depth: int) -> Ranked:
        """Give the best that are good enough."""
        top = self._source.top(depth)
        count = int((top.scores >= self._minimum).sum())
        cut = count < len(top.seq_nos)
        return Ranked(
            top.seq_nos[:count],
            top.scores[:count],
            count if cut or not top.complete else top.total,
            counted=(cut and top.exact) or (top.complete and top.counted),
            complete=(cut and top.exact) or top.complete,
            exact=top.exact,
            max_error=top.max_error,
        )

    @property
    def scores_any(self) -> bool:
        """Whether it can `score`."""
        return self._source.scores_any

    def score(self, seq_nos: NDArray[np.int64]) -> NDArray[np.float64]:
        """Score documents, NaN for those not in the list."""
        scores = self._source.score(seq_nos)
        scores[scores < self._minimum] = np.nan
        return scores

    def openers(self, depth: int) -> list[Callable[[], object]]:
        """Prepare what is cut."""
        return self._source.openers(depth)
