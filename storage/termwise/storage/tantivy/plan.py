"""Ranks sparse vectors by tantivy alone, for indices without the exact path.

Each posting's bucket bounds its weight within a factor of 1.31, so a query of constant scores, one a bucket, orders
documents nearly right. The best are read back and scored exactly, and more are taken until no other document can be
among the best: the answer is exact, whatever that takes.

With a budget of postings, the (token, bucket) pairs that can contribute most are taken as far as it goes. Scores are
exact still, but a document may be missing: none whose score is more than `Ranking.max_error` above the one that is
given in its place. What a document gets from pairs that were left out is at most the sum, over tokens, of the largest
of them: a document has one pair a token.

A document of several vectors has the pairs of its greatest weights, which bound what each of them scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from tantivy import Occur, Query

from termwise.storage.tantivy.codec import BUCKETS_PER_OCTAVE
from termwise.storage.types import Ranking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from termwise.storage.tantivy.conditions import Conditions
    from termwise.storage.tantivy.layout import FieldPlace
    from termwise.storage.tantivy.reader import TantivyReader
    from termwise.storage.types import Condition, SparseVector

_CENTRE: Final = 0.5 / BUCKETS_PER_OCTAVE
_RATIO: Final = 2**_CENTRE * 1.001
"""A true score is at most this many times the one from bucket centres; .001 covers rounding in float32."""

_SLACK: Final = 1e-30
"""Added to the bound, in units of the largest product: what products too small for float32 can amount to."""

_LEAST_BUDGET: Final = 100_000
"""Postings that are always worth reading: half a millisecond."""

_FIRST: Final = 256
"""Candidates beyond the depth that the first round takes."""


def dot(query: SparseVector, document: SparseVector) -> np.float32:
    """Score a document as every path does: float32 products, added in the query's order; NaN where there are none."""
    weights = dict(zip(document.tokens, document.weights, strict=True))
    pairs = [
        (factor, weights[token]) for token, factor in zip(query.tokens, query.weights, strict=True) if token in weights
    ]
    if not pairs:
        return np.float32(np.nan)
    factors, values = np.array(pairs, dtype=np.float32).T
    with np.errstate(over="ignore", under="ignore"):
        return min(np.cumsum(factors * values, dtype=np.float32)[-1], np.finfo(np.float32).max)


def best_dot(query: SparseVector, vectors: Sequence[SparseVector]) -> np.float32:
    """Score a document by the best of its vectors; NaN where none matches."""
    scores = [dot(query, vector) for vector in vectors]
    return max((score for score in scores if not np.isnan(score)), default=np.float32(np.nan))


def rank_sparse(
    reader: TantivyReader,
    conditions: Conditions,
    place: FieldPlace,
    vector: SparseVector,
    depth: int,
    where: Condition | None,
    *,
    budget: int | None = None,
    count: int | None = None,
) -> Ranking:
    """Rank documents with tantivy's buckets as the guide, exactly but for a `budget` (see `postings_budget`).

    Matches are counted as far as `count`, all of them by default; it matters where something is left out.
    """
    clauses = [
        _Clause(token, term, float(np.log2(factor)) + bucket / BUCKETS_PER_OCTAVE + _CENTRE, documents)
        for token, factor in zip(vector.tokens, vector.weights.tolist(), strict=True)
        for term, bucket, documents in conditions.buckets(place, token)
    ]
    if not clauses:
        return Ranking(np.empty(0, np.int64), np.empty(0, np.float32), 0)
    clauses.sort(key=lambda clause: -clause.exponent)
    unit = clauses[0].exponent
    taken = len(clauses) if budget is None else _affordable(clauses, budget)
    left_out: dict[str, float] = {}
    for clause in clauses[taken:]:
        left_out.setdefault(clause.token, 2.0 ** (clause.exponent + _CENTRE - unit) * 1.001)
    parts = [
        (Occur.Should, Query.const_score_query(conditions.term("sparse", c.term), float(2.0 ** (c.exponent - unit))))
        for c in clauses[:taken]
    ]
    query = reader.with_condition(Query.boolean_query(parts), where)
    exact: list[np.float32] = []
    limit = depth + _FIRST
    while True:
        hits, total = reader.hits(query, limit, count=True)
        for _, address in hits[len(exact) :]:
            exact.append(best_dot(vector, reader.vectors(address, place.number)))
        scores = np.array(exact, dtype=np.float32)
        if len(hits) >= total:
            break
        worst = np.partition(scores, -depth)[-depth]
        if np.log2(float(worst) or 5e-324) - unit > np.log2(hits[-1][0] * _RATIO + _SLACK):
            break
        limit *= 4
    if left_out and total < depth:  # who else matches is among what was left out
        return rank_sparse(reader, conditions, place, vector, depth, where)
    seq_nos = reader.seq_nos([address for _, address in hits])
    order = np.lexsort((seq_nos, -scores))[:depth]
    if not left_out:
        return Ranking(seq_nos[order], scores[order], total)
    unseen = (hits[-1][0] * _RATIO + _SLACK if len(hits) < total else 0.0) + sum(left_out.values())
    error = max(0.0, unseen * 2.0**unit - float(scores[order[-1]]))
    counted = count is None or total < count
    if counted:
        every = reader.with_condition(conditions.any_term("sparse", [clause.term for clause in clauses]), where)
        total = reader.hits(every, 1, count=True)[1]
    return Ranking(seq_nos[order], scores[order], total, error, counted=counted)


def postings_budget(documents: int, tokens: int) -> int:
    """Give the postings that a search may read: half a posting a document for a query of 30 tokens, more for longer.

    (Measured on SPLADE vectors: that keeps .995 of recall at half the time.)
    """
    return max(_LEAST_BUDGET, documents * max(tokens, 30) // 60)


class _Clause(NamedTuple):
    """The documents that hold a token in one bucket; `exponent` is the base-2 logarithm of what they get for it."""

    token: str
    term: str
    exponent: float
    documents: int


def _affordable(clauses: Sequence[_Clause], budget: int) -> int:
    """Count the first clauses that a budget of postings pays for, one at least."""
    spent = np.cumsum([clause.documents for clause in clauses])
    return max(1, int(np.searchsorted(spent, budget, side="right")))
