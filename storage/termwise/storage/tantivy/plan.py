"""Ranks sparse vectors by tantivy alone, for indices without the exact path.

Each posting's bucket bounds its weight within a factor of 1.31, so a query of constant scores, one a bucket, orders
documents nearly right. The best are read back and scored exactly, and more are taken until no other document can be
among the best. The answer is exact, whatever that takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from tantivy import Occur, Query

from termwise.storage.tantivy.codec import BUCKETS_PER_OCTAVE
from termwise.storage.types import Ranking

if TYPE_CHECKING:
    from termwise.storage.tantivy.conditions import Conditions
    from termwise.storage.tantivy.layout import FieldPlace
    from termwise.storage.tantivy.reader import TantivyReader
    from termwise.storage.types import Condition, SparseVector

_CENTRE: Final = 0.5 / BUCKETS_PER_OCTAVE
_RATIO: Final = 2**_CENTRE * 1.001
"""A true score is at most this many times the one from bucket centres; .001 covers rounding in float32."""

_SLACK: Final = 1e-30
"""Added to the bound, in units of the largest product: what products too small for float32 can amount to."""

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


def rank_sparse(
    reader: TantivyReader,
    conditions: Conditions,
    place: FieldPlace,
    vector: SparseVector,
    depth: int,
    where: Condition | None,
) -> Ranking:
    """Rank documents exactly, with tantivy's buckets as the guide."""
    clauses = []
    for token, factor in zip(vector.tokens, vector.weights.tolist(), strict=True):
        for term, bucket, _ in conditions.buckets(place, token):
            clauses.append((term, np.log2(factor) + bucket / BUCKETS_PER_OCTAVE + _CENTRE))
    if not clauses:
        return Ranking(np.empty(0, np.int64), np.empty(0, np.float32), 0)
    unit = max(exponent for _, exponent in clauses)
    parts = [
        (Occur.Should, Query.const_score_query(conditions.term("sparse", term), float(2.0 ** (exponent - unit))))
        for term, exponent in clauses
    ]
    query = reader.with_condition(Query.boolean_query(parts), where)
    exact: list[np.float32] = []
    limit = depth + _FIRST
    while True:
        hits, total = reader.hits(query, limit, count=True)
        for _, address in hits[len(exact) :]:
            held = reader.vector(address, place.number)
            exact.append(np.float32(np.nan) if held is None else dot(vector, held))
        scores = np.array(exact, dtype=np.float32)
        if len(hits) >= total:
            break
        worst = np.partition(scores, -depth)[-depth]
        if np.log2(float(worst) or 5e-324) - unit > np.log2(hits[-1][0] * _RATIO + _SLACK):
            break
        limit *= 4
    seq_nos = reader.seq_nos([address for _, address in hits])
    order = np.lexsort((seq_nos, -scores))[:depth]
    return Ranking(seq_nos[order], scores[order], total)
