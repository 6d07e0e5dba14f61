"""The exact path: the sparse vectors of one field in memory, scored without approximation.

Everything here is immutable: a write gives a new `SparseTiles` that shares what did not change. New documents become a
small tile, and small neighbours are joined so that sizes keep falling by half (amortised, each document is copied
log2(65,536) times at most); deleted ones are marked in a copy of their tile's `alive`. Sealed tiles are left as they
are; who seals them decides when to make them anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Final

import numpy as np

from termwise.storage.tantivy.postings import BLOCK
from termwise.storage.tantivy.rank_kernels import rank, score
from termwise.storage.tantivy.rows import rows_needed
from termwise.storage.tantivy.sealing import join
from termwise.storage.tantivy.tile import TILE, Batch, Tile, Vocabulary, make_tile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from termwise.storage.types import SparseVector

__all__ = ["TILE", "Batch", "Permitted", "SparseTiles", "Tile", "Vocabulary", "make_tile"]

_ALL: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Permitted:
    """The documents that a filter leaves, by tile: 1 or 0 (uint8) by row, and how many rows (int32) by block."""

    masks: Sequence[NDArray[np.uint8]]
    filled: NDArray[np.int32]
    addresses: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Measure the memory."""
        return sum(mask.nbytes for mask in self.masks) + self.filled.nbytes


NO_DOCUMENTS: Final = Batch(
    np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), ()
)

_EVERYONE: Final = Permitted((), np.empty(0, np.int32), np.empty(0, np.int64))


@dataclass(frozen=True, eq=False)
class SparseTiles:
    """One field's vectors at one moment."""

    vocabulary: Vocabulary
    tiles: tuple[Tile, ...] = ()

    def changed(self, removed: NDArray[np.int64], batch: Batch = NO_DOCUMENTS) -> SparseTiles:
        """Take documents out (ascending seq_nos; others do not matter) and append newer ones."""
        tiles = [tile.without(removed) for tile in self.tiles] if len(removed) else list(self.tiles)
        tiles = [tile for tile in tiles if tile.live]
        for place, tile in enumerate(tiles):
            if not tile.sealed and 2 * tile.live < len(tile):
                tiles[place] = join([tile])
        for part in batch.parts(TILE):
            tiles.append(make_tile(part, self.vocabulary))
            while len(tiles) > 1 and _belong(tiles[-2], tiles[-1]):
                last = tiles.pop()
                tiles[-1] = join([tiles[-1], last])
        return SparseTiles(self.vocabulary, tuple(tiles))

    @property
    def document_count(self) -> int:
        """Count the documents that hold the field."""
        return sum(tile.document_count for tile in self.tiles)

    @property
    def vector_count(self) -> int:
        """Count the documents' vectors."""
        return sum(tile.live for tile in self.tiles)

    @cached_property
    def frequencies(self) -> NDArray[np.int64]:
        """Count vectors by token number; those of deleted documents count until they are joined away."""
        counts = np.zeros(len(self.vocabulary), np.int64)
        for tile in self.tiles:
            counts[tile.tokens] += np.diff(tile.starts)
        return counts

    @cached_property
    def _directory(self) -> NDArray[np.int64]:
        return np.array([tile.entry for tile in self.tiles], np.int64)

    def rank(
        self, vector: SparseVector, depth: int, permitted: Permitted | None = None, *, count: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], int, bool]:
        """Give the seq_nos and scores of the best `depth` documents, how many match, and whether that is exact.

        `permitted`, made by `permit`, narrows them down. Matches are counted as far as `count`, all of them by default.
        """
        room = min(depth, self.document_count)
        seq_nos, scores = np.empty(room, np.int64), np.empty(room, np.float32)
        if not room:
            return seq_nos, scores, 0, True
        those = permitted or _EVERYONE
        size, total, counted = rank(
            self._directory,
            those.addresses,
            those.filled,
            self._numbers(vector),
            vector.weights,
            _ALL if count is None else count,
            seq_nos,
            scores,
        )
        if size == self.document_count:
            total, counted = size, True
        return seq_nos[:size], scores[:size], total, counted

    def score(self, vector: SparseVector, seq_nos: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score documents, NaN where they do not match or are not here."""
        scores = np.full(len(seq_nos), np.nan, np.float32)
        if self.tiles:
            score(self._directory, self._numbers(vector), vector.weights, np.ascontiguousarray(seq_nos), scores)
        return scores

    def permit(self, seq_nos: NDArray[np.int64]) -> Permitted:
        """Mark the documents (ascending seq_nos) that `rank` may give."""
        masks, filled = [], [np.empty(0, np.int32)]
        for tile in self.tiles:
            first, last = np.searchsorted(seq_nos, tile.seq_nos[[0, -1]] + (0, 1))
            mask = np.zeros(len(tile), np.uint8)
            mask[tile.find(seq_nos[first:last])] = 1
            masks.append(mask)
            filled.append(np.add.reduceat(mask, np.arange(0, len(tile), BLOCK), dtype=np.int32))
        addresses = np.array([mask.__array_interface__["data"][0] for mask in masks], np.int64)
        return Permitted(masks, np.concatenate(filled), addresses)

    def _numbers(self, vector: SparseVector) -> NDArray[np.int32]:
        """Number the query's tokens, in its order: every path adds products in that order, so sums are equal."""
        return np.fromiter(map(self.vocabulary.get, vector.tokens, repeat(-1)), np.int32, len(vector.tokens))


def _belong(first: Tile, second: Tile) -> bool:
    """Tell whether neighbours are to be joined."""
    if first.sealed or second.sealed or first.live > second.live:
        return False
    return rows_needed(first.live + second.live, max(first.widest, second.widest)) <= TILE
