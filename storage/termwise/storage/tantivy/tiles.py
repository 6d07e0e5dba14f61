"""The exact path: the sparse vectors of one field in memory, as postings that are scored without approximation.

Documents stand in tiles of up to 65,536 in the order of their seq_no. A posting is a document's place in its tile
(uint16) and its exact weight (float32), 6 bytes. A search adds up the query's postings in float32, tile by tile, so
that a tile's scores stay in the processor's cache (measured: half a nanosecond a posting, no slower than one-byte
weights, which would need a second, exact pass), and keeps the best.

Everything here is immutable: a write gives a new `SparseTiles` that shares what did not change. New documents become a
small tile, and small neighbours are merged so that sizes keep falling by half (amortised, each document is copied
log2(65,536) times at most); deleted ones are marked in a copy of their tile's `alive`, and leave at the next merge.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np

from termwise.storage.tantivy.kernels import accumulate, invert, merge, select

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from termwise.storage.types import SparseVector

TILE: Final = 65_536
"""Most documents in a tile: as many as uint16 can tell apart."""

_scratch: Final = threading.local()


class Vocabulary(dict[str, int]):
    """Numbers tokens as they come. Only writes add to it; readers look up while it grows."""

    def __missing__(self, token: str) -> int:
        """Number a new token."""
        number = len(self)
        self[token] = number
        return number


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Documents that have the field, and their postings by token number.

    The postings of `tokens[t]` (int32, ascending) are `docs` (uint16, ascending) and `weights` (float32) from
    `starts[t]` to `starts[t + 1]`. `seq_nos` (int64, ascending) and `alive` (uint8, 0 or 1) are by document, of which
    `live` are alive.
    """

    seq_nos: NDArray[np.int64]
    alive: NDArray[np.uint8]
    live: int
    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    docs: NDArray[np.uint16]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        """Count the documents, dead ones too."""
        return len(self.seq_nos)

    def find(self, seq_nos: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Give each document's place in the tile, and whether it is there and alive."""
        places = np.minimum(np.searchsorted(self.seq_nos, seq_nos), len(self) - 1)
        return places, (self.seq_nos[places] == seq_nos) & (self.alive[places] == 1)

    def without(self, seq_nos: NDArray[np.int64]) -> Tile:
        """Mark documents as dead; those that are not here do not matter."""
        places, found = self.find(seq_nos)
        if not found.any():
            return self
        alive = self.alive.copy()
        alive[places[found]] = 0
        return replace(self, alive=alive, live=int(alive.sum()))

    def scores(self, tokens: NDArray[np.int32], weights: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Score every document, -0.0 where it does not match; None where no token is here.

        The array is this thread's scratch: the next call overwrites it.
        """
        places = np.searchsorted(self.tokens, tokens)
        known = places < len(self.tokens)
        known[known] = self.tokens[places[known]] == tokens[known]
        if not known.any():
            return None
        places = places[known]
        scores = scratch()[: len(self)]
        scores.fill(-0.0)
        accumulate(scores, self.starts[places], self.starts[places + 1], weights[known], self.docs, self.weights)
        return scores


def scratch() -> NDArray[np.float32]:
    """Give this thread's buffer of a tile's scores."""
    buffer: NDArray[np.float32] | None = getattr(_scratch, "scores", None)
    if buffer is None:
        buffer = _scratch.scores = np.empty(TILE, np.float32)
    return buffer


def build_tile(seq_nos: NDArray[np.int64], vectors: Sequence[SparseVector], vocabulary: Vocabulary) -> Tile:
    """Make a tile of up to 65,536 documents, ascending by seq_no."""
    lengths = np.fromiter(map(len, vectors), np.int64, len(vectors))
    total = int(lengths.sum())
    number = map(vocabulary.__getitem__, chain.from_iterable(vector.tokens for vector in vectors))
    tokens = np.fromiter(number, np.int32, total)
    weights = np.concatenate([vector.weights for vector in vectors]) if total else np.empty(0, np.float32)
    return make_tile(seq_nos, lengths, tokens, weights)


def make_tile(
    seq_nos: NDArray[np.int64], lengths: NDArray[np.int64], tokens: NDArray[np.int32], weights: NDArray[np.float32]
) -> Tile:
    """Make a tile of vectors that stand one after another, `lengths[doc]` token numbers and weights each."""
    total = len(tokens)
    counts = np.bincount(tokens, minlength=1)
    present = np.flatnonzero(counts)
    places = np.cumsum(counts) - counts
    docs_out, weights_out = np.empty(total, np.uint16), np.empty(total, np.float32)
    starts = np.append(places[present], total)
    invert(tokens, weights.astype(np.float32, copy=False), lengths, places, docs_out, weights_out)
    alive = np.ones(len(lengths), np.uint8)
    return Tile(seq_nos, alive, len(lengths), present.astype(np.int32), starts, docs_out, weights_out)


def merge_tiles(first: Tile, second: Tile) -> Tile:
    """Join two neighbours, without their dead documents."""
    moved_a = np.where(first.alive, np.cumsum(first.alive, dtype=np.int32) - 1, -1).astype(np.int32)
    moved_b = np.where(second.alive, np.cumsum(second.alive, dtype=np.int32) - 1 + first.live, -1).astype(np.int32)
    tokens = np.empty(len(first.tokens) + len(second.tokens), np.int32)
    starts = np.empty(len(tokens) + 1, np.int64)
    docs = np.empty(len(first.docs) + len(second.docs), np.uint16)
    weights = np.empty(len(docs), np.float32)
    a = (first.tokens, first.starts, first.docs, first.weights, moved_a)
    b = (second.tokens, second.starts, second.docs, second.weights, moved_b)
    count = merge(*a, *b, tokens, starts, docs, weights)
    kept = int(starts[count])
    seq_nos = np.concatenate([first.seq_nos[first.alive == 1], second.seq_nos[second.alive == 1]])
    return Tile(
        seq_nos,
        np.ones(len(seq_nos), np.uint8),
        len(seq_nos),
        tokens[:count].copy(),
        starts[: count + 1].copy(),
        docs if kept == len(docs) else docs[:kept].copy(),
        weights if kept == len(docs) else weights[:kept].copy(),
    )


_EMPTY: Final = build_tile(np.empty(0, np.int64), (), Vocabulary())


@dataclass(frozen=True, eq=False)
class SparseTiles:
    """One field's vectors at one moment."""

    vocabulary: Vocabulary
    tiles: tuple[Tile, ...] = ()

    def changed(
        self, removed: NDArray[np.int64], seq_nos: NDArray[np.int64], vectors: Sequence[SparseVector]
    ) -> SparseTiles:
        """Take documents out (ascending seq_nos; others do not matter) and append newer ones (ascending)."""
        tiles = [self._emptied(tile, removed) for tile in self.tiles] if len(removed) else list(self.tiles)
        tiles = [tile for tile in tiles if tile.live]
        for first in range(0, len(vectors), TILE):
            part = slice(first, first + TILE)
            tiles.append(build_tile(seq_nos[part], vectors[part], self.vocabulary))
            while len(tiles) > 1 and tiles[-2].live <= tiles[-1].live and tiles[-2].live + tiles[-1].live <= TILE:
                last = tiles.pop()
                tiles[-1] = merge_tiles(tiles[-1], last)
        return SparseTiles(self.vocabulary, tuple(tiles))

    @staticmethod
    def _emptied(tile: Tile, removed: NDArray[np.int64]) -> Tile:
        first, last = np.searchsorted(removed, tile.seq_nos[[0, -1]] + (0, 1))
        tile = tile.without(removed[first:last])
        return merge_tiles(tile, _EMPTY) if 0 < tile.live < len(tile) // 2 else tile

    @property
    def document_count(self) -> int:
        """Count the documents that hold the field."""
        return sum(tile.live for tile in self.tiles)

    @cached_property
    def frequencies(self) -> NDArray[np.int64]:
        """Count documents by token number; deleted ones count until they are merged away."""
        counts = np.zeros(len(self.vocabulary), np.int64)
        for tile in self.tiles:
            counts[tile.tokens] += np.diff(tile.starts)
        return counts

    def rank(
        self, vector: SparseVector, depth: int, allowed: Sequence[NDArray[np.uint8]] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        """Give the seq_nos and scores of the best `depth` documents, and how many match in all.

        `allowed`, made by `masks`, narrows them down.
        """
        tokens, weights = self._query(vector)
        heap = np.empty(min(depth, self.document_count), np.uint64)
        size = total = base = 0
        for place, tile in enumerate(self.tiles):
            scores = tile.scores(tokens, weights)
            if scores is not None:
                count, size = select(scores, tile.alive if allowed is None else allowed[place], base, heap, size)
                total += count
            base += len(tile)
        keys = np.sort(heap[:size])[::-1]
        best = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
        numbers = (np.uint64(0xFFFFFFFF) - (keys & np.uint64(0xFFFFFFFF))).astype(np.int64)
        return self._seq_nos(numbers), best, total

    def score(self, vector: SparseVector, seq_nos: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score documents, NaN where they do not match or are not here."""
        tokens, weights = self._query(vector)
        result = np.full(len(seq_nos), np.nan, np.float32)
        for tile in self.tiles:
            places, found = tile.find(seq_nos)
            if not found.any() or (scores := tile.scores(tokens, weights)) is None:
                continue
            values = scores[places[found]]
            result[found] = np.where(np.signbit(values), np.nan, np.minimum(values, np.finfo(np.float32).max))
        return result

    def masks(self, seq_nos: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Mark, tile by tile, the documents (ascending seq_nos) that `rank` may give."""
        masks = []
        for tile in self.tiles:
            first, last = np.searchsorted(seq_nos, tile.seq_nos[[0, -1]] + (0, 1))
            places, found = tile.find(seq_nos[first:last])
            mask = np.zeros(len(tile), np.uint8)
            mask[places[found]] = 1
            masks.append(mask)
        return masks

    def _query(self, vector: SparseVector) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Number the query's known tokens, in its order: every path adds products in that order, so sums are equal."""
        numbers = np.array([self.vocabulary.get(token, -1) for token in vector.tokens], np.int32)
        known = numbers >= 0
        return numbers[known], vector.weights[known].astype(np.float32, copy=False)

    def _seq_nos(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        result = np.empty(len(numbers), np.int64)
        ends = np.cumsum([len(tile) for tile in self.tiles]) if self.tiles else np.empty(0, np.int64)
        homes = np.searchsorted(ends, numbers, side="right")
        for home in np.unique(homes).tolist():
            here = homes == home
            tile = self.tiles[home]
            result[here] = tile.seq_nos[numbers[here] - (ends[home] - len(tile))]
        return result
