"""The search of the exact path: one compiled call over all tiles of a field.

A tile is searched by blocks of 8,192 documents. The weights of the query's tokens are added up in a buffer that stays
in the first-level cache: from dense rows of one byte a document where a token has one, else from exact postings. A row
rounds up, so that the sums are upper bounds, off by at most the query's weight over 255 of each row's maximum. Whoever
may be among the best becomes a candidate; the few that still may at the end are scored exactly, in the query's order.

Once the k-th best is known to score T, documents that share only tokens whose greatest products add up to less than T
are out. Where it is cheaper, such tokens are not added up, but looked up for the documents that could still make it.
Where matches are to be counted, nothing is skipped until there are enough of them.

Queries whose products leave the range in which float32 rounds by a factor, and rankings so deep that scoring the
candidates would take longer, go the plain way: exact postings alone, added up in the query's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import carray

from termwise.storage.tantivy.compiling import compile_kernel, inner, pointer
from termwise.storage.tantivy.heaps import drain, key, offer

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK: Final = 8192
_MASK: Final = np.uint16(BLOCK - 1)
_GROUP: Final = 128
"""Documents that are dismissed at once where the best of them is not good enough."""

_ROW_COST: Final = np.float32(450)
"""What adding a row to a block takes, in postings."""

_LOOK_UP: Final = 45
"""What looking up one weight takes, in postings."""

_SPARE: Final = 4096
"""Room for candidates beyond twice the depth."""

# Columns of the directory, by tile: sizes, then addresses of the tile's arrays.
(
    _SIZE,
    _LIVE,
    _TOKENS,
    _CUT_TOKENS,
    _CUT_WIDTH,
    _ROW_TOKENS,
    _ROW_WIDTH,
    _SEQ_NOS,
    _ALIVE,
    _SORTED,
    _ORDER,
    _STARTS,
    _DOCS,
    _WEIGHTS,
    _MAXIMA,
    _MINIMA,
    _CUTS,
    _ROWS,
) = range(18)


def _open(entry: NDArray[np.int64]) -> Any:
    return (
        entry[_CUT_TOKENS],
        entry[_CUT_WIDTH],
        entry[_ROW_TOKENS],
        entry[_ROW_WIDTH],
        pointer(entry[_STARTS], np.uint32),
        pointer(entry[_DOCS], np.uint16),
        pointer(entry[_WEIGHTS], np.float32),
        pointer(entry[_CUTS], np.uint32),
        pointer(entry[_ROWS], np.uint8),
    )


def _permits_of(entry: NDArray[np.int64], permitted: NDArray[np.int64], tile: int) -> Any:
    """Give the tile's bytes that tell which documents may be found."""
    return carray(pointer(permitted[tile] if len(permitted) else entry[_ALIVE], np.uint8), entry[_SIZE])


def _locate(directory: NDArray[np.int64], numbers: NDArray[np.int32], homes: NDArray[np.int32]) -> None:
    """Find each query token in each tile: its number there, or -1."""
    for tile in range(len(directory)):
        known = pointer(directory[tile, _SORTED], np.int32)
        order = pointer(directory[tile, _ORDER], np.int32)
        for place in range(len(numbers)):
            first, left = 0, directory[tile, _TOKENS]
            while left > 0:
                half = left >> 1
                if known[first + half] < numbers[place]:
                    first += half + 1
                    left -= half + 1
                else:
                    left = half
            found = first < directory[tile, _TOKENS] and known[first] == numbers[place]
            homes[tile, place] = order[first] if found else -1


def _weight(tile: Any, token: int, doc: int) -> Any:
    """Give a document's exact weight of a token, 0 where it has none."""
    cut_tokens, cut_width, row_tokens, row_width, starts, docs, weights, cuts, rows = tile
    if token < row_tokens and rows[token * row_width + doc] == 0:
        return np.float32(0)
    if token < cut_tokens:
        at = token * cut_width + doc // BLOCK
        first, last = np.int64(cuts[at]), np.int64(cuts[at + 1])
    else:
        first, last = np.int64(starts[token]), np.int64(starts[token + 1])
    if first == last:
        return np.float32(0)
    left = last - first
    while left > 1:
        half = left >> 1
        first = first + half if docs[first + half] <= doc else first
        left -= half
    return weights[first] if docs[first] == doc else np.float32(0)


def _dot(tile: Any, homes: NDArray[np.int32], factors: NDArray[np.float32], doc: int) -> Any:
    """Score a document exactly, in the query's order; below 0 where it does not match."""
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


def _add_row(rows: Any, at: int, step: Any, scores: NDArray[np.float32]) -> None:
    for doc in range(len(scores)):
        scores[doc] += step * np.float32(rows[at + doc])


def _add_four_rows(
    rows: Any, a: int, b: int, c: int, d: int, steps: Any, scores: NDArray[np.float32]
) -> None:
    step_a, step_b, step_c, step_d = steps
    for doc in range(len(scores)):
        scores[doc] += (step_a * np.float32(rows[a + doc]) + step_b * np.float32(rows[b + doc])) + (
            step_c * np.float32(rows[c + doc]) + step_d * np.float32(rows[d + doc])
        )


open_tile: Any = inner(_open)
permits_of: Any = inner(_permits_of)
locate: Any = inner(_locate)
weight_of: Any = inner(_weight)
dot: Any = inner(_dot)
add_postings: Any = inner(_add_postings)
add_row: Any = inner(_add_row, fused=True)
add_four_rows: Any = inner(_add_four_rows, fused=True)


def _bound(
    entry: NDArray[np.int64], homes: NDArray[np.int32], factors: NDArray[np.float32], query: Any
) -> tuple[int, np.float32, np.float32]:
    """List the tokens that the tile has; give their number, the greatest score, and how far rows may overrate."""
    tokens, parts, bounds, costs, cursors, order = query
    starts, maxima = pointer(entry[_STARTS], np.uint32), pointer(entry[_MAXIMA], np.float32)
    blocks = np.float32((entry[_SIZE] + BLOCK - 1) // BLOCK)
    count = 0
    greatest, excess = np.float32(0), np.float32(0)
    for place in range(len(homes)):
        token = homes[place]
        if token < 0:
            continue
        tokens[count] = token
        parts[count] = factors[place]
        bounds[count] = factors[place] * maxima[token]
        cursors[count] = starts[token]
        greatest += bounds[count]
        if token < entry[_ROW_TOKENS]:
            excess += bounds[count] / np.float32(255)
            costs[count] = _ROW_COST
        else:
            costs[count] = np.float32(starts[token + 1] - starts[token]) / blocks + np.float32(20)
        # By rising bound for its cost: the first ones are those to leave out.
        at = count
        while at > 0 and bounds[order[at - 1]] * costs[count] > bounds[count] * costs[order[at - 1]]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = count
        count += 1
    return count, greatest, excess


def _add_block(tile: Any, query: Any, first: int, count: int, block: int, scores: NDArray[np.float32]) -> None:
    """Add up the tokens from the `first` in order, rows four at a time."""
    tokens, parts, bounds, _, cursors, order = query
    row_tokens, row_width, rows = tile[2], tile[3], tile[8]
    for doc in range(len(scores)):
        scores[doc] = np.float32(0)
    base = block * BLOCK
    a, b, c = -1, -1, -1
    for at in range(first, count):
        place = order[at]
        token = tokens[place]
        if token >= row_tokens:
            add_postings(tile, token, parts[place], block, cursors, place, scores)
        elif a < 0:
            a = place
        elif b < 0:
            b = place
        elif c < 0:
            c = place
        else:
            steps = (bounds[a] / 255, bounds[b] / 255, bounds[c] / 255, bounds[place] / 255)
            add_four_rows(
                rows,
                tokens[a] * row_width + base,
                tokens[b] * row_width + base,
                tokens[c] * row_width + base,
                token * row_width + base,
                (np.float32(steps[0]), np.float32(steps[1]), np.float32(steps[2]), np.float32(steps[3])),
                scores,
            )
            a, b, c = -1, -1, -1
    for place in (a, b, c):
        if place >= 0:
            add_row(rows, tokens[place] * row_width + base, np.float32(bounds[place] / 255), scores)


def _complete(tile: Any, query: Any, missing: int, doc: int, score: Any, left: Any, floor: Any) -> Any:
    """Look up the first `missing` tokens in order, greatest bound last; below 0 once `floor` is out of reach."""
    tokens, parts, bounds, _, _, order = query
    row_tokens, row_width, rows = tile[2], tile[3], tile[8]
    for at in range(missing - 1, -1, -1):
        place = order[at]
        left -= bounds[place]
        if tokens[place] < row_tokens:
            score += bounds[place] / np.float32(255) * np.float32(rows[tokens[place] * row_width + doc])
        else:
            score += parts[place] * weight_of(tile, tokens[place], doc)
        if score + left < floor:
            return np.float32(-1)
    return score


bound: Any = inner(_bound)
add_block: Any = inner(_add_block)
complete: Any = inner(_complete)


def _keep(found: Any, number: int, upper: Any, lower: Any) -> bool:
    """Take a candidate; False where there are too many."""
    numbers, uppers, heap, state = found
    state[_HEAPED] = offer(heap, state[_HEAPED], lower)
    if state[_FOUND] == len(numbers):
        kept = 0
        for at in range(state[_FOUND]):
            if state[_HEAPED] < len(heap) or uppers[at] >= heap[0]:
                numbers[kept] = numbers[at]
                uppers[kept] = uppers[at]
                kept += 1
        state[_FOUND] = kept
        if 4 * kept > 3 * len(numbers):
            return False
    numbers[state[_FOUND]] = number
    uppers[state[_FOUND]] = upper
    state[_FOUND] += 1
    return True


_HEAPED, _FOUND, _COUNTED, _SKIPPED = range(4)

keep: Any = inner(_keep)


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


best_of: Any = inner(_best_of)
best_and_count: Any = inner(_best_and_count)
best_and_missed: Any = inner(_best_and_missed)


def _collect(  # noqa: PLR0913 - what a block's scores mean takes this much to say
    tile: Any,
    query: Any,
    missing: int,
    left: Any,
    excess: Any,
    slack: Any,
    base: int,
    first: int,
    permitted: Any,
    counting: bool,
    scores: NDArray[np.float32],
    found: Any,
) -> bool:
    """Take the documents of a block that may be among the best; False where there are too many."""
    heap, state = found[2], found[3]
    bits = scores.view(np.int32)
    room = np.empty(1, np.float32)
    for start in range(0, len(bits), _GROUP):
        end = min(len(bits), start + _GROUP)
        if counting:
            best, matched = best_and_count(bits[start:end], permitted[start:end])
            state[_COUNTED] += matched
        else:
            best = best_of(bits[start:end])
        floor = heap[0] if state[_HEAPED] == len(heap) else np.float32(0)
        room[0] = max(floor / slack - left, np.float32(1e-38))
        limit = room.view(np.int32)[0]
        if best < limit:
            continue
        for doc in range(start, end):
            if bits[doc] < limit or permitted[doc] == 0:
                continue
            score = scores[doc]
            if missing > 0:
                state[_LOOKED] += 1
                score = complete(tile, query, missing, first + doc, score, left, floor / slack)
            if score < 0 or score * slack < floor:
                continue
            if not keep(found, base + first + doc, score * slack, score / slack - excess):
                return False
            if state[_HEAPED] == len(heap):
                floor = max(heap[0], np.float32(0))
                room[0] = max(floor / slack - left, np.float32(1e-38))
                limit = room.view(np.int32)[0]
    return True


_LOOKED: Final = 4


def _gather(  # noqa: PLR0913 - as _collect
    tile: Any,
    query: Any,
    count: int,
    greatest: Any,
    excess: Any,
    slack: Any,
    base: int,
    first: int,
    last: int,
    permitted: Any,
    counting: bool,
    found: Any,
) -> bool:
    """Score the few documents of a block that a filter permits one by one; False where there are too many."""
    heap, state = found[2], found[3]
    for doc in range(first, last):
        if permitted[doc] == 0:
            continue
        floor = max(heap[0], np.float32(0)) if state[_HEAPED] == len(heap) else np.float32(0)
        score = complete(tile, query, count, doc, np.float32(0), greatest, np.float32(0) if counting else floor / slack)
        if score <= 0:
            continue
        if counting:
            state[_COUNTED] += 1
        if score * slack < floor:
            continue
        if not keep(found, base + doc, score * slack, score / slack - excess):
            return False
    return True


collect: Any = inner(_collect)
gather: Any = inner(_gather)


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
    heap, state = found[2], found[3]
    size = homes.shape[1]
    query = (
        np.empty(size, np.int64),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
    )
    costs, order, bounds = query[3], query[5], query[2]
    scores = np.empty(BLOCK, np.float32)
    slack = np.float32(1) + np.float32(size + 4) * np.float32(2.4e-7)
    base = seen_blocks = 0
    for number in range(len(directory)):
        entry = directory[number]
        tile = open_tile(entry)
        allowed = permits_of(entry, permitted, number)
        tokens, greatest, excess = bound(entry, homes[number], factors, query)
        work = np.float32(0)
        for place in range(tokens):
            work += costs[place]
        trusted = tokens
        for block in range((entry[_SIZE] + BLOCK - 1) // BLOCK):
            first, last = block * BLOCK, min(entry[_SIZE], (block + 1) * BLOCK)
            permits = np.int64(filled[seen_blocks + block]) if len(filled) else last - first
            counting = state[_COUNTED] < count
            floor = heap[0] / slack if state[_HEAPED] == len(heap) else np.float32(0)
            if tokens == 0 or permits == 0:
                continue
            if not counting and greatest < floor:
                state[_SKIPPED] = 1
                continue
            if permits * tokens * _LOOK_UP < work:
                state[_SKIPPED] |= not counting
                if not gather(
                    tile, query, tokens, greatest, excess, slack, base, first, last, allowed, counting, found
                ):
                    return False
                continue
            missing = 0
            left = np.float32(0)
            saved = np.float32(0)
            if not counting:
                state[_SKIPPED] = 1
                while missing < trusted and left + bounds[order[missing]] < floor:
                    left += bounds[order[missing]]
                    saved += costs[order[missing]]
                    missing += 1
            add_block(tile, query, missing, tokens, block, scores[: last - first])
            looked = state[_LOOKED]
            if not collect(
                tile,
                query,
                missing,
                left,
                excess,
                slack,
                base,
                first,
                allowed[first:last],
                counting,
                scores[: last - first],
                found,
            ):
                return False
            # Look up more where that was cheap, less where it was dear.
            if missing > 0 and np.float32((state[_LOOKED] - looked) * _LOOK_UP) > saved:
                trusted = missing - 1
            else:
                trusted = min(tokens, missing + 2)
        base += entry[_SIZE]
        seen_blocks += (entry[_SIZE] + BLOCK - 1) // BLOCK
    return True


def _score_candidates(
    directory: NDArray[np.int64],
    homes: NDArray[np.int32],
    factors: NDArray[np.float32],
    found: Any,
    keys: NDArray[np.uint64],
) -> int:
    """Score exactly whoever may still be among the best; give the number of keys."""
    numbers, uppers, heap, state = found
    floor = heap[0] if state[_HEAPED] == len(heap) else np.float32(0)
    room = np.empty(1, np.float32)
    size = tile = base = 0
    opened = open_tile(directory[0])
    for at in range(state[_FOUND]):
        if uppers[at] < floor:
            continue
        while numbers[at] >= base + directory[tile, _SIZE]:
            base += directory[tile, _SIZE]
            tile += 1
            opened = open_tile(directory[tile])
        score = dot(opened, homes[tile], factors, numbers[at] - base)
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
        starts = pointer(entry[_STARTS], np.uint32)
        for place in range(len(factors)):
            cursors[place] = starts[homes[number, place]] if homes[number, place] >= 0 else 0
        for first in range(0, entry[_SIZE], BLOCK):
            scores = buffer[: min(BLOCK, entry[_SIZE] - first)]
            scores[:] = np.float32(-0.0)  # which stays where nothing is added, however small: no match
            for place in range(len(factors)):
                if homes[number, place] >= 0:
                    add_postings(tile, homes[number, place], factors[place], first // BLOCK, cursors, place, scores)
            count, size = select(scores, allowed[first : first + len(scores)], base + first, keys, size, room)
            total += count
        base += entry[_SIZE]
    return size, total


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
    for start in range(0, len(bits), _GROUP):
        end = min(len(bits), start + _GROUP)
        best, missed = best_and_missed(bits[start:end], permitted[start:end])
        count += end - start - missed
        if best < 0 or (size == len(keys) and np.uint64(best) < keys[0] >> np.uint64(32)):
            continue
        limit = np.int32(keys[0] >> np.uint64(32)) if size == len(keys) else np.int32(0)
        for doc in range(start, end):
            if bits[doc] >= limit and permitted[doc] != 0:
                size = offer(keys, size, key(scores[doc], base + doc, room))
    return count, size


select: Any = inner(_select)
search_fast: Any = inner(_search_fast)
score_candidates: Any = inner(_score_candidates)
search_plainly: Any = inner(_search_plainly)


def _survey(
    directory: NDArray[np.int64], homes: NDArray[np.int32], factors: NDArray[np.float32]
) -> tuple[int, int, bool]:
    """Give the greatest document frequency, the postings that rows stand for, and whether products may be extreme."""
    frequencies = np.zeros(len(factors), np.int64)
    covered = 0
    extreme = False
    for number in range(len(directory)):
        starts = pointer(directory[number, _STARTS], np.uint32)
        maxima = pointer(directory[number, _MAXIMA], np.float32)
        minima = pointer(directory[number, _MINIMA], np.float32)
        greatest = 0.0
        for place in range(len(factors)):
            token = homes[number, place]
            if token < 0:
                continue
            postings = np.int64(starts[token + 1]) - np.int64(starts[token])
            frequencies[place] += postings
            covered += postings if token < directory[number, _ROW_TOKENS] else 0
            greatest += np.float64(factors[place]) * np.float64(maxima[token])
            extreme |= np.float64(factors[place]) * np.float64(minima[token]) < 1e-30
        extreme |= greatest > 1e37
    return frequencies.max() if len(frequencies) else 0, covered, extreme


survey: Any = inner(_survey)


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
    frequency, covered, extreme = survey(directory, homes, factors)
    depth = len(seq_nos)
    keys = np.empty(depth, np.uint64)
    plain = extreme or depth * len(numbers) * _LOOK_UP > covered + 20_000
    total = size = 0
    counted = True
    if not plain:
        known = frequency
        for tile in range(len(directory)):
            known -= directory[tile, _SIZE] - directory[tile, _LIVE]
        if len(permitted) or known < 0:
            known = 0
        found = (
            np.empty(2 * depth + _SPARE, np.int64),
            np.empty(2 * depth + _SPARE, np.float32),
            np.empty(depth, np.float32),
            np.zeros(5, np.int64),
        )
        plain = not search_fast(directory, permitted, filled, homes, factors, 0 if known >= count else count, found)
        if not plain:
            state = found[3]
            size = score_candidates(directory, homes, factors, found, keys)
            counted = state[_SKIPPED] == 0 or size < depth
            total = max(known, state[_COUNTED], size)
            if counted:
                total = size if state[_SKIPPED] else state[_COUNTED]
    if plain:
        size, total = search_plainly(directory, permitted, homes, factors, keys)
    drain(keys, size, seq_nos, scores)
    for place in range(size):
        number = seq_nos[place]
        tile = 0
        while number >= directory[tile, _SIZE]:
            number -= directory[tile, _SIZE]
            tile += 1
        seq_nos[place] = pointer(directory[tile, _SEQ_NOS], np.int64)[number]
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
            seq_nos = pointer(entry[_SEQ_NOS], np.int64)
            if entry[_SIZE] == 0 or wanted[at] < seq_nos[0] or wanted[at] > seq_nos[entry[_SIZE] - 1]:
                continue
            first, left = 0, entry[_SIZE]
            while left > 1:
                half = left >> 1
                first = first + half if seq_nos[first + half] <= wanted[at] else first
                left -= half
            if seq_nos[first] == wanted[at] and pointer(entry[_ALIVE], np.uint8)[first]:
                score = dot(open_tile(entry), homes[number], factors, first)
                if score >= 0:
                    scores[at] = min(score, _LARGEST)


_LARGEST: Final = np.float32(np.finfo(np.float32).max)

rank: Final = compile_kernel(
    "Tuple((i8,i8,b1))(i8[:,::1],i8[::1],i4[::1],i4[::1],Array(float32,1,'C',readonly=True),i8,i8[::1],f4[::1])", _rank
)
"""Rank documents; give how many were found, how many match, and whether that is their true number.

`directory` has a line a tile (see the columns above). `permitted` are addresses of bytes by document, 1 where it may be
found, and `filled` counts them by block, tile after tile; without a filter both are empty. `numbers` and `factors` are
the query's tokens and weights in its order. Matches are counted as far as `count`. The best come into `seq_nos` and
`scores`, as many as there is room for; there must be a tile and room for one.
"""

score: Final = compile_kernel(
    "void(i8[:,::1],i4[::1],Array(float32,1,'C',readonly=True),Array(int64,1,'C',readonly=True),f4[::1])", _score
)
"""Score the documents `wanted` into `scores`, NaN where they do not match or are not here."""
