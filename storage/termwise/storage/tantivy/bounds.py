"""What a query can reach in a tile: upper bounds by token, and what adding it up takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from termwise.storage.tantivy.compiling import inner, pointer
from termwise.storage.tantivy.postings import (
    BLOCK,
    FOLLOWS,
    MAXIMA,
    MINIMA,
    ROW_TOKENS,
    ROW_WIDTH,
    SIZE,
    STARTS,
    weight_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVELS: Final = np.float32(255)
"""Steps of a row's weights."""

SEGMENT_COST: Final = np.float32(40)
"""What finding a token's postings in a block takes, in postings."""

ROW_COST: Final = np.float32(450)
"""What adding a row to a block takes, in postings."""

_LEAST: Final = 1e-30
_GREATEST: Final = 1e37
"""Products and sums between these round by a factor, with room for a query of any length."""

# What a query comes to in a tile; arrays as long as the query, filled as far as there are tokens.
TILE_TOKENS, FACTORS, BOUNDS, COSTS, CURSORS, ORDERED, ROW_STARTS, ROW_STEPS = range(8)


def _make_query(size: int) -> Any:
    return (
        np.empty(size, np.int64),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size + 1, np.int64),
        np.empty(size + 1, np.float32),
    )


def _bound(entry: NDArray[np.int64], homes: NDArray[np.int32], factors: NDArray[np.float32], query: Any) -> Any:
    tokens, parts, bounds, costs, cursors, order, row_starts, row_steps = query
    starts, maxima = pointer(entry[STARTS], np.uint32), pointer(entry[MAXIMA], np.float32)
    blocks = np.float32((entry[SIZE] + BLOCK - 1) // BLOCK)
    count = rows = 0
    greatest = by_rows = work = np.float32(0)
    for place in range(len(homes)):
        token = homes[place]
        if token < 0:
            continue
        tokens[count] = token
        parts[count] = factors[place]
        bounds[count] = factors[place] * maxima[token]
        cursors[count] = starts[token]
        greatest += bounds[count]
        at = count
        if token < entry[ROW_TOKENS]:
            row_starts[rows] = token * entry[ROW_WIDTH]
            row_steps[rows] = bounds[count] / LEVELS
            by_rows += bounds[count]
            costs[count] = ROW_COST
            while at > rows:
                order[at] = order[at - 1]
                at -= 1
            rows += 1
        else:
            costs[count] = np.float32(starts[token + 1] - starts[token]) / blocks + SEGMENT_COST
        work += costs[count]
        order[at] = count
        count += 1
    if rows & 1:
        row_starts[rows] = row_starts[0]
        row_steps[rows] = np.float32(0)
    return count, rows, greatest, by_rows, work


def _look_up(tile: Any, query: Any, first: int, last: int, doc: int, score: Any, left: Any, floor: Any) -> Any:
    tokens, parts, bounds, _, _, order, _, _ = query
    row_tokens, row_width, rows = tile[2], tile[3], tile[8]
    for at in range(last - 1, first - 1, -1):
        place = order[at]
        left -= bounds[place]
        if tokens[place] < row_tokens:
            score += bounds[place] / LEVELS * np.float32(rows[tokens[place] * row_width + doc])
        else:
            score += parts[place] * weight_of(tile, tokens[place], doc)
        if score + left < floor:
            return np.float32(-1)
    return score


def _survey(directory: NDArray[np.int64], homes: NDArray[np.int32], factors: NDArray[np.float32]) -> Any:
    frequencies = np.zeros(len(factors), np.int64)
    covered: Any = 0
    extreme: Any = False
    for number in range(len(directory)):
        starts = pointer(directory[number, STARTS], np.uint32)
        maxima = pointer(directory[number, MAXIMA], np.float32)
        minima = pointer(directory[number, MINIMA], np.float32)
        greatest = 0.0
        for place in range(len(factors)):
            token = homes[number, place]
            if token < 0:
                continue
            postings = np.int64(starts[token + 1]) - np.int64(starts[token])
            frequencies[place] += postings if directory[number, FOLLOWS] == 0 else 0
            covered += postings if token < directory[number, ROW_TOKENS] else 0
            greatest += np.float64(factors[place]) * np.float64(maxima[token])
            extreme |= np.float64(factors[place]) * np.float64(minima[token]) < _LEAST
        extreme |= greatest > _GREATEST
    most: Any = 0
    for place in range(len(factors)):
        most = max(most, frequencies[place])
    return most, covered, extreme


make_query: Any = inner(_make_query)
"""Make room for what a query comes to in a tile."""

bound: Any = inner(_bound)
"""List the tokens that the tile has, in order those with rows first.

Gives their number, the number of rows, the greatest score of all and of rows alone, and the work a block in postings.
"""

look_up: Any = inner(_look_up)
"""Add single weights of a document, tokens from before `last` down to `first` in order; below 0 once `floor` is out of
reach, where `left` bounds what these tokens can add, with room for the rounding of a subtraction by token."""

survey: Any = inner(_survey)
"""Give the greatest document frequency of a query token, the postings that rows stand for, and whether products may be
so small or sums so large that they do not round by a factor. Tiles whose documents have several rows count for no
document frequency."""
