"""The inner loops of the exact path, compiled by numba. They release the GIL and check no bounds.

Each has one explicit signature, so that importing this module compiles (or loads) everything there is to compile and no
search ever waits for the compiler. Compiled code is cached beside this file, or in NUMBA_CACHE_DIR, or in the user's
cache folder; where none can be written, it is compiled anew by each process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_LARGEST_BITS: Final = np.int32(0x7F7FFFFF)
"""The largest finite float32, seen as an integer."""

_BLOCK: Final = 256
"""Documents that are dismissed at once where the best of them is not good enough."""


def _compile(signature: str, function: Callable[..., Any]) -> Callable[..., Any]:
    options = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    try:
        compiled: Callable[..., Any] = numba.njit(signature, cache=True, **options)(function)
    except (OSError, RuntimeError):  # no folder for the cache can be written, or the disk is full
        compiled = numba.njit(signature, **options)(function)
    return compiled


def _invert(
    tokens: NDArray[np.int32],
    weights: NDArray[np.float32],
    lengths: NDArray[np.int64],
    places: NDArray[np.int64],
    docs_out: NDArray[np.uint16],
    weights_out: NDArray[np.float32],
) -> None:
    at = 0
    for doc in range(len(lengths)):
        for _ in range(lengths[doc]):
            token = tokens[at]
            place = places[token]
            places[token] = place + 1
            docs_out[place] = doc
            weights_out[place] = weights[at]
            at += 1


def _copy_live(
    docs: NDArray[np.uint16],
    weights: NDArray[np.float32],
    first: int,
    last: int,
    moved: NDArray[np.int32],
    docs_out: NDArray[np.uint16],
    weights_out: NDArray[np.float32],
    place: int,
) -> int:
    for at in range(first, last):
        doc = moved[docs[at]]
        if doc >= 0:
            docs_out[place] = doc
            weights_out[place] = weights[at]
            place += 1
    return place


_copy_live_inner: Any = numba.njit(_copy_live)


def _merge(  # noqa: PLR0913 - arrays are all that a kernel can take
    tokens_a: NDArray[np.int32],
    starts_a: NDArray[np.int64],
    docs_a: NDArray[np.uint16],
    weights_a: NDArray[np.float32],
    moved_a: NDArray[np.int32],
    tokens_b: NDArray[np.int32],
    starts_b: NDArray[np.int64],
    docs_b: NDArray[np.uint16],
    weights_b: NDArray[np.float32],
    moved_b: NDArray[np.int32],
    tokens_out: NDArray[np.int32],
    starts_out: NDArray[np.int64],
    docs_out: NDArray[np.uint16],
    weights_out: NDArray[np.float32],
) -> int:
    a = b = count = place = 0
    while a < len(tokens_a) or b < len(tokens_b):
        in_a = a < len(tokens_a) and (b >= len(tokens_b) or tokens_a[a] <= tokens_b[b])
        in_b = b < len(tokens_b) and (a >= len(tokens_a) or tokens_b[b] <= tokens_a[a])
        token = tokens_a[a] if in_a else tokens_b[b]
        first = place
        if in_a:
            place = _copy_live_inner(
                docs_a, weights_a, starts_a[a], starts_a[a + 1], moved_a, docs_out, weights_out, place
            )
            a += 1
        if in_b:
            place = _copy_live_inner(
                docs_b, weights_b, starts_b[b], starts_b[b + 1], moved_b, docs_out, weights_out, place
            )
            b += 1
        if place > first:
            tokens_out[count] = token
            starts_out[count] = first
            count += 1
    starts_out[count] = place
    return count


def _accumulate(
    scores: NDArray[np.float32],
    firsts: NDArray[np.int64],
    lasts: NDArray[np.int64],
    factors: NDArray[np.float32],
    docs: NDArray[np.uint16],
    weights: NDArray[np.float32],
) -> None:
    for token in range(len(factors)):
        factor = factors[token]
        for at in range(firsts[token], lasts[token]):
            scores[docs[at]] += factor * weights[at]


def _push(heap: NDArray[np.uint64], place: int, key: np.uint64) -> None:
    while place > 0 and heap[(place - 1) >> 1] > key:
        heap[place] = heap[(place - 1) >> 1]
        place = (place - 1) >> 1
    heap[place] = key


def _replace_least(heap: NDArray[np.uint64], key: np.uint64) -> None:
    place = 0
    while 2 * place + 1 < len(heap):
        child = 2 * place + 1
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = key


_push_inner: Any = numba.njit(_push)
_replace_inner: Any = numba.njit(_replace_least)


def _select(
    scores: NDArray[np.float32], allowed: NDArray[np.uint8], base: int, heap: NDArray[np.uint64], size: int
) -> tuple[int, int]:
    bits = scores.view(np.int32)
    count = 0
    for first in range(0, len(bits), _BLOCK):
        block, permitted = bits[first : first + _BLOCK], allowed[first : first + _BLOCK]
        best: Any = np.int32(-1)
        missed: Any = np.int32(0)
        for at in range(len(block)):  # 32 bits throughout and no branches, so that it becomes vector instructions
            value = np.int32(block[at] | (np.int32(permitted[at]) - np.int32(1)))
            missed = np.int32(missed + (value >> np.int32(31)))
            best = max(value, best)
        count += len(block) + missed
        if best < 0 or (size == len(heap) and np.uint64(best) < heap[0] >> np.uint64(32)):
            continue
        for at in range(first, first + len(block)):
            if bits[at] < 0 or allowed[at] == 0:
                continue
            score = np.uint64(min(bits[at], _LARGEST_BITS))
            key = (score << np.uint64(32)) | np.uint64(0xFFFFFFFF - (base + at))
            if size < len(heap):
                _push_inner(heap, size, key)
                size += 1
            elif key > heap[0]:
                _replace_inner(heap, key)
    return count, size


def _token_end(text: NDArray[np.uint8], first: int, end: int, separator: np.uint32, width: int) -> int:
    head = separator & np.uint32(0xFF)
    for at in range(first, end):
        if text[at] == head and at + width <= end:
            found = True
            for byte in range(1, width):
                found &= text[at + byte] == (separator >> (8 * byte)) & 0xFF
            if found:
                return at
    return end


def _slot(
    text: NDArray[np.uint8],
    first: int,
    last: int,
    seed: np.uint64,
    table: NDArray[np.int32],
    starts: NDArray[np.int64],
    known: NDArray[np.uint8],
) -> np.uint64:
    mask = np.uint64(len(table) - 1)
    key = seed
    for at in range(first, last):
        key = (key ^ np.uint64(text[at])) * np.uint64(0x100000001B3)
    slot = (key ^ (key >> np.uint64(32))) & mask
    while table[slot] >= 0:
        start = starts[table[slot]]
        same = starts[table[slot] + 1] - start == last - first
        at = 0
        while same and at < last - first:
            same = known[start + at] == text[first + at]
            at += 1
        if same:
            break
        slot = (slot + np.uint64(1)) & mask
    return slot


_token_end_inner: Any = numba.njit(_token_end)
_slot_inner: Any = numba.njit(_slot)


def _distinct(  # noqa: PLR0913 - arrays are all that a kernel can take
    text: NDArray[np.uint8],
    ends: NDArray[np.int64],
    separators: NDArray[np.uint32],
    widths: NDArray[np.int64],
    seed: np.uint64,
    table: NDArray[np.int32],
    starts: NDArray[np.int64],
    known: NDArray[np.uint8],
    places: NDArray[np.int32],
) -> int:
    count = read = first = 0
    starts[0] = 0
    for doc in range(len(ends)):
        while first < ends[doc]:
            last = _token_end_inner(text, first, ends[doc], separators[doc], widths[doc])
            slot = _slot_inner(text, first, last, seed, table, starts, known)
            if table[slot] < 0:
                if 2 * count >= len(table):
                    return -1
                table[slot] = count
                for at in range(last - first):
                    known[starts[count] + at] = text[first + at]
                starts[count + 1] = starts[count] + last - first
                count += 1
            places[read] = table[slot]
            read += 1
            first = last + widths[doc] if last < ends[doc] else last
    return count


invert: Final = _compile("void(i4[::1],f4[::1],i8[::1],i8[::1],u2[::1],f4[::1])", _invert)
"""Sort the weights of documents by token: a counting sort.

`tokens` and `weights` hold the vectors one after another, `lengths[doc]` of them each. `places[token]`, changed here,
is where the token's postings begin in `docs_out` and `weights_out`.
"""

merge: Final = _compile(
    "i8(i4[::1],i8[::1],u2[::1],f4[::1],i4[::1],i4[::1],i8[::1],u2[::1],f4[::1],i4[::1],i4[::1],i8[::1],u2[::1],f4[::1])",
    _merge,
)
"""Join the postings of two tiles and give the number of tokens left; `starts_out[that]` is the number of postings.

`moved_a[doc]` is the document's place in the result, -1 where it is dropped.
"""

accumulate: Final = _compile("void(f4[::1],i8[::1],i8[::1],f4[::1],u2[::1],f4[::1])", _accumulate)
"""Add `factors[t]` times the postings from `firsts[t]` to `lasts[t]` to the scores of their documents, token by token.

Scores begin as -0.0, which stays until something positive or +0.0 is added: the sign tells a match with a product too
small for float32 from no match.
"""

select: Final = _compile("UniTuple(i8,2)(f4[::1],u1[::1],i8,u8[::1],i8)", _select)
"""Put the best matches into a heap, and give how many documents match and the heap's new size.

A match is a score without a sign whose `allowed` is 1. The heap holds `size` keys, the least first: the score's bits,
then 2^32 - 1 minus the document's number (`base` and its place) below, so that early documents win among equal scores.
Scores above the largest float32 count as that.
"""

distinct: Final = _compile("i8(u1[::1],i8[::1],u4[::1],i8[::1],u8,i4[::1],i8[::1],u1[::1],i4[::1])", _distinct)
"""Find the distinct tokens of documents and give their number, -1 where they are too many for half of `table`.

`places[i]` is which of them the i-th token is; the n-th of them is `known[starts[n]:starts[n + 1]]`. `text` holds the
documents' tokens one after another, up to `ends[doc]`. Between two tokens of a document stand the `widths[doc]` bytes
of `separators[doc]`, the first byte lowest. `table`, all -1, has a power of two of places, `starts` half as many and
one, `known` as many as `text`; `seed` begins the hash (FNV-1a).
"""
