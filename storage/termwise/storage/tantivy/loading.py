"""Builds the exact path's tiles of one field from stored vectors, when an index opens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from termwise.storage.tantivy.batches import numbered
from termwise.storage.tantivy.rows import rows_needed
from termwise.storage.tantivy.sealing import join
from termwise.storage.tantivy.tile import TILE, Tile, Vocabulary, make_tile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor, Future

    from termwise.storage.tantivy.codec import EncodedVector

_CHUNK: Final = 16_384
"""Vectors whose tokens are told apart at a time; TILE is a multiple. More than a document may have."""


class Loading:
    """Takes one field's vectors in the order of their seq_no, and gives unsealed tiles at the end."""

    def __init__(self, worker: Executor, vocabulary: Vocabulary) -> None:
        """Begin with none. `worker` has one thread, which works on one chunk while the caller reads the next."""
        self._worker = worker
        self._working: Future[None] | None = None
        self._seq_nos: list[int] = []
        self._waiting: list[EncodedVector] = []
        # What the worker has made so far.
        self._vocabulary = vocabulary
        self._parts: list[Tile] = []
        self._tiles: list[Tile] = []

    def add(self, seq_no: int, vectors: Sequence[EncodedVector]) -> None:
        """Take a document's vectors."""
        if len(self._waiting) + len(vectors) > _CHUNK:
            self._hand_over()
        self._seq_nos += [seq_no] * len(vectors)
        self._waiting += vectors

    def finish(self) -> list[Tile]:
        """Give the tiles of all that was taken, full ones but the last."""
        self._hand_over()
        self._join()
        if self._parts:
            self._tiles.append(join(self._parts))
        return self._tiles

    def _take(self, seq_nos: Sequence[int], vectors: Sequence[EncodedVector]) -> None:
        kept = np.ones(len(seq_nos), np.bool_)
        part = make_tile(numbered(vectors).batch(np.array(seq_nos, np.int64), kept), self._vocabulary)
        together = [*self._parts, part]
        if rows_needed(sum(tile.live for tile in together), max(tile.widest for tile in together)) > TILE:
            self._tiles.append(join(self._parts))
            together = [part]
        self._parts = together

    def _hand_over(self) -> None:
        self._join()
        if self._waiting:
            self._working = self._worker.submit(self._take, self._seq_nos, self._waiting)
        self._seq_nos, self._waiting = [], []

    def _join(self) -> None:
        if self._working is not None:
            self._working.result()
