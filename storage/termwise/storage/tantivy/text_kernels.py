"""The inner loops over tokens as text, compiled (see `compiling`): telling tokens apart, spelling terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from termwise.storage.tantivy.compiling import compile_kernel, inner
from termwise.storage.types import MAX_TOKEN_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

TABLE_FULL: Final = -1
VECTOR_BROKEN: Final = -2

_LONGEST: Final = MAX_TOKEN_BYTES


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


_token_end_inner: Any = inner(_token_end)
_slot_inner: Any = inner(_slot)


def _distinct(  # noqa: PLR0913 - arrays are all that a kernel can take
    text: NDArray[np.uint8],
    ends: NDArray[np.int64],
    lengths: NDArray[np.int64],
    separators: NDArray[np.uint32],
    widths: NDArray[np.int64],
    seed: np.uint64,
    table: NDArray[np.int32],
    starts: NDArray[np.int64],
    known: NDArray[np.uint8],
    seen: NDArray[np.int32],
    places: NDArray[np.int32],
) -> int:
    count = read = first = 0
    starts[0] = 0
    for doc in range(len(ends)):
        left = lengths[doc]
        while first < ends[doc]:
            last = _token_end_inner(text, first, ends[doc], separators[doc], widths[doc])
            left -= 1
            if left < 0 or last == first or last - first > _LONGEST:
                return VECTOR_BROKEN
            slot = _slot_inner(text, first, last, seed, table, starts, known)
            if table[slot] < 0:
                if 2 * count >= len(table):
                    return TABLE_FULL
                table[slot] = count
                seen[count] = -1
                for at in range(last - first):
                    known[starts[count] + at] = text[first + at]
                starts[count + 1] = starts[count] + last - first
                count += 1
            token = table[slot]
            if seen[token] == doc:
                return VECTOR_BROKEN
            seen[token] = doc
            places[read] = token
            read += 1
            first = last + widths[doc] if last < ends[doc] else last
        if left != 0:
            return VECTOR_BROKEN
    return count


def _spell(  # noqa: PLR0913 - arrays are all that a kernel can take
    prefix: NDArray[np.uint8],
    words: NDArray[np.uint8],
    word_starts: NDArray[np.int64],
    endings: NDArray[np.uint8],
    ending_starts: NDArray[np.int64],
    tokens: NDArray[np.int32],
    buckets: NDArray[np.int64],
    ends: NDArray[np.int64],
    text: NDArray[np.uint8],
    text_ends: NDArray[np.int64],
) -> None:
    posting = place = 0
    for doc in range(len(ends)):
        while posting < ends[doc]:
            for at in range(len(prefix)):
                text[place] = prefix[at]
                place += 1
            for at in range(word_starts[tokens[posting]], word_starts[tokens[posting] + 1]):
                text[place] = words[at]
                place += 1
            for at in range(ending_starts[buckets[posting]], ending_starts[buckets[posting] + 1]):
                text[place] = endings[at]
                place += 1
            posting += 1
        text_ends[doc] = place


distinct: Final = compile_kernel(
    "i8(u1[::1],i8[::1],i8[::1],u4[::1],i8[::1],u8,i4[::1],i8[::1],u1[::1],i4[::1],i4[::1])", _distinct
)
"""Find the distinct tokens of documents and give their number.

TABLE_FULL where they are too many for half of `table`; VECTOR_BROKEN where a document has not `lengths[doc]` tokens, or
one of them is empty, longer than 1,024 bytes or stands twice.

`places[i]` is which of them the i-th token is; the n-th of them is `known[starts[n]:starts[n + 1]]`. `text` holds the
documents' tokens one after another, up to `ends[doc]`. Between two tokens of a document stand the `widths[doc]` bytes
of `separators[doc]`, the first byte lowest. `table`, all -1, has a power of two of places, `starts` and `seen` half as
many and one, `known` as many as `text`; `seed` begins the hash (FNV-1a).
"""

spell: Final = compile_kernel(
    "void(u1[::1],u1[::1],i8[::1],u1[::1],i8[::1],i4[::1],i8[::1],i8[::1],u1[::1],i8[::1])", _spell
)
"""Write the terms of documents into `text`, each a prefix, a word and an ending.

Word n is `words[word_starts[n]:word_starts[n + 1]]`, and endings alike. Document doc has the postings up to
`ends[doc]`, of `tokens` and `buckets`; its terms end at `text_ends[doc]`.
"""
