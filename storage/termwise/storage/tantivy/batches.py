"""Many documents' sparse vectors of one field as arrays: what tiles are made of, and tantivy's terms.

Tokens are told apart as bytes, by a compiled loop; only the distinct ones of a batch become Python strings. (Measured
on 100,000 documents of 189 tokens: half the time, and half the memory, of looking up each token by itself.)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from termwise.storage.tantivy.codec import ENDING_STARTS, ENDINGS, FIRST_COUNT, LEAST_BUCKET, buckets_of, escaped
from termwise.storage.tantivy.text_kernels import TABLE_FULL, VECTOR_BROKEN, distinct, spell
from termwise.storage.tantivy.tile import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from termwise.storage.tantivy.codec import EncodedVector

_MOST_SLOTS: Final = 1 << 17
"""Places of the table at first: small, so that it stays in the processor's cache, and twice BERT's vocabulary."""

_NEED_ESCAPES: Final = np.array([escaped(chr(byte)) != chr(byte) for byte in range(128)] + [False] * 128)
"""By byte: whether it, as a character, is not written as it is in a term."""

_seed: Final = np.uint64(int.from_bytes(os.urandom(8)))
"""So that nobody can choose tokens that collide."""


@dataclass(frozen=True, slots=True, eq=False)
class Numbered:
    """Documents' vectors of one field, told apart.

    Vector n has `lengths[n]` (int64) postings. Postings stand one vector after another: `tokens` (int32) are places
    among the distinct words, `weights` are float32. Word w is `text[text_starts[w]:text_starts[w + 1]]` in UTF-8
    (uint8).
    """

    lengths: NDArray[np.int64]
    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    text: NDArray[np.uint8]
    text_starts: NDArray[np.int64]

    @property
    def words(self) -> list[str]:
        """Give the words as strings."""
        text = self.text.tobytes()
        return [text[first:last].decode() for first, last in pairwise(self.text_starts.tolist())]

    def batch(self, seq_nos: NDArray[np.int64], kept: NDArray[np.bool_]) -> Batch:
        """Give the vectors that are `kept`, with their documents' seq_nos."""
        if kept.all():
            return Batch(seq_nos, self.lengths, self.tokens, self.weights, self.words)
        postings = np.repeat(kept, self.lengths)
        return Batch(seq_nos, self.lengths[kept], self.tokens[postings], self.weights[postings], self.words)


class BrokenVectorError(ValueError):
    """A vector that is none: tokens that are empty, too long or not distinct, or not as many as weights."""


def numbered(vectors: Sequence[EncodedVector]) -> Numbered:
    """Tell the tokens of vectors apart. BrokenVectorError where that cannot be."""
    data = bytearray().join([vector.tokens for vector in vectors])  # writable, as compiled code wants its arrays
    text = np.frombuffer(data, np.uint8)
    ends = np.cumsum([len(vector.tokens) for vector in vectors], dtype=np.int64)
    lengths = np.array([vector.length for vector in vectors], np.int64)
    weights = np.frombuffer(bytearray().join([vector.weights for vector in vectors]), "<f4")
    total = int(lengths.sum())
    if total != len(weights):
        raise BrokenVectorError
    characters = [chr(vector.separator).encode() if vector.separator else b"\0" for vector in vectors]
    separators = np.array([int.from_bytes(character, "little") for character in characters], np.uint32)
    widths = np.array([len(character) for character in characters], np.int64)
    places = np.empty(total, np.int32)
    known = np.empty(len(text), np.uint8)
    slots = min(_MOST_SLOTS, 1 << (2 * total + 2).bit_length())
    while True:
        table = np.full(slots, -1, np.int32)
        starts, seen = np.empty(slots // 2 + 2, np.int64), np.empty(slots // 2 + 2, np.int32)
        count = distinct(text, ends, lengths, separators, widths, _seed, table, starts, known, seen, places)
        if count == VECTOR_BROKEN:
            raise BrokenVectorError
        if count != TABLE_FULL:
            break
        slots *= 4
    return Numbered(lengths, places, weights, known[: starts[count]].copy(), starts[: count + 1].copy())


def spelled_terms(prefix: str, batch: Numbered, sizes: NDArray[np.int64]) -> list[str]:
    """Give each document's terms as one text, with a space behind each: field prefix, escaped token, NUL, ending.

    Document n has the next `sizes[n]` (int64) vectors. Of several, each token has its greatest weight's bucket, which
    bounds every vector's score, and endings that count those that hold it.
    """
    known, starts = batch.text, batch.text_starts
    if _NEED_ESCAPES[known].any():
        words = [escaped(word).encode() for word in batch.words]
        known = np.frombuffer(bytearray(b"".join(words)), np.uint8)
        starts = np.concatenate([[0], np.cumsum([len(word) for word in words])])
    if len(sizes) == len(batch.lengths):
        lengths, tokens, places = batch.lengths, batch.tokens, buckets_of(batch.weights) - LEAST_BUCKET
    else:
        lengths, tokens, places = _joined(batch, sizes)
    begin = prefix.encode()
    size = len(begin) * len(places) + int(np.diff(starts)[tokens].sum() + np.diff(ENDING_STARTS)[places].sum())
    text, ends = np.empty(size, np.uint8), np.empty(len(lengths), np.int64)
    beginning = np.frombuffer(bytearray(begin), np.uint8)
    spell(beginning, known, starts, ENDINGS, ENDING_STARTS, tokens, places, np.cumsum(lengths), text, ends)
    whole = text.tobytes()
    return [whole[first:last].decode() for first, last in pairwise([0, *ends.tolist()])]


def _joined(
    batch: Numbered, sizes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Give each document's number of terms, and their words and endings."""
    owners = np.repeat(np.repeat(np.arange(len(sizes)), sizes), batch.lengths)
    pairs = owners * len(batch.text_starts) + batch.tokens
    order = np.argsort(pairs, kind="stable")
    firsts = np.flatnonzero(np.diff(pairs[order], prepend=-1))
    more = np.diff(firsts, append=len(pairs)) - 1
    owners, tokens = owners[order][firsts], batch.tokens[order][firsts]
    greatest = np.maximum.reduceat(batch.weights[order], firsts) if len(firsts) else batch.weights
    parts = [(owners, tokens, buckets_of(greatest) - LEAST_BUCKET)]
    for bit in range(int(more.max(initial=0)).bit_length()):
        found = np.flatnonzero(more >> bit & 1)
        parts.append((owners[found], tokens[found], np.full(len(found), FIRST_COUNT + bit)))
    owners, tokens, places = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.argsort(owners, kind="stable")
    return np.bincount(owners, minlength=len(sizes)), tokens[order], places[order]
