"""Documents that may be among the best, with bounds of their scores; taken from a block's scores, group by group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from termwise.storage.tantivy.bounds import ROW_STARTS, ROW_STEPS, look_up
from termwise.storage.tantivy.compiling import inner
from termwise.storage.tantivy.heaps import key, offer
from termwise.storage.tantivy.postings import add_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUP: Final = 128
"""Documents that are dismissed at once where the best of them is not good enough."""

STRETCH: Final = 2048
"""Documents to which rows are added at once, or not."""

HEAPED, FOUND, COUNTED, SKIPPED = range(4)
"""What the state counts: bounds in the heap, candidates, matches, and whether any may have been missed."""

_TINY: Final = np.float32(1e-38)


def _make_found(depth: int, room: int) -> Any:
    return (
        np.empty(room, np.int64),
        np.empty(room, np.float32),
        np.empty(depth, np.float32),
        np.zeros(4, np.int64),
        np.empty(1, np.float32),
    )


def _floor(found: Any) -> Any:
    heap, state = found[2], found[3]
    return max(heap[0], np.float32(0)) if state[HEAPED] == len(heap) else np.float32(0)


def _keep(found: Any, number: int, upper: Any, lower: Any) -> bool:
    numbers, uppers, heap, state, _ = found
    state[HEAPED] = offer(heap, state[HEAPED], lower)
    if state[FOUND] == len(numbers):
        kept = 0
        for at in range(state[FOUND]):
            if state[HEAPED] < len(heap) or uppers[at] >= heap[0]:
                numbers[kept] = numbers[at]
                uppers[kept] = uppers[at]
                kept += 1
        state[FOUND] = kept
        if 4 * kept > 3 * len(numbers):
            return False
    numbers[state[FOUND]] = number
    uppers[state[FOUND]] = upper
    state[FOUND] += 1
    return True


def _bits_of(score: Any, room: NDArray[np.float32]) -> np.int32:
    room[0] = score
    bits: np.int32 = room.view(np.int32)[0]
    return bits


def _best_of(bits: NDArray[np.int32]) -> np.int32:
    best = np.int32(0)
    for at in range(len(bits)):
        best = max(np.int32(bits[at]), best)
    return best


def _best_and_count(bits: NDArray[np.int32], permitted: NDArray[np.uint8]) -> tuple[np.int32, np.int32]:
    best = count = np.int32(0)
    for at in range(len(bits)):  # 32 bits and no branches, so that it becomes vector instructions
        value = np.int32(bits[at] & -np.int32(permitted[at]))
        count = np.int32(count + np.int32(value > np.int32(0)))
        best = max(value, best)
    return best, count


def _best_and_missed(bits: NDArray[np.int32], permitted: NDArray[np.uint8]) -> tuple[np.int32, np.int32]:
    best = np.int32(-1)
    missed = np.int32(0)
    for at in range(len(bits)):
        value = np.int32(bits[at] | (np.int32(permitted[at]) - np.int32(1)))
        missed = np.int32(missed + np.int32(value >> np.int32(31)))
        best = max(value, best)
    return best, np.int32(-missed)


floor_of: Any = inner(_floor)
"""Give a score that the best documents reach at least, as far as is known."""

keep: Any = inner(_keep)
"""Take a candidate by its bounds; False where there are too many."""

bits_of: Any = inner(_bits_of)
best_of: Any = inner(_best_of)
best_and_count: Any = inner(_best_and_count)
best_and_missed: Any = inner(_best_and_missed)


def _collect(  # noqa: PLR0913 - what a block's scores mean takes this much to say
    tile: Any,
    query: Any,
    plan: Any,
    base: int,
    first: int,
    permitted: NDArray[np.uint8],
    counting: bool,
    scores: NDArray[np.float32],
    found: Any,
) -> bool:
    rows, by_rows, excess, slack, narrowed = plan
    state, room = found[3], found[4]
    bits = scores.view(np.int32)
    row_starts, row_steps = query[ROW_STARTS][: (rows + 1) & ~1], query[ROW_STEPS]
    floor = floor_of(found)
    poor = bits_of(max(floor / slack - by_rows, np.float32(0)), room)
    limit = bits_of(max(floor / slack, _TINY), room)
    for begin in range(0, len(bits), STRETCH):
        stop = min(len(bits), begin + STRETCH)
        if rows > 0:
            if not counting and poor > 0 and best_of(bits[begin:stop]) < poor:
                continue
            add_rows(tile, row_starts, row_steps, first + begin, scores[begin:stop])
        for start in range(begin, stop, GROUP):
            end = min(stop, start + GROUP)
            if counting or narrowed:
                best, matched = best_and_count(bits[start:end], permitted[start:end])
                state[COUNTED] += matched
            else:
                best = best_of(bits[start:end])
            if best < limit:
                continue
            for doc in range(start, end):
                if bits[doc] < limit or permitted[doc] == 0:
                    continue
                score = scores[doc]
                if not keep(found, base + first + doc, score * slack, score / slack - excess):
                    return False
                floor = floor_of(found)
                poor = bits_of(max(floor / slack - by_rows, np.float32(0)), room)
                limit = bits_of(max(floor / slack, _TINY), room)
    return True


def _gather(  # noqa: PLR0913 - as _collect
    tile: Any,
    query: Any,
    plan: Any,
    count: int,
    greatest: Any,
    base: int,
    first: int,
    permitted: NDArray[np.uint8],
    counting: bool,
    found: Any,
) -> bool:
    excess, slack = plan[2], plan[3]
    state = found[3]
    for doc in range(len(permitted)):
        if permitted[doc] == 0:
            continue
        floor = floor_of(found)
        enough = np.float32(0) if counting else floor / slack
        score = look_up(tile, query, 0, count, first + doc, np.float32(0), greatest * slack, enough)
        if score <= 0:
            continue
        state[COUNTED] += counting
        if score * slack >= floor and not keep(found, base + first + doc, score * slack, score / slack - excess):
            return False
    return True


def _select(
    scores: NDArray[np.float32],
    permitted: NDArray[np.uint8],
    base: int,
    keys: NDArray[np.uint64],
    size: int,
    room: NDArray[np.float32],
) -> tuple[int, int]:
    bits = scores.view(np.int32)
    count = 0
    for start in range(0, len(bits), GROUP):
        end = min(len(bits), start + GROUP)
        best, missed = best_and_missed(bits[start:end], permitted[start:end])
        count += end - start - missed
        if best < 0 or (size == len(keys) and np.uint64(best) < keys[0] >> np.uint64(32)):
            continue
        limit = np.int32(keys[0] >> np.uint64(32)) if size == len(keys) else np.int32(0)
        for doc in range(start, end):
            if bits[doc] >= limit and permitted[doc] != 0:
                size = offer(keys, size, key(scores[doc], base + doc, room))
    return count, size


make_found: Any = inner(_make_found)
"""Make room for candidates."""

collect: Any = inner(_collect)
"""Add the rows where they can matter, and take the documents that may be among the best; False for too many.

`plan`: how many tokens have rows; the greatest score by them; how far they may overrate; the factor of rounding; and
whether a filter is on. `first` is the block's first document.
"""

gather: Any = inner(_gather)
"""Score the few documents of a block that a filter permits one by one; False where there are too many.

What the tokens that are left can add is `greatest` less the bounds of those before. Adding up and subtracting n bounds
rounds 2 n times, each time by at most half an ulp of `greatest`, 6e-8 of it: much beside a small rest, and the rest may
come out too small, even below 0. So it begins `slack` times as large, which is at least 4 n such roundings more.
"""

select: Any = inner(_select)
"""Put the best of a block's exact scores into a heap of keys; give how many match, and the heap's new size.

A match is a score without a sign whose document is permitted.
"""
