"""A tile: up to 65,536 vectors of documents that hold a sparse field, and their postings by token.

A vector's place in its tile is its row, or document, as long as each document has one vector (see `rows`). A posting is
a row (uint16) and its exact weight (float32), 6 bytes. Tokens have numbers of the tile's own, by falling document
frequency, so that what is kept for frequent tokens alone needs no table: a sealed tile (see `sealing`) knows where each
block of rows begins in the postings of tokens that 256 rows or more hold, and has a dense row of one-byte weights for
each token that an eighth of its rows hold.

A tile never changes; deleting documents gives a new one that shares everything but `alive`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from termwise.storage.tantivy.build_kernels import cut, invert, measure, quantise
from termwise.storage.tantivy.postings import BLOCK
from termwise.storage.tantivy.rows import NO_GAPS, NOBODY_FOLLOWS, followers, lay_out, rows_needed
from termwise.storage.types import MAX_CHUNKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from termwise.storage.tantivy.rows import Rows

TILE: Final = 65_536
"""Most rows in a tile: as many as uint16 can tell apart."""

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

    `lengths[n]` (int64) tokens each: `tokens` (int32, places in `words`) and `weights` (float32). The documents'
    `seq_nos` (int64, above 0) ascend; a document of several vectors stands as often, `widest` times at most.
    """

    seq_nos: NDArray[np.int64]
    lengths: NDArray[np.int64]
    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    words: Sequence[str]

    def __len__(self) -> int:
        """Count the vectors."""
        return len(self.seq_nos)

    def parts(self, most: int) -> Iterator[Batch]:
        """Cut into parts that fit into `most` rows, each of whole documents."""
        least = most
        while rows_needed(least, self.widest) > most:
            least = most - (rows_needed(least, self.widest) - least)
        first = 0
        while first < len(self):
            last = min(first + least, len(self))
            if last < len(self):
                last = int(np.searchsorted(self.seq_nos, self.seq_nos[last]))
            yield self.part(first, last)
            first = last

    @property
    def widest(self) -> int:
        """The most vectors that a document has."""
        heads = np.flatnonzero(np.diff(self.seq_nos, prepend=0))
        return int(np.diff(heads, append=len(self)).max(initial=1))

    def part(self, first: int, last: int) -> Batch:
        """Give the vectors from `first` to before `last`."""
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

    By row: its document's `seq_nos` (int64, ascending) and `alive` (uint8, 0 or 1), of which `live` are alive. By token
    of the tile: `tokens` (int32, the token's number in the vocabulary), `maxima` and `minima` of its weights (float32),
    and its postings `docs` (uint16, ascending) and `weights` (float32) from `starts[token]` to `starts[token + 1]`
    (uint32). For the first tokens of a tile that is not small: `cuts` (uint32, shape [tokens, blocks + 1]), where each
    block of rows begins in the postings, and for fewer of them `rows` (uint8, shape [tokens, rows and padding]):
    weights in 255ths of the token's maximum, rounded up, 0 for none.

    Where documents have several rows, `follows` (uint8 by row) is 1 for all but the first of each, and `gaps` (uint32)
    are rows that hold nothing and are never alive (see `rows`); both are empty otherwise.
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
    gaps: NDArray[np.uint32] = field(default_factory=lambda: NO_GAPS)
    follows: NDArray[np.uint8] = field(default_factory=lambda: NOBODY_FOLLOWS)
    sealed: bool = False
    order: NDArray[np.int32] = field(init=False, repr=False)
    """The tile's tokens by ascending number in the vocabulary."""

    def __post_init__(self) -> None:
        """Sort the tokens."""
        object.__setattr__(self, "order", np.argsort(self.tokens, kind="stable").astype(np.int32))

    def __len__(self) -> int:
        """Count the rows, dead ones too."""
        return len(self.seq_nos)

    @property
    def dead(self) -> int:
        """Count the rows of dead documents."""
        return len(self) - len(self.gaps) - self.live

    @cached_property
    def heads(self) -> NDArray[np.intp]:
        """The first row of each document."""
        return np.flatnonzero(self.follows == 0) if len(self.follows) else np.arange(len(self))

    @cached_property
    def document_count(self) -> int:
        """How many documents are alive."""
        return int(self.alive[self.heads].sum()) if len(self.follows) else self.live

    @cached_property
    def widest(self) -> int:
        """The most rows that a document has, or a few more."""
        return min(int(np.diff(self.heads, append=len(self)).max()), MAX_CHUNKS) if len(self.follows) else 1

    def documents(self, *, alive: bool) -> NDArray[np.int64]:
        """Give the seq_nos of the documents that are alive, or of those that are not."""
        heads = self.heads
        found: NDArray[np.int64] = self.seq_nos[heads[self.alive[heads] == alive]]
        return found

    def find(self, seq_nos: NDArray[np.int64]) -> NDArray[np.intp]:
        """Give the rows of those documents (ascending) that are here and alive."""
        places = np.minimum(np.searchsorted(self.seq_nos, seq_nos), len(self) - 1)
        found: NDArray[np.intp] = places[(self.seq_nos[places] == seq_nos) & (self.alive[places] == 1)]
        if not len(self.follows):
            return found
        bounds = np.append(self.heads, len(self))
        documents = np.searchsorted(self.heads, found)
        counts = bounds[documents + 1] - found
        rows: NDArray[np.intp] = np.repeat(found - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        return rows

    def without(self, seq_nos: NDArray[np.int64]) -> Tile:
        """Mark documents as dead; those that are not here do not matter."""
        first, last = np.searchsorted(seq_nos, self.seq_nos[[0, -1]] + (0, 1))
        found = self.find(seq_nos[first:last])
        if not len(found):
            return self
        alive = self.alive.copy()
        alive[found] = 0
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
        addresses = tuple(array.__array_interface__["data"][0] for array in arrays)
        return (*sizes, *addresses, self.follows.__array_interface__["data"][0] if len(self.follows) else 0)


def make_tile(batch: Batch, vocabulary: Vocabulary) -> Tile:
    """Make an unsealed tile of vectors that fit into one."""
    rows = lay_out(batch.seq_nos)
    lengths = batch.lengths
    if len(rows.gaps):
        lengths = np.zeros(len(rows.seq_nos), np.int64)
        lengths[rows.places] = batch.lengths
    counts = np.bincount(batch.tokens, minlength=len(batch.words))
    local = by_frequency(counts)
    starts = np.zeros(len(local) + 1, np.int64)
    np.cumsum(counts[local], out=starts[1:])
    places = np.zeros(len(counts), np.int64)
    places[local] = starts[:-1]
    docs, weights = np.empty(len(batch.tokens), np.uint16), np.empty(len(batch.tokens), np.float32)
    invert(batch.tokens, batch.weights.astype(np.float32, copy=False), lengths, places, docs, weights)
    tokens = vocabulary.numbers(batch.words[word] for word in local.tolist())
    return unsealed(rows, tokens, starts.astype(np.uint32), docs, weights)


def unsealed(
    rows: Rows,
    tokens: NDArray[np.int32],
    starts: NDArray[np.uint32],
    docs: NDArray[np.uint16],
    weights: NDArray[np.float32],
) -> Tile:
    """Make an unsealed tile of postings by token, all documents alive."""
    seq_nos, gaps = rows.seq_nos, rows.gaps
    maxima, minima = np.empty(len(tokens), np.float32), np.empty(len(tokens), np.float32)
    measure(starts, weights, maxima, minima)
    size = len(seq_nos)
    parts = indexed(starts, docs, weights, maxima, size) if size >= _SMALL else _NO_PARTS
    alive, live = _all_alive(size, gaps)
    own: dict[str, Any] = {"gaps": gaps, "follows": followers(seq_nos)}
    return Tile(seq_nos, alive, live, tokens, starts, docs, weights, maxima, minima, **parts, **own)


def _all_alive(size: int, gaps: NDArray[np.uint32]) -> tuple[NDArray[np.uint8], int]:
    alive = np.ones(size, np.uint8)
    alive[gaps] = 0
    return alive, size - len(gaps)


_NO_PARTS: Final = {"cuts": np.empty((0, 0), np.uint32), "rows": np.empty((0, 0), np.uint8)}


def indexed(
    starts: NDArray[np.uint32],
    docs: NDArray[np.uint16],
    weights: NDArray[np.float32],
    maxima: NDArray[np.float32],
    size: int,
) -> dict[str, Any]:
    """Make the cuts and rows of a tile of `size` rows."""
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
    gaps: NDArray[np.uint32],
) -> Tile:
    """Make a sealed tile of what a file kept, all documents alive. `words` are the tile's tokens in its own order."""
    alive, live = _all_alive(len(seq_nos), gaps)
    tokens = vocabulary.numbers(words)
    blocks = -(-len(seq_nos) // BLOCK)
    if len(cuts) and cuts.shape[1] != blocks + 1:  # a file from before blocks changed their size
        cuts = np.empty((len(cuts), blocks + 1), np.uint32)
        cut(starts, docs, BLOCK, cuts)
    own: dict[str, Any] = {"gaps": gaps, "follows": followers(seq_nos), "sealed": True}
    return Tile(seq_nos, alive, live, tokens, starts, docs, weights, maxima, minima, cuts, rows, **own)


def by_frequency(counts: NDArray[np.int64]) -> NDArray[np.intp]:
    """List what occurs, the most frequent first."""
    order = np.argsort(-counts, kind="stable")
    return order[: int(np.count_nonzero(counts))]
