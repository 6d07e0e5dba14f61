"""Builds the exact path's tiles of one field from stored vectors, when an index opens.

Tokens are told apart as bytes, by a compiled loop; only the distinct ones of each few thousand documents become Python
strings. (Measured on 100,000 documents of 189 tokens: half the processor's time, and half the memory, of splitting and
looking up each token.)
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from termwise.storage.tantivy.kernels import distinct
from termwise.storage.tantivy.tiles import TILE, SparseTiles, Tile, Vocabulary, make_tile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from termwise.storage.tantivy.codec import EncodedVector

_CHUNK: Final = 16_384
"""Documents whose tokens are numbered at a time; TILE is a multiple."""

_SLOTS: Final = 1 << 17
"""Places of the table at first: small, so that it stays in the processor's cache, and twice BERT's vocabulary."""


class Loading:
    """Takes one field's vectors in the order of their seq_no, and gives the tiles at the end."""

    def __init__(self, worker: Executor) -> None:
        """Begin with none. `worker` has one thread, which works on one chunk while the caller reads the next."""
        self._worker = worker
        self._working: Future[None] | None = None
        self._seq_nos: list[int] = []
        self._waiting: list[EncodedVector] = []
        # What the worker has made so far.
        self._vocabulary = Vocabulary()
        self._seed = np.uint64(int.from_bytes(os.urandom(8)))  # so that nobody can choose tokens that collide
        self._slots = _SLOTS
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]] = []
        self._tiles: list[Tile] = []

    def add(self, seq_no: int, vector: EncodedVector) -> None:
        """Take a document's vector."""
        self._seq_nos.append(seq_no)
        self._waiting.append(vector)
        if len(self._waiting) == _CHUNK:
            self._hand_over()

    def finish(self) -> SparseTiles:
        """Give the tiles of all that was taken."""
        self._hand_over(last=True)
        self._join()
        return SparseTiles(self._vocabulary, tuple(self._tiles))

    def _hand_over(self, *, last: bool = False) -> None:
        self._join()
        seq_nos = self._seq_nos if last or len(self._seq_nos) == TILE else []
        self._working = self._worker.submit(self._take, self._waiting, seq_nos)
        self._waiting = []
        if seq_nos:
            self._seq_nos = []

    def _join(self) -> None:
        if self._working is not None:
            self._working.result()

    def _take(self, vectors: Sequence[EncodedVector], seq_nos: Sequence[int]) -> None:
        """Number a chunk; with `seq_nos`, make a tile of it and those before it."""
        if vectors:
            self._parts.append(self._numbered(vectors))
        if seq_nos:
            lengths, tokens, weights = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
            self._tiles.append(make_tile(np.array(seq_nos, np.int64), lengths, tokens, weights))
            self._parts = []

    def _numbered(
        self, vectors: Sequence[EncodedVector]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """Give the vectors' lengths, and their token numbers and weights, one vector after another."""
        text = bytearray().join(vector.tokens for vector in vectors)  # writable, as compiled code wants its arrays
        ends = np.cumsum([len(vector.tokens) for vector in vectors])
        separators = np.array([int.from_bytes(vector.separator, "little") for vector in vectors], np.uint32)
        widths = np.array([len(vector.separator) for vector in vectors], np.int64)
        lengths = np.array([vector.length for vector in vectors], np.int64)
        places, known = np.empty(int(lengths.sum()), np.int32), np.empty(len(text), np.uint8)
        data = np.frombuffer(text, np.uint8)
        count = -1
        while count < 0:
            table = np.full(self._slots, -1, np.int32)
            starts = np.empty(self._slots // 2 + 1, np.int64)
            count = distinct(data, ends, separators, widths, self._seed, table, starts, known, places)
            self._slots *= 4 if count < 0 else 1
        found = known[: starts[count]].tobytes()
        spans = pairwise(starts[: count + 1].tolist())
        numbers = np.array([self._vocabulary[found[first:last].decode()] for first, last in spans], np.int32)
        weights = np.frombuffer(b"".join(vector.weights for vector in vectors), "<f4")
        return lengths, numbers[places], weights
