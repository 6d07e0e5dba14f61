"""From a resolved query to lists over storage.

Filters become conditions of storage. What scores becomes the ranked list of a leaf, where there is but one, or a sum of
lists: a boolean inside a boolean adds its leaves to the outer one, each under the condition that the inner one matches.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from termwise.server.search.booleans import Addend, Floor, LeafList, SumList
from termwise.server.search.conditions import EVERYTHING, FEW, NOTHING, all_of, any_of, negated
from termwise.server.search.fusion import RankFused, ScoreFused
from termwise.server.search.pruning import prune
from termwise.server.search.query import Normalizer
from termwise.server.search.resolve import Combined, Fixed, NodeList, RankFusion, TextKey, Tokens, Words
from termwise.storage.types import Sparse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from termwise.server.search.ranking import Source
    from termwise.server.search.resolve import Node, ResolvedList
    from termwise.server.search.view import View
    from termwise.storage.types import Condition, Leaf, SparseVector


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """A leaf that scores."""

    leaf: Leaf
    weight: float

    @property
    def condition(self) -> Condition:
        """Which documents match."""
        return self.leaf


@dataclass(frozen=True, slots=True, eq=False)
class _Constant:
    """A condition that scores the same for all."""

    condition: Condition
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """A boolean.

    `rest` is what neither `must` nor `should` says, `required` all but `should`, `condition` all of it.
    """

    must: tuple[_Clause, ...]
    should: tuple[_Clause, ...]
    rest: Condition
    required: Condition
    condition: Condition
    minimum: int

    @property
    def covered(self) -> bool:
        """Whether every document that matches gets a score from some clause."""
        return any(map(_is_covered, self.must)) or (self.minimum > 0 and all(map(_is_covered, self.should)))

    def given_must(self, place: int) -> Condition:
        """What is left to ask of a document that matches one of the `must` clauses."""
        if len(self.must) > FEW:
            return self.condition  # sparing one clause is not worth a condition for each
        others = [clause.condition for at, clause in enumerate(self.must) if at != place]
        return all_of([*others, self.rest, any_of([clause.condition for clause in self.should], self.minimum)])

    def given_should(self, place: int) -> Condition:
        """What is left to ask of a document that matches one of the `should` clauses."""
        if self.minimum > 1 and len(self.should) > FEW:
            return self.condition
        if self.minimum <= 1:
            return self.required
        others = [clause.condition for at, clause in enumerate(self.should) if at != place]
        return all_of([self.required, any_of(others, self.minimum - 1)])


_Clause: TypeAlias = _Scored | _Constant | _Group


@dataclass(slots=True)
class Planner:
    """Plans one search.

    `vectors` are its expanded texts; `pruned` counts the tokens left out of each. Lists count their documents as far as
    `count`; None: all of them.
    """

    view: View
    vectors: Mapping[TextKey, SparseVector]
    count: int | None = None
    pruned: dict[Tokens, int] = field(default_factory=dict)
    _leaves: dict[Tokens, Leaf | None] = field(default_factory=dict)

    def plan(self, target: ResolvedList) -> Source:
        """Make the list that `target` describes."""
        return self._plan(target, self.count)

    def _plan(self, target: ResolvedList, count: int | None) -> Source:
        if isinstance(target, NodeList):
            return floored(self._list(target.node, count), target.min_score)
        if isinstance(target, RankFusion):
            return RankFused(
                self.view,
                [(self._plan(part, count), weight) for part, weight in target.parts],
                target.window,
                target.rank_constant,
            )
        return ScoreFused(
            self.view,
            [
                # How far an l2 norm can be off depends on how many documents its list has.
                (self._plan(part, None if normalizer is Normalizer.L2 else count), weight, normalizer)
                for part, weight, normalizer in target.parts
            ],
            target.window,
        )

    def _list(self, node: Node, count: int | None) -> Source:
        clause = self._clause(node, 1.0)
        addends = _addends(clause, EVERYTHING, None)
        covered = _is_covered(clause)
        only = addends[0] if covered and len(addends) == 1 else None
        if only is not None and only.leaf is not None:
            if only.weight == 1:
                return LeafList(self.view, only.leaf, only.where, only.where, clause.condition, count=count)
            alone = replace(only, guard=only.where)
            return SumList(self.view, clause.condition, [alone], covered=True, whole_leaf=alone, count=count)
        whole = next((each for each in addends if each.leaf is not None and _needs(clause, each.leaf)), None)
        return SumList(self.view, clause.condition, addends, covered=covered, whole_leaf=whole, count=count)

    def _clause(self, node: Node, factor: float) -> _Clause:
        """Plan a node under booleans whose boosts are `factor` together."""
        weight = factor * node.boost
        if isinstance(node, Fixed):
            return _Constant(node.condition, weight)
        if isinstance(node, Combined):
            return self._group(node, weight)
        leaf = self._leaf(node)
        if leaf is None:
            return _Constant(NOTHING, weight)
        return _Scored(leaf, weight) if weight > 0 else _Constant(leaf, weight)

    def _group(self, node: Combined, weight: float) -> _Group:
        must = tuple(self._clause(each, weight) for each in node.must)
        should = tuple(self._clause(each, weight) for each in node.should)
        filters = [self._clause(each, 0.0).condition for each in node.filter]
        banned = [negated(self._clause(each, 0.0).condition) for each in node.must_not]
        needed = 1 if should and not node.must and not node.filter else 0
        minimum = max(needed, node.minimum or 0)
        rest = all_of([*filters, *banned])
        required = all_of([*(each.condition for each in must), rest])
        condition = all_of([required, any_of([each.condition for each in should], minimum)])
        return _Group(must, should, rest, required, condition, minimum)

    def _leaf(self, node: Words | Tokens) -> Leaf | None:
        """Give the leaf of a node, None where pruning left nothing of it or its text has no tokens."""
        if isinstance(node, Words):
            return node.leaf
        if node not in self._leaves:
            self._leaves[node] = self._sparse(node)
        return self._leaves[node]

    def _sparse(self, node: Tokens) -> Leaf | None:
        vector = self.vectors[node.vector] if isinstance(node.vector, TextKey) else node.vector
        if node.pruning is not None and len(vector):
            self.view.check()
            statistics = self.view.reader.token_statistics(node.field, vector.tokens)
            whole, vector = vector, prune(vector, statistics, node.pruning)
            self.pruned[node] = len(whole) - len(vector)
        return Sparse(node.field, vector) if len(vector) else None


def floored(source: Source, minimum: float | None) -> Source:
    """Drop what scores below a minimum; scores are never negative."""
    return source if minimum is None or minimum <= 0 else Floor(source, minimum)


def _is_covered(clause: _Clause) -> bool:
    return clause.covered if isinstance(clause, _Group) else True


def _needs(clause: _Clause, leaf: Leaf) -> bool:
    """Whether a boolean's documents all match `leaf`, being one of its `must` clauses or of those inside them."""
    if isinstance(clause, _Group):
        return any(_needs(each, leaf) for each in clause.must)
    return isinstance(clause, _Scored) and clause.leaf is leaf


def _addends(clause: _Clause, outside: Condition, guard: Condition | None) -> list[Addend]:
    """Give all that scores in a clause.

    `outside` is what the booleans around the clause ask besides it, `guard` the same without the outermost one's share:
    whoever asks for a guard knows that the document is in that one. None: the clause is the outermost itself.
    """
    if isinstance(clause, _Scored):
        return [Addend(clause.leaf, clause.leaf, clause.weight, outside, guard or EVERYTHING)]
    if isinstance(clause, _Constant):
        return [Addend(None, clause.condition, clause.weight, outside, guard or EVERYTHING)]
    found: list[Addend] = []
    rest: Condition = EVERYTHING
    around, inside = outside, guard or EVERYTHING
    for clauses, given in ((clause.must, clause.given_must), (clause.should, clause.given_should)):
        for place, each in enumerate(clauses):
            previous, rest = rest, given(place)
            if rest is not previous:
                # What is the same object is asked of storage once.
                around = all_of([outside, rest])
                inside = EVERYTHING if guard is None else all_of([guard, rest])
            found += _addends(each, around, inside)
    return found
