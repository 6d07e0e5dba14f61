"""What kernels read of a tile: where a query's tokens are, exact weights, and whole blocks of postings and rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import carray

from termwise.storage.tantivy.compiling import inner, pointer

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK: Final = 32768
"""Documents whose scores are added up together: 128 KB of float32, for a second-level cache. Smaller blocks fit a
first-level cache and were slower: each token's postings are then read in more, shorter pieces."""

_MASK: Final = np.uint16(BLOCK - 1)

_NARROW: Final = 256
"""Postings that are compared with all at once, rather than halved further."""

# Columns of the directory, which has a line a tile: sizes, then addresses of the tile's arrays. FOLLOWS is 0 where each
# document has one row.
SIZE, LIVE, TOKENS, CUT_TOKENS, CUT_WIDTH, ROW_TOKENS, ROW_WIDTH = range(7)
SEQ_NOS, ALIVE, SORTED, ORDER, STARTS, DOCS, WEIGHTS, MAXIMA, MINIMA, CUTS, ROWS, FOLLOWS = range(7, 19)


def _open(entry: NDArray[np.int64]) -> Any:
    return (
        entry[CUT_TOKENS],
        entry[CUT_WIDTH],
        entry[ROW_TOKENS],
        entry[ROW_WIDTH],
        pointer(entry[STARTS], np.uint32),
        pointer(entry[DOCS], np.uint16),
        pointer(entry[WEIGHTS], np.float32),
        pointer(entry[CUTS], np.uint32),
        pointer(entry[ROWS], np.uint8),
    )


def _permits_of(entry: NDArray[np.int64], permitted: NDArray[np.int64], tile: int) -> Any:
    return carray(pointer(permitted[tile] if len(permitted) else entry[ALIVE], np.uint8), entry[SIZE])


def _locate(directory: NDArray[np.int64], numbers: NDArray[np.int32], homes: NDArray[np.int32]) -> None:
    for tile in range(len(directory)):
        known = pointer(directory[tile, SORTED], np.int32)
        order = pointer(directory[tile, ORDER], np.int32)
        for place in range(len(numbers)):
            first, left = 0, directory[tile, TOKENS]
            while left > 1:
                half = left >> 1
                first = first + half if known[first + half] <= numbers[place] else first
                left -= half
            found = left == 1 and known[first] == numbers[place]
            homes[tile, place] = order[first] if found else -1


def _weight(tile: Any, token: int, doc: int) -> Any:
    cut_tokens, cut_width, row_tokens, row_width, starts, docs, weights, cuts, rows = tile
    if token < row_tokens and rows[token * row_width + doc] == 0:
        return np.float32(0)
    if token < cut_tokens:
        at = token * cut_width + doc // BLOCK
        first, last = np.int64(cuts[at]), np.int64(cuts[at + 1])
    else:
        first, last = np.int64(starts[token]), np.int64(starts[token + 1])
    left = last - first
    while left > _NARROW:
        half = left >> 1
        first = first + half if docs[first + half] < doc else first
        left -= half
    below = np.uint16(0)
    wanted = np.uint16(doc)
    for at in range(first, first + left):  # 16 bits and no branches, so that it becomes vector instructions
        below = np.uint16(below + np.uint16(docs[at] < wanted))
    first += np.int64(below)
    return weights[first] if first < last and docs[first] == doc else np.float32(0)


weight_of: Any = inner(_weight)
"""Give a document's exact weight of a token, 0 where it has none."""


def _dot(tile: Any, homes: NDArray[np.int32], factors: NDArray[np.float32], doc: int) -> Any:
    score = np.float32(0)
    matched = False
    for place in range(len(homes)):
        if homes[place] >= 0:
            weight = weight_of(tile, homes[place], doc)
            if weight > 0:
                score += factors[place] * weight
                matched = True
    return score if matched else np.float32(-1)


def _add_postings(
    tile: Any, token: int, factor: Any, block: int, cursors: NDArray[np.int64], place: int, scores: NDArray[np.float32]
) -> None:
    cut_tokens, cut_width, _, _, starts, docs, weights, cuts, _ = tile
    if token < cut_tokens:
        at = token * cut_width + block
        for posting in range(np.int64(cuts[at]), np.int64(cuts[at + 1])):
            scores[docs[posting] & _MASK] += factor * weights[posting]
        return
    posting, last = cursors[place], np.int64(starts[token + 1])
    while posting < last and docs[posting] < block * BLOCK:
        posting += 1
    while posting < last and docs[posting] < (block + 1) * BLOCK:
        scores[docs[posting] & _MASK] += factor * weights[posting]
        posting += 1
    cursors[place] = posting


def _add_four_rows(rows: Any, a: int, b: int, c: int, d: int, steps: Any, scores: NDArray[np.float32]) -> None:
    step_a, step_b, step_c, step_d = steps
    for doc in range(len(scores)):
        scores[doc] += (step_a * np.float32(rows[a + doc]) + step_b * np.float32(rows[b + doc])) + (
            step_c * np.float32(rows[c + doc]) + step_d * np.float32(rows[d + doc])
        )


def _add_two_rows(rows: Any, a: int, b: int, step_a: Any, step_b: Any, scores: NDArray[np.float32]) -> None:
    for doc in range(len(scores)):
        scores[doc] += step_a * np.float32(rows[a + doc]) + step_b * np.float32(rows[b + doc])


add_four_rows: Any = inner(_add_four_rows, fused=True)
add_two_rows: Any = inner(_add_two_rows, fused=True)


def _add_rows(
    tile: Any,
    starts: NDArray[np.int64],
    steps: NDArray[np.float32],
    first: int,
    scores: NDArray[np.float32],
) -> None:
    rows = tile[8]
    at = 0
    while at + 2 < len(starts):
        four = (steps[at], steps[at + 1], steps[at + 2], steps[at + 3])
        add_four_rows(
            rows,
            starts[at] + first,
            starts[at + 1] + first,
            starts[at + 2] + first,
            starts[at + 3] + first,
            four,
            scores,
        )
        at += 4
    if at < len(starts):
        add_two_rows(rows, starts[at] + first, starts[at + 1] + first, steps[at], steps[at + 1], scores)


open_tile: Any = inner(_open)
"""Take a line of the directory apart: sizes and arrays, in the order in which `_weight` names them."""

permits_of: Any = inner(_permits_of)
"""Give the tile's bytes that tell which documents may be found."""

locate: Any = inner(_locate)
"""Find each query token in each tile: its number there, or -1."""

dot: Any = inner(_dot)
"""Score a document exactly, in the query's order; below 0 where it does not match."""

add_postings: Any = inner(_add_postings)
"""Add a token's exact products to the scores of a block. Tokens without cuts go block by block, by their cursor."""

add_rows: Any = inner(_add_rows)
"""Add rows to the scores of documents from `first` on. `starts`, where each row begins, is of even length: a row whose
step is 0 fills it up."""
