"""A tile: up to 65,536 documents that hold a sparse field, and their postings by token.

A posting is a document's place in its tile (uint16) and its exact weight (float32), 6 bytes. Tokens have numbers of the
tile's own, by falling document frequency, so that what is kept for frequent tokens alone needs no table: a sealed tile
(see `sealing`) knows where each block of documents begins in the postings of tokens that 256 documents or more hold,
and has a dense row of one-byte weights for each token that an eighth of its documents hold.

A tile never changes; deleting documents gives a new one that shares everything but `alive`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from termwise.storage.tantivy.build_kernels import cut, invert, measure, quantise
from termwise.storage.tantivy.postings import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

TILE: Final = 65_536
"""Most documents in a tile: as many as uint16 can tell apart."""

_SMALL: Final = 2048
"""Documents below which an open tile has neither cuts nor rows: it is soon joined to others."""

_CUT: Final = 256
"""Documents that must hold a token for it to get cuts: 36 bytes against at least 1,536 of postings."""

_DENSE: Final = 8
"""A row stands for a token that one document of so many holds: adding it up takes .15 µs a block (measured), as long as
450 postings, and costs a byte a document."""

_PADDING: Final = 64
"""Rows are a multiple of this long, so that all of them begin where a cache line does if the first one does."""


class Vocabulary(dict[str, int]):
    """Numbers tokens as they come, across the tiles of a field. Only writes add to it; readers look up meanwhile."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self.words: list[str] = []
        """Tokens by number."""

    def __missing__(self, token: str) -> int:
        """Number a new token."""
        number = len(self.words)
        self.words.append(token)
        self[token] = number
        return number

    def numbers(self, tokens: Iterable[str]) -> NDArray[np.int32]:
        """Number tokens, new ones too."""
        return np.fromiter(map(self.__getitem__, tokens), np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Vectors of documents, one after another.

    `lengths[doc]` (int64) tokens each: `tokens` (int32, places in `words`) and `weights` (float32). The documents'
    `seq_nos` (int64) ascend.
    """

    seq_nos: NDArray[np.int64]
    lengths: NDArray[np.int64]
    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    words: Sequence[str]

    def __len__(self) -> int:
        """Count the documents."""
        return len(self.seq_nos)

    def part(self, first: int, last: int) -> Batch:
        """Give the documents from `first` to before `last`."""
        start, end = (int(self.lengths[:place].sum()) for place in (first, last))
        return Batch(
            self.seq_nos[first:last],
            self.lengths[first:last],
            self.tokens[start:end],
            self.weights[start:end],
            self.words,
        )


@dataclass(frozen=True, eq=False)
class Tile:
    """Documents that hold the field, and their postings.

    By document: `seq_nos` (int64, ascending) and `alive` (uint8, 0 or 1), of which `live` are alive. By token of the
    tile: `tokens` (int32, the token's number in the vocabulary), `maxima` and `minima` of its weights (float32), and
    its postings `docs` (uint16, ascending) and `weights` (float32) from `starts[token]` to `starts[token + 1]`
    (uint32). For the first tokens of a tile that is not small: `cuts` (uint32, shape [tokens, blocks + 1]), where each
    block of documents begins in the postings, and for fewer of them `rows` (uint8, shape [tokens, documents and
    padding]): weights in 255ths of the token's maximum, rounded up, 0 for none.
    """

    seq_nos: NDArray[np.int64]
    alive: NDArray[np.uint8]
    live: int
    tokens: NDArray[np.int32]
    starts: NDArray[np.uint32]
    docs: NDArray[np.uint16]
    weights: NDArray[np.float32]
    maxima: NDArray[np.float32]
    minima: NDArray[np.float32]
    cuts: NDArray[np.uint32]
    rows: NDArray[np.uint8]
    sealed: bool = False
    order: NDArray[np.int32] = field(init=False, repr=False)
    """The tile's tokens by ascending number in the vocabulary."""

    def __post_init__(self) -> None:
        """Sort the tokens."""
        object.__setattr__(self, "order", np.argsort(self.tokens, kind="stable").astype(np.int32))

    def __len__(self) -> int:
        """Count the documents, dead ones too."""
        return len(self.seq_nos)

    def find(self, seq_nos: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Give each document's place in the tile, and whether it is there and alive."""
        places = np.minimum(np.searchsorted(self.seq_nos, seq_nos), len(self) - 1)
        return places, (self.seq_nos[places] == seq_nos) & (self.alive[places] == 1)

    def without(self, seq_nos: NDArray[np.int64]) -> Tile:
        """Mark documents as dead; those that are not here do not matter."""
        first, last = np.searchsorted(seq_nos, self.seq_nos[[0, -1]] + (0, 1))
        places, found = self.find(seq_nos[first:last])
        if not found.any():
            return self
        alive = self.alive.copy()
        alive[places[found]] = 0
        return replace(self, alive=alive, live=int(alive.sum()))

    @cached_property
    def sorted_tokens(self) -> NDArray[np.int32]:
        """The tokens' numbers in the vocabulary, ascending."""
        return self.tokens[self.order]

    @cached_property
    def entry(self) -> tuple[int, ...]:
        """What kernels are told of the tile: sizes, then addresses. See `rank_kernels` for the columns."""
        arrays = (
            self.seq_nos,
            self.alive,
            self.sorted_tokens,
            self.order,
            self.starts,
            self.docs,
            self.weights,
            self.maxima,
            self.minima,
            self.cuts,
            self.rows,
        )
        sizes = (len(self), self.live, len(self.tokens), *self.cuts.shape, *self.rows.shape)
        return sizes + tuple(array.__array_interface__["data"][0] for array in arrays)


def make_tile(batch: Batch, vocabulary: Vocabulary) -> Tile:
    """Make an unsealed tile of up to 65,536 documents."""
    counts = np.bincount(batch.tokens, minlength=len(batch.words))
    local = by_frequency(counts)
    starts = np.zeros(len(local) + 1, np.int64)
    np.cumsum(counts[local], out=starts[1:])
    places = np.zeros(len(counts), np.int64)
    places[local] = starts[:-1]
    docs, weights = np.empty(len(batch.tokens), np.uint16), np.empty(len(batch.tokens), np.float32)
    invert(batch.tokens, batch.weights.astype(np.float32, copy=False), batch.lengths, places, docs, weights)
    tokens = vocabulary.numbers(batch.words[word] for word in local.tolist())
    return unsealed(batch.seq_nos, tokens, starts.astype(np.uint32), docs, weights)


def unsealed(
    seq_nos: NDArray[np.int64],
    tokens: NDArray[np.int32],
    starts: NDArray[np.uint32],
    docs: NDArray[np.uint16],
    weights: NDArray[np.float32],
) -> Tile:
    """Make an unsealed tile of postings by token, all documents alive."""
    maxima, minima = np.empty(len(tokens), np.float32), np.empty(len(tokens), np.float32)
    measure(starts, weights, maxima, minima)
    alive = np.ones(len(seq_nos), np.uint8)
    size = len(seq_nos)
    parts = indexed(starts, docs, weights, maxima, size) if size >= _SMALL else _NO_PARTS
    return Tile(seq_nos, alive, size, tokens, starts, docs, weights, maxima, minima, **parts)


_NO_PARTS: Final = {"cuts": np.empty((0, 0), np.uint32), "rows": np.empty((0, 0), np.uint8)}


def indexed(
    starts: NDArray[np.uint32],
    docs: NDArray[np.uint16],
    weights: NDArray[np.float32],
    maxima: NDArray[np.float32],
    size: int,
) -> dict[str, Any]:
    """Make the cuts and rows of a tile of `size` documents."""
    counts, blocks = np.diff(starts), -(-size // BLOCK)
    cuts = np.empty((int((counts >= _CUT).sum()) if blocks > 1 else 0, blocks + 1), np.uint32)
    cut(starts, docs, BLOCK, cuts)
    # No more than a byte a posting, however the tokens are spread.
    dense = min(int((counts * _DENSE >= size).sum()), len(docs) // max(size, 1))
    rows = np.zeros((dense, -(-size // _PADDING) * _PADDING), np.uint8)
    quantise(starts, docs, weights, maxima, rows)
    return {"cuts": cuts, "rows": rows}


def restore(  # noqa: PLR0913 - what a file holds
    vocabulary: Vocabulary,
    words: Sequence[str],
    *,
    seq_nos: NDArray[np.int64],
    starts: NDArray[np.uint32],
    docs: NDArray[np.uint16],
    weights: NDArray[np.float32],
    maxima: NDArray[np.float32],
    minima: NDArray[np.float32],
    cuts: NDArray[np.uint32],
    rows: NDArray[np.uint8],
) -> Tile:
    """Make a sealed tile of what a file kept, all documents alive. `words` are the tile's tokens in its own order."""
    alive = np.ones(len(seq_nos), np.uint8)
    tokens = vocabulary.numbers(words)
    blocks = -(-len(seq_nos) // BLOCK)
    if len(cuts) and cuts.shape[1] != blocks + 1:  # a file from before blocks changed their size
        cuts = np.empty((len(cuts), blocks + 1), np.uint32)
        cut(starts, docs, BLOCK, cuts)
    return Tile(seq_nos, alive, len(alive), tokens, starts, docs, weights, maxima, minima, cuts, rows, sealed=True)


def by_frequency(counts: NDArray[np.int64]) -> NDArray[np.intp]:
    """List what occurs, the most frequent first."""
    order = np.argsort(-counts, kind="stable")
    return order[: int(np.count_nonzero(counts))]
