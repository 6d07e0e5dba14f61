"""How sparse vectors lie in tantivy: exact float32 weights in a stored field, and terms that carry a coarse weight."""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from termwise.storage.types import MAX_CHUNKS, SparseVector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

BUCKETS_PER_OCTAVE: Final = 2.6
"""A term's bucket is floor(2.6 * log2(weight)): weights of a bucket differ by a factor of 1.31 at most."""

LEAST_BUCKET: Final = -330
_BEYOND: Final = 334
FIRST_COUNT: Final = _BEYOND - LEAST_BUCKET
"""Where the endings of counts begin in `ENDINGS`, bit by bit (see `count_marks`)."""
_COUNT_BITS: Final = MAX_CHUNKS.bit_length()
_ENDINGS: Final = [f"\0{bucket} ".encode() for bucket in range(LEAST_BUCKET, _BEYOND)] + [
    f"\0+{bit} ".encode() for bit in range(_COUNT_BITS)
]
ENDINGS: Final = np.frombuffer(bytearray(b"".join(_ENDINGS)), np.uint8)
"""How terms end, a space included, one after another: for every bucket of a normal float32, 2^-126 to 2^128, and for
counts."""
ENDING_STARTS: Final = np.array([*accumulate(map(len, _ENDINGS), initial=0)], np.int64)
"""Where each ending begins in `ENDINGS`, and the last one's end."""

_ESCAPE: Final = "\1"
_ESCAPED: Final = {ord(char): f"{_ESCAPE}{mark}" for char, mark in zip(f"{_ESCAPE} \t\n\f\r", "abcdef", strict=True)}
"""What would end a term before its time: tantivy cuts a document's terms apart at ASCII white space."""

_HEAD: Final = struct.Struct("<HIII")
"""Field number, token count, the separator's code point, bytes of the joined tokens."""


def buckets_of(weights: NDArray[np.float32]) -> NDArray[np.int64]:
    """Give each weight's bucket."""
    return np.floor(np.log2(weights.astype(np.float64)) * BUCKETS_PER_OCTAVE).astype(np.int64)


def escaped(token: str) -> str:
    """Write a token as it stands in a term, without ASCII white space."""
    return token.translate(_ESCAPED)


def sparse_terms(prefix: str, vector: SparseVector) -> list[str]:
    """Write each weight as a term: field prefix, token, NUL, bucket. A batch's are written by `batches`, faster."""
    buckets = buckets_of(vector.weights).tolist()
    return [f"{prefix}{token}\0{bucket}" for token, bucket in zip(vector.tokens, buckets, strict=True)]


def parse_term(term: str) -> tuple[str, str]:
    """Split a term, less its prefix, into token (as it is written) and ending. Tokens may hold NUL; endings don't."""
    token, _, ending = term.rpartition("\0")
    return token, ending


def count_marks(more: int) -> list[str]:
    """Write how many vectors of a document hold something beyond the first: an ending for each bit that is set.

    tantivy counts documents by term; so it counts vectors: bit n's documents count 2^n times, and the others once.
    """
    return [f"+{bit}" for bit in range(more.bit_length()) if more >> bit & 1]


def times_counted(ending: str) -> int:
    """Give how many vectors a document counts for by a term of this ending, a bucket's or a count's."""
    return 1 << int(ending) if ending.startswith("+") else 1


class EncodedVector(NamedTuple):
    """A vector as it is stored: `length` tokens with the separator between them, and their weights."""

    length: int
    separator: int
    """Its code point."""
    tokens: bytes
    weights: bytes


def encode_vector(vector: SparseVector) -> EncodedVector:
    """Join a vector's tokens by a character that none of them holds: NUL but for odd ones."""
    separator = 0
    length = len(vector.tokens)
    joined = "\0".join(vector.tokens)
    if joined.count("\0") >= max(length, 1):
        used = set("".join(vector.tokens))
        separator = next(code for code in range(1, 0x110000) if chr(code) not in used)
        joined = chr(separator).join(vector.tokens)
    return EncodedVector(length, separator, joined.encode(), vector.weights.tobytes())


def encode_vectors(vectors: Iterable[tuple[int, EncodedVector]]) -> bytes:
    """Write vectors with their field numbers."""
    parts: list[bytes] = []
    for number, (length, separator, tokens, weights) in vectors:
        parts += _HEAD.pack(number, length, separator, len(tokens)), tokens, weights
    return b"".join(parts)


def read_vectors(data: bytes) -> list[tuple[int, EncodedVector]]:
    """Take apart what `encode_vectors` wrote, without looking at tokens."""
    vectors = []
    at = 0
    while at < len(data):
        number, count, separator, size = _HEAD.unpack_from(data, at)
        middle = at + _HEAD.size + size
        end = middle + 4 * count
        tokens, weights = data[at + _HEAD.size : middle], data[middle:end]
        vectors.append((number, EncodedVector(count, separator, tokens, weights)))
        at = end
    return vectors


def decode_vectors(data: bytes) -> list[tuple[int, SparseVector]]:
    """Read what `encode_vectors` wrote."""
    return [(number, _decoded(vector)) for number, vector in read_vectors(data)]


def _decoded(vector: EncodedVector) -> SparseVector:
    tokens = tuple(vector.tokens.decode().split(chr(vector.separator))) if vector.length else ()
    return SparseVector(tokens, np.frombuffer(vector.weights, "<f4"))
