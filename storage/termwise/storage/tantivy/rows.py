"""How vectors lie in a tile: a row each, those of one document side by side and never in two blocks.

A search adds up the scores of a block's rows, and gives each document its best row's; so no document may begin in one
block and end in another. Where it would, it moves to where the next block begins. The rows left free, `gaps`, count as
the document's before, but are dead and hold nothing. Where each document has one vector, a row is a document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from termwise.storage.tantivy.postings import BLOCK

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_GAPS: Final = np.empty(0, np.uint32)
NOBODY_FOLLOWS: Final = np.empty(0, np.uint8)


class Rows(NamedTuple):
    """Where vectors are put: the row of each (int32), and by row the document's seq_no (int64); `gaps` (uint32)."""

    places: NDArray[np.int32]
    seq_nos: NDArray[np.int64]
    gaps: NDArray[np.uint32]


def lay_out(seq_nos: NDArray[np.int64]) -> Rows:
    """Give vectors their rows; `seq_nos`, ascending, say which document each is of."""
    places = np.arange(len(seq_nos), dtype=np.int32)
    if not len(seq_nos) or not (seq_nos[1:] == seq_nos[:-1]).any():
        return Rows(places, seq_nos, NO_GAPS)
    border = BLOCK
    while places[-1] >= border:
        at = int(np.searchsorted(places, border))
        if seq_nos[at] == seq_nos[at - 1]:
            at = int(np.searchsorted(seq_nos, seq_nos[at]))
        places[at:] += border - places[at]
        border += BLOCK
    size = int(places[-1]) + 1
    gaps = np.setdiff1d(np.arange(size, dtype=np.uint32), places.astype(np.uint32), assume_unique=True)
    return Rows(places, np.repeat(seq_nos, np.diff(places, append=size)), gaps)


def rows_needed(vectors: int, widest: int) -> int:
    """Give how many rows so many vectors take at most, where no document has more than `widest` of them."""
    return vectors + max(vectors - 1, 0) // BLOCK * (widest - 1)


def followers(seq_nos: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Mark (1) the rows that are of the same document as the row before; empty where none is."""
    same = seq_nos[1:] == seq_nos[:-1]
    if not same.any():
        return NOBODY_FOLLOWS
    follows = np.zeros(len(seq_nos), np.uint8)
    follows[1:] = same
    return follows
