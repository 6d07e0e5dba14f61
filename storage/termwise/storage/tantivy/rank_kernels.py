"""The search of the exact path: one compiled call over all tiles of a field.

A tile is searched by blocks of 32,768 documents. The weights of the query's tokens are added up in a buffer that stays
in the second-level cache: exact postings first, then, for tokens that have one, dense rows of one byte a document. A
row rounds up, so that the sums are upper bounds, off by at most the query's weight over 255 of each row's maximum.
Whoever may be among the best becomes a candidate; the few that still may at the end are scored exactly, in the query's
order.

Once the k-th best is known to score T, tiles whose greatest possible score is below T are skipped, and rows are not
added where the sums so far cannot reach T with them. Where matches are to be counted, nothing is skipped until there
are enough of them.

In a tile whose documents have several rows, the sums of a block become those of documents before they are compared
(see `folding`).

Queries whose products leave the range in which float32 rounds by a factor, and rankings so deep that scoring the
candidates would take longer, go the plain way: exact postings alone, added up in the query's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from termwise.storage.tantivy.bounds import (
    CURSORS,
    FACTORS,
    LEVELS,
    ORDERED,
    TILE_TOKENS,
    bound,
    make_query,
    survey,
)
from termwise.storage.tantivy.candidates import (
    COUNTED,
    FOUND,
    SKIPPED,
    bits_of,
    collect,
    floor_of,
    gather,
    make_found,
    select,
)
from termwise.storage.tantivy.compiling import compile_kernel, inner, pointer
from termwise.storage.tantivy.folding import best_dot, complete, fold, look_up_all
from termwise.storage.tantivy.heaps import LARGEST, drain, key, offer
from termwise.storage.tantivy.postings import (
    ALIVE,
    BLOCK,
    FOLLOWS,
    LIVE,
    SEQ_NOS,
    SIZE,
    STARTS,
    add_postings,
    locate,
    open_tile,
    permits_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOOK_UP: Final = 200
"""What looking up one weight takes, in postings: mostly waiting for memory."""

_EXACT_WEIGHT: Final = 45
"""The same for a weight of a document whose neighbourhood has just been read."""

_NO_MATCH: Final = np.int32(-(2**31))
"""The bits of -0.0."""

_SPARE: Final = 4096
"""Room for candidates beyond twice the depth."""


def _add_block(tile: Any, query: Any, first: int, count: int, block: int, scores: NDArray[np.float32]) -> None:
    """Add up the postings of the tokens from the `first` in order."""
    for doc in range(len(scores)):
        scores[doc] = np.float32(0)
    for at in range(first, count):
        place = query[ORDERED][at]
        add_postings(tile, query[TILE_TOKENS][place], query[FACTORS][place], block, query[CURSORS], place, scores)


add_block: Any = inner(_add_block)


def _add_documents(  # noqa: PLR0913 - as _search_tile
    entry: NDArray[np.int64],
    tile: Any,
    query: Any,
    sizes: Any,
    enough: Any,
    block: int,
    permitted: NDArray[np.uint8],
    scores: NDArray[np.float32],
    room: NDArray[np.float32],
) -> None:
    """Add up a block whose documents have several rows. Whoever cannot reach `enough` may get less."""
    rows, tokens, few, by_rows, greatest = sizes
    if few:
        look_up_all(tile, query, tokens, greatest, enough, block * BLOCK, permitted, scores)
    else:
        add_block(tile, query, rows, tokens, block, scores)
        if rows > 0:
            poor = bits_of(max(enough - by_rows, np.float32(0)), room)
            complete(tile, query, rows, poor, block * BLOCK, scores)
    fold(entry, block * BLOCK, np.int32(0), scores.view(np.int32))


add_documents: Any = inner(_add_documents)


def _search_tile(  # noqa: PLR0913 - arrays are all that a kernel can take
    entry: NDArray[np.int64],
    allowed: NDArray[np.uint8],
    filled: NDArray[np.int32],
    homes: NDArray[np.int32],
    factors: NDArray[np.float32],
    base: int,
    count: int,
    query: Any,
    buffer: NDArray[np.float32],
    found: Any,
) -> bool:
    state = found[3]
    tile = open_tile(entry)
    tokens, rows, greatest, by_rows, work = bound(entry, homes, factors, query)
    if tokens == 0:
        return True
    excess = by_rows / LEVELS * np.float32(1.001)
    slack = np.float32(1) + np.float32(len(factors) + 4) * np.float32(2.4e-7)
    several = entry[FOLLOWS] != 0
    plan = (np.int64(0) if several else rows, by_rows, excess, slack, len(filled) > 0)
    for block in range((entry[SIZE] + BLOCK - 1) // BLOCK):
        first, last = block * BLOCK, min(entry[SIZE], (block + 1) * BLOCK)
        permits = np.int64(filled[block]) if len(filled) else last - first
        counting = state[COUNTED] < count
        floor = floor_of(found) / slack
        if permits == 0:
            continue
        state[SKIPPED] |= not counting
        if not counting and greatest < floor:
            continue
        few = permits * tokens * _LOOK_UP < work
        scores = buffer[: last - first]
        if several:
            sizes = (rows, tokens, few, by_rows, greatest * slack)
            enough = np.float32(0) if counting else floor
            add_documents(entry, tile, query, sizes, enough, block, allowed[first:last], scores, found[4])
        elif few:
            if not gather(tile, query, plan, tokens, greatest, base, first, allowed[first:last], counting, found):
                return False
            continue
        else:
            add_block(tile, query, rows, tokens, block, scores)
        if not collect(tile, query, plan, base, first, allowed[first:last], counting, scores, found):
            return False
    return True


search_tile: Any = inner(_search_tile)


def _search_fast(
    directory: NDArray[np.int64],
    permitted: NDArray[np.int64],
    filled: NDArray[np.int32],
    homes: NDArray[np.int32],
    factors: NDArray[np.float32],
    count: int,
    found: Any,
) -> bool:
    """Find the candidates; False where there are too many."""
    query = make_query(len(factors))
    buffer = np.empty(BLOCK, np.float32)
    base = blocks = 0
    for number in range(len(directory)):
        entry = directory[number]
        allowed = permits_of(entry, permitted, number)
        those = filled[blocks : blocks + (entry[SIZE] + BLOCK - 1) // BLOCK]
        if not search_tile(entry, allowed, those, homes[number], factors, base, count, query, buffer, found):
            return False
        base += entry[SIZE]
        blocks += len(those)
    return True


def _score_candidates(
    directory: NDArray[np.int64],
    homes: NDArray[np.int32],
    factors: NDArray[np.float32],
    found: Any,
    keys: NDArray[np.uint64],
) -> int:
    """Score exactly whoever may still be among the best; give the number of keys."""
    numbers, uppers, _, state, room = found
    floor = floor_of(found)
    size = tile = base = 0
    opened = open_tile(directory[0])
    for at in range(state[FOUND]):
        if uppers[at] < floor:
            continue
        while numbers[at] >= base + directory[tile, SIZE]:
            base += directory[tile, SIZE]
            tile += 1
            opened = open_tile(directory[tile])
        score = best_dot(directory[tile], opened, homes[tile], factors, numbers[at] - base)
        size = offer(keys, size, key(score, numbers[at], room))
    return size


def _search_plainly(
    directory: NDArray[np.int64],
    permitted: NDArray[np.int64],
    homes: NDArray[np.int32],
    factors: NDArray[np.float32],
    keys: NDArray[np.uint64],
) -> tuple[int, int]:
    """Score every document exactly; give the number of keys, and of matches."""
    cursors = np.empty(len(factors), np.int64)
    buffer = np.empty(BLOCK, np.float32)
    room = np.empty(1, np.float32)
    size = total = base = 0
    for number in range(len(directory)):
        entry = directory[number]
        tile = open_tile(entry)
        allowed = permits_of(entry, permitted, number)
        starts = pointer(entry[STARTS], np.uint32)
        for place in range(len(factors)):
            cursors[place] = starts[homes[number, place]] if homes[number, place] >= 0 else 0
        for first in range(0, entry[SIZE], BLOCK):
            scores = buffer[: min(BLOCK, entry[SIZE] - first)]
            scores[:] = np.float32(-0.0)  # which stays where nothing is added, however small: no match
            for place in range(len(factors)):
                if homes[number, place] >= 0:
                    add_postings(tile, homes[number, place], factors[place], first // BLOCK, cursors, place, scores)
            if entry[FOLLOWS] != 0:
                fold(entry, first, _NO_MATCH, scores.view(np.int32))
            count, size = select(scores, allowed[first : first + len(scores)], base + first, keys, size, room)
            total += count
        base += entry[SIZE]
    return size, total


search_fast: Any = inner(_search_fast)
score_candidates: Any = inner(_score_candidates)
search_plainly: Any = inner(_search_plainly)


def _rank(
    directory: NDArray[np.int64],
    permitted: NDArray[np.int64],
    filled: NDArray[np.int32],
    numbers: NDArray[np.int32],
    factors: NDArray[np.float32],
    count: int,
    seq_nos: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> tuple[int, int, bool]:
    homes = np.empty((len(directory), len(numbers)), np.int32)
    locate(directory, numbers, homes)
    known, covered, extreme = survey(directory, homes, factors)
    depth = len(seq_nos)
    keys = np.empty(depth, np.uint64)
    counted = True
    total = size = 0
    plain = extreme or depth * len(numbers) * _EXACT_WEIGHT > covered + 20_000
    if not plain:
        for tile in range(len(directory)):
            known -= directory[tile, SIZE] - directory[tile, LIVE]
        known = 0 if len(permitted) else max(known, 0)
        found = make_found(depth, 2 * depth + _SPARE)
        enough = 0 if known >= count else count
        plain = not search_fast(directory, permitted, filled, homes, factors, enough, found)
        if not plain:
            state = found[3]
            size = score_candidates(directory, homes, factors, found, keys)
            counted = state[SKIPPED] == 0 or size < depth
            total = max(known, state[COUNTED], size)
            if counted:
                total = size if state[SKIPPED] else state[COUNTED]
    if plain:
        size, total = search_plainly(directory, permitted, homes, factors, keys)
    drain(keys, size, seq_nos, scores)
    for place in range(size):
        number = seq_nos[place]
        tile = 0
        while number >= directory[tile, SIZE]:
            number -= directory[tile, SIZE]
            tile += 1
        seq_nos[place] = pointer(directory[tile, SEQ_NOS], np.int64)[number]
    return size, total, counted


def _score(
    directory: NDArray[np.int64],
    numbers: NDArray[np.int32],
    factors: NDArray[np.float32],
    wanted: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> None:
    homes = np.empty((len(directory), len(numbers)), np.int32)
    locate(directory, numbers, homes)
    for at in range(len(wanted)):
        scores[at] = np.nan
        for number in range(len(directory)):
            entry = directory[number]
            seq_nos = pointer(entry[SEQ_NOS], np.int64)
            if entry[SIZE] == 0 or wanted[at] < seq_nos[0] or wanted[at] > seq_nos[entry[SIZE] - 1]:
                continue
            first, left = 0, entry[SIZE]
            while left > 1:
                half = left >> 1
                first = first + half if seq_nos[first + half] <= wanted[at] else first
                left -= half
            while first > 0 and seq_nos[first - 1] == wanted[at]:  # to the document's first row
                first -= 1
            if seq_nos[first] == wanted[at] and pointer(entry[ALIVE], np.uint8)[first]:
                score = best_dot(entry, open_tile(entry), homes[number], factors, first)
                if score >= 0:
                    scores[at] = min(score, LARGEST)


rank: Final = compile_kernel(
    "Tuple((i8,i8,b1))(i8[:,::1],i8[::1],i4[::1],i4[::1],Array(float32,1,'C',readonly=True),i8,i8[::1],f4[::1])", _rank
)
"""Rank documents; give how many were found, how many match, and whether that is their true number.

`directory` has a line a tile (see `postings` for its columns). `permitted` are addresses of bytes by row, 1 where its
document may be found, and `filled` counts them by block, tile after tile; without a filter both are empty.
`numbers` and `factors` are the query's tokens and weights in its order. Matches are counted as far as `count`. The best
come into `seq_nos` and `scores`, as many as there is room for; there must be a tile and room for one.
"""

score: Final = compile_kernel(
    "void(i8[:,::1],i4[::1],Array(float32,1,'C',readonly=True),Array(int64,1,'C',readonly=True),f4[::1])", _score
)
"""Score the documents `wanted` into `scores`, NaN where they do not match or are not here."""
