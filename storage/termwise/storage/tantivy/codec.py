"""How sparse vectors lie in tantivy: exact float32 weights in a stored field, and terms that carry a coarse weight."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import numpy as np
from termwise.storage.types import SparseVector

if TYPE_CHECKING:
    from collections.abc import Iterable

BUCKETS_PER_OCTAVE: Final = 2.6
"""A term's bucket is floor(2.6 * log2(weight)): weights of a bucket differ by a factor of 1.31 at most."""

_LEAST_BUCKET: Final = -330
_ENDINGS: Final = [f"\0{bucket}" for bucket in range(_LEAST_BUCKET, 334)]
"""How terms end, for every bucket of a normal float32, 2^-126 to 2^128."""

_HEAD: Final = struct.Struct("<HIII")
"""Field number, token count, the separator's code point, bytes of the joined tokens."""


def sparse_terms(prefix: str, vector: SparseVector) -> list[str]:
    """Write each weight as a raw term: field prefix, token, NUL, bucket."""
    buckets = np.floor(np.log2(vector.weights.astype(np.float64)) * BUCKETS_PER_OCTAVE).astype(np.int64)
    endings = map(_ENDINGS.__getitem__, (buckets - _LEAST_BUCKET).tolist())
    return [prefix + token + ending for token, ending in zip(vector.tokens, endings, strict=True)]


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


def decode_vectors(data: bytes) -> list[tuple[int, SparseVector]]:
    """Read what `encode_vectors` wrote. The weights are views of `data`."""
    vectors = []
    at = 0
    while at < len(data):
        number, count, separator, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        tokens = tuple(data[at : at + size].decode().split(chr(separator))) if count else ()
        at += size
        weights = np.frombuffer(data, "<f4", count, at)
        at += weights.nbytes
        vectors.append((number, SparseVector(tokens, weights)))
    return vectors
