"""scipy: the scores of all documents by one product, then a partial sort.

Three ways are tried on the queries at hand, and the fastest is the lane: a slice of columns times the weights; the
columns of the query added up one by one with numpy; all rows times a dense query. Exact, in float32. The matrix is made
beforehand; memory is that of its arrays.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from peers.base import Answer, Lane, Truth
from peers.columns import Columns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vectors import Query

_TRIED = 8


class Scipy(Columns):
    """Exact scores by scipy."""

    name = "scipy"

    def lanes(self, queries: Sequence[Query], k: int, truth: Truth) -> list[Lane]:
        """Choose the fastest way for these queries."""
        del truth
        rows, columns = self.collection.documents, self.collection.columns
        prepared = {
            "columns": list(queries),
            "column by column": list(queries),
            "rows": [self._dense(query) for query in queries[:_TRIED]],
        }
        ways: dict[str, Callable[[Any], Answer]] = {
            "columns": lambda query: _best(columns[:, query[0]] @ query[1], k),
            "column by column": lambda query: _best(self._add_up(*query), k),
            "rows": lambda dense: _best(rows @ dense, k),
        }
        times = {name: _median(way, prepared[name][:_TRIED]) for name, way in ways.items()}
        fastest = min(times, key=lambda name: times[name])
        if fastest == "rows":
            prepared["rows"] = [self._dense(query) for query in queries]
        return [Lane("scipy", prepared[fastest], ways[fastest], lambda answer: answer, settings=fastest)]

    def _dense(self, query: Query) -> np.ndarray[Any, Any]:
        dense = np.zeros(self.collection.documents.shape[1], np.float32)
        dense[query[0]] = query[1]
        return dense

    def _add_up(self, tokens: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        columns = self.collection.columns
        indptr, indices, data = columns.indptr, columns.indices, columns.data
        scores = np.zeros(columns.shape[0], np.float32)
        for token, weight in zip(tokens, weights, strict=True):
            begin, end = indptr[token], indptr[token + 1]
            scores[indices[begin:end]] += data[begin:end] * weight
        return scores


def _best(scores: np.ndarray[Any, Any], k: int) -> Answer:
    best = np.argpartition(scores, len(scores) - k)[-k:]
    best = best[np.argsort(-scores[best])]
    return best, scores[best]


def _median(way: Callable[[Any], Any], prepared: Sequence[Any]) -> float:
    times = []
    for query in prepared:
        took = []
        for _ in range(3):
            began = time.perf_counter()
            way(query)
            took.append(time.perf_counter() - began)
        times.append(min(took))
    return statistics.median(times)
