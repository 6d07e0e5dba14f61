"""Tiles whose documents have several rows: a block's sums become those of documents, and candidates' exact scores.

The first row of a document gets the greatest sum of its rows, and the others none, before anything is compared or
counted. The greatest upper bound of rows bounds their greatest score, and a lower bound likewise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from termwise.storage.tantivy.bounds import ROW_STARTS, ROW_STEPS, look_up
from termwise.storage.tantivy.candidates import STRETCH, best_of
from termwise.storage.tantivy.compiling import inner, pointer
from termwise.storage.tantivy.postings import FOLLOWS, SIZE, add_rows, dot

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _fold(entry: NDArray[np.int64], first: int, unmatched: np.int32, bits: NDArray[np.int32]) -> None:
    follows = pointer(entry[FOLLOWS], np.uint8)
    best = unmatched
    for row in range(len(bits) - 1, -1, -1):
        best = max(np.int32(bits[row]), best)
        inside = -np.int32(follows[first + row])  # all bits or none, so that there is no branch to guess
        bits[row] = (unmatched & inside) | (best & ~inside)
        best = np.int32((best & inside) | (unmatched & ~inside))


def _complete(tile: Any, query: Any, rows: int, poor: np.int32, first: int, scores: NDArray[np.float32]) -> None:
    bits = scores.view(np.int32)
    row_starts, row_steps = query[ROW_STARTS][: (rows + 1) & ~1], query[ROW_STEPS]
    for begin in range(0, len(scores), STRETCH):
        stop = min(len(scores), begin + STRETCH)
        if poor > 0 and best_of(bits[begin:stop]) < poor:
            scores[begin:stop] = np.float32(0)
        else:
            add_rows(tile, row_starts, row_steps, first + begin, scores[begin:stop])


def _look_up_all(
    tile: Any,
    query: Any,
    count: int,
    greatest: Any,
    enough: Any,
    first: int,
    permitted: NDArray[np.uint8],
    scores: NDArray[np.float32],
) -> None:
    for row in range(len(permitted)):
        score = np.float32(0)
        if permitted[row] != 0:
            score = look_up(tile, query, 0, count, first + row, score, greatest, enough)
        scores[row] = max(score, np.float32(0))


def _best_dot(
    entry: NDArray[np.int64], tile: Any, homes: NDArray[np.int32], factors: NDArray[np.float32], row: int
) -> Any:
    score = dot(tile, homes, factors, row)
    if entry[FOLLOWS] != 0:
        follows = pointer(entry[FOLLOWS], np.uint8)
        row += 1
        while row < entry[SIZE] and follows[row] != 0:
            score = max(score, dot(tile, homes, factors, row))
            row += 1
    return score


fold: Any = inner(_fold)
"""Give each document's first row the best of its rows from the block's `first` on, and the others `unmatched`.

Scores are told by their bits, which order as they do: none is negative, and `unmatched`, 0 or what -0.0 looks like, is
below all.
"""

complete: Any = inner(_complete)
"""Add the rows of frequent tokens, but where the sums so far are below `poor`: those become 0."""

look_up_all: Any = inner(_look_up_all)
"""Score the permitted documents of a block one by one, 0 where they do not match or are below `enough`.

`greatest` bounds what they can score, as in `gather`.
"""

best_dot: Any = inner(_best_dot)
"""Score a document, named by its first row, exactly; below 0 where it does not match."""
