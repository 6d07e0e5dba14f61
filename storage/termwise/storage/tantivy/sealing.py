"""Joins tiles, and seals them: a sealed tile is not joined any more, so what it holds is written to a file once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from termwise.storage.tantivy.build_kernels import append, count_live
from termwise.storage.tantivy.rows import lay_out
from termwise.storage.tantivy.tile import Tile, by_frequency, indexed, unsealed

if TYPE_CHECKING:
    from collections.abc import Sequence


def join(tiles: Sequence[Tile]) -> Tile:
    """Make one unsealed tile of neighbours, without their dead documents; what is alive has to fit into one."""
    rows = lay_out(np.concatenate([tile.seq_nos[tile.alive == 1] for tile in tiles]))
    base, moved = 0, []
    for tile in tiles:
        moved.append(np.full(len(tile), -1, np.int32))
        moved[-1][tile.alive == 1] = rows.places[base : base + tile.live]
        base += tile.live
    numbers, homes = np.unique(np.concatenate([tile.tokens for tile in tiles]), return_inverse=True)
    counts = np.zeros(len(numbers), np.int64)
    by_tile = np.split(homes.astype(np.int64), np.cumsum([len(tile.tokens) for tile in tiles])[:-1])
    for tile, places, home in zip(tiles, moved, by_tile, strict=True):
        count_live(tile.starts, tile.docs, places, home, counts)
    kept = by_frequency(counts)
    starts = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(counts[kept], out=starts[1:])
    places_out = np.zeros(len(numbers), np.int64)
    places_out[kept] = starts[:-1]
    docs, weights = np.empty(int(starts[-1]), np.uint16), np.empty(int(starts[-1]), np.float32)
    for tile, places, home in zip(tiles, moved, by_tile, strict=True):
        append(tile.starts, tile.docs, tile.weights, places, home, places_out, docs, weights)
    return unsealed(rows, numbers[kept], starts.astype(np.uint32), docs, weights)


def seal(tiles: Sequence[Tile]) -> Tile:
    """Make one sealed tile of neighbours, without their dead documents; what is alive has to fit into one."""
    tile = tiles[0] if len(tiles) == 1 and not tiles[0].dead else join(tiles)
    return replace(tile, sealed=True, **indexed(tile.starts, tile.docs, tile.weights, tile.maxima, len(tile)))
