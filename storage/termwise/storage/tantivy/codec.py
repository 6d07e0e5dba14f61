"""How sparse vectors lie in tantivy: exact float32 weights in a stored field, and terms that carry a coarse weight."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from termwise.storage.types import SparseVector

if TYPE_CHECKING:
    from collections.abc import Iterable

BUCKETS_PER_OCTAVE: Final = 2.6
"""A term's bucket is floor(2.6 * log2(weight)): weights of a bucket differ by a factor of 1.31 at most."""

_LEAST_BUCKET: Final = -330
_ENDINGS: Final = np.array([f"\0{bucket}" for bucket in range(_LEAST_BUCKET, 334)], dtype=object)
"""How terms end, for every bucket of a normal float32, 2^-126 to 2^128."""

_HEAD: Final = struct.Struct("<HIII")
"""Field number, token count, the separator's code point, bytes of the joined tokens."""


def sparse_terms(prefix: str, vector: SparseVector) -> list[str]:
    """Write each weight as a raw term: field prefix, token, NUL, bucket."""
    buckets = np.floor(np.log2(vector.weights.astype(np.float64)) * BUCKETS_PER_OCTAVE).astype(np.int64)
    endings = _ENDINGS[buckets - _LEAST_BUCKET].tolist()
    return [f"{prefix}{token}{ending}" for token, ending in zip(vector.tokens, endings, strict=True)]


def parse_term(term: str) -> tuple[str, int]:
    """Split a term, less its field prefix, into token and bucket. Tokens may hold NUL; buckets don't."""
    token, _, bucket = term.rpartition("\0")
    return token, int(bucket)


def encode_vectors(vectors: Iterable[tuple[int, SparseVector]]) -> bytes:
    """Write vectors with their field numbers: tokens joined by a character that none of them holds, then weights."""
    parts: list[bytes] = []
    for number, vector in vectors:
        separator = 0
        joined = "\0".join(vector.tokens)
        if joined.count("\0") != max(len(vector.tokens) - 1, 0):
            used = set("".join(vector.tokens))
            separator = next(code for code in range(1, 0x110000) if chr(code) not in used)
            joined = chr(separator).join(vector.tokens)
        tokens = joined.encode()
        weights = vector.weights.astype("<f4", copy=False).tobytes()
        parts.extend((_HEAD.pack(number, len(vector.tokens), separator, len(tokens)), tokens, weights))
    return b"".join(parts)


class EncodedVector(NamedTuple):
    """A vector as it is stored: `length` tokens with the separator's bytes between them, and their weights."""

    length: int
    separator: bytes
    tokens: bytes
    weights: bytes


def read_vectors(data: bytes) -> list[tuple[int, EncodedVector]]:
    """Take apart what `encode_vectors` wrote, without looking at tokens."""
    vectors = []
    at = 0
    while at < len(data):
        number, count, separator, size = _HEAD.unpack_from(data, at)
        middle = at + _HEAD.size + size
        end = middle + 4 * count
        tokens, weights = data[at + _HEAD.size : middle], data[middle:end]
        vectors.append((number, EncodedVector(count, chr(separator).encode(), tokens, weights)))
        at = end
    return vectors


def decode_vectors(data: bytes) -> list[tuple[int, SparseVector]]:
    """Read what `encode_vectors` wrote."""
    return [(number, _decoded(vector)) for number, vector in read_vectors(data)]


def _decoded(vector: EncodedVector) -> SparseVector:
    tokens = tuple(vector.tokens.decode().split(vector.separator.decode())) if vector.length else ()
    return SparseVector(tokens, np.frombuffer(vector.weights, "<f4"))
