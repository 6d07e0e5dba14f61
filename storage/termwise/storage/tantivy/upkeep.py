"""Which tiles to make anew, and how the new one takes its place while writes go on. Nothing here touches a file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from termwise.storage.tantivy.rows import rows_needed
from termwise.storage.tantivy.tile import TILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from termwise.storage.tantivy.tile import Tile

_MOST_DEAD: Final = 4
"""A sealed tile is made anew when one of so many of its documents is dead: a search reads the dead ones too."""

_MOST_DEAD_IDLE: Final = 8
"""The same for an index that nobody writes to, where it keeps nobody waiting."""

_WORTH_SEALING: Final = 2048
"""Documents in unsealed tiles that are sealed when nobody writes; fewer are searched as fast as they are."""


def tiles_to_seal(tiles: Sequence[Tile], *, idle: bool = False) -> slice | None:
    """Choose neighbours that are to become one sealed tile, the oldest first; None where all is well.

    Unsealed tiles are full when the next one does not fit in with them; with `idle`, they need not be full.
    """
    place = 0
    while place < len(tiles):
        end, live = _run(tiles, place)
        if tiles[place].sealed:
            dead = tiles[place].dead
            if end > place + 1:
                return slice(place, end)
            if (_MOST_DEAD_IDLE if idle else _MOST_DEAD) * dead >= len(tiles[place]):
                return slice(place, place + 1)
        elif end < len(tiles) or live == TILE or (idle and live >= _WORTH_SEALING):
            return slice(place, end)
        place = end
    return None


def _run(tiles: Sequence[Tile], first: int) -> tuple[int, int]:
    """Give the end of the longest run of tiles, all sealed or none, that fit into one; and how many are alive there."""
    end, live, widest = first + 1, tiles[first].live, tiles[first].widest
    while end < len(tiles) and tiles[end].sealed == tiles[first].sealed:
        widest = max(widest, tiles[end].widest)
        if rows_needed(live + tiles[end].live, widest) > TILE:
            break
        live += tiles[end].live
        end += 1
    return end, live


def reserved(tiles: Sequence[Tile], run: slice) -> list[Tile]:
    """Mark tiles as sealed, so that no write joins them with others while they are being made into one."""
    return [*tiles[: run.start], *(replace(tile, sealed=True) for tile in tiles[run]), *tiles[run.stop :]]


def released(tiles: Sequence[Tile], old: Sequence[Tile]) -> list[Tile]:
    """Take the mark of `reserved` from old ones that were not made into one after all."""
    held = {id(tile.seq_nos) for tile in old}
    return [replace(tile, sealed=False) if id(tile.seq_nos) in held else tile for tile in tiles]


def swapped(tiles: Sequence[Tile], old: Sequence[Tile], new: Tile) -> list[Tile] | None:
    """Put a new tile in the place of old ones, less what was deleted since; None where those are there no more.

    Old ones are known by their array of seq_nos, which deletions leave as it is. One that is missing among others has
    lost all its documents.
    """
    held = {id(tile.seq_nos): place for place, tile in enumerate(tiles)}
    places = [held.get(id(tile.seq_nos)) for tile in old]
    found = [place for place in places if place is not None]
    if not found:
        return None
    dead = [
        tile.seq_nos if place is None else tiles[place].documents(alive=False)
        for tile, place in zip(old, places, strict=True)
    ]
    fresh = new.without(np.concatenate(dead))
    return [*tiles[: found[0]], *([fresh] if fresh.live else []), *tiles[found[-1] + 1 :]]


def with_dead(tile: Tile, alive: NDArray[np.int64]) -> Tile:
    """Mark every document as dead that is not among `alive` (ascending seq_nos)."""
    return tile.without(np.setdiff1d(tile.seq_nos, alive))
