"""The exact path of one open index: its tiles by sparse field, as they come from files and from stored vectors."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from tantivy import FieldType, Occur, Query

from termwise.storage.tantivy.codec import read_vectors
from termwise.storage.tantivy.layout import TILES_FOLDER, sync_commit
from termwise.storage.tantivy.loading import Loading
from termwise.storage.tantivy.rows import rows_needed
from termwise.storage.tantivy.sealing import seal
from termwise.storage.tantivy.tile import TILE, Tile, Vocabulary, restore
from termwise.storage.tantivy.tile_files import (
    TileContent,
    TileFile,
    TileFileError,
    is_mapped,
    list_tiles,
    read_tile,
    remove,
    remove_unfinished,
    write_tile,
)
from termwise.storage.tantivy.tiles import SparseTiles
from termwise.storage.tantivy.upkeep import with_dead

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tantivy import Schema, Searcher

    from termwise.storage.tantivy.layout import FieldPlace, Layout

_log: Final = logging.getLogger("termwise.storage")

_ARRAYS: Final = {
    "seq_nos": "<i8",
    "starts": "<u4",
    "docs": "<u2",
    "weights": "<f4",
    "maxima": "<f4",
    "minima": "<f4",
    "cuts": "<u4",
    "rows": "|u1",
    "gaps": "<u4",
}
"""What a file keeps of a tile, and its types; raise TILE_FORMAT where the meaning changes."""

_SPAN: Final = 262_144
"""Seq_nos whose documents are looked up at a time, so that a large index is never listed as a whole."""

_WORTH_A_FILE: Final = 2048
"""Documents in unsealed tiles that a clean shutdown writes to a file; fewer are read again in 50 ms."""


class Accelerator:
    """Reads and writes the tiles of one index folder."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        """Take the index's folder, which nobody else may write to; its files lie in a folder below."""
        self._index_folder = folder
        self._folder = folder / TILES_FOLDER
        self._layout = layout
        remove_unfinished(self._folder)

    def size_of_files(self) -> int:
        """Sum up the sizes of the files in bytes."""
        return sum(file.size for file in list_tiles(self._folder))

    def load(self, searcher: Searcher, schema: Schema, last_seq_no: int) -> Mapping[str, SparseTiles]:
        """Give the tiles of what the searcher sees: from files, and from stored vectors what no file covers."""
        files = list_tiles(self._folder)
        return {
            place.name: self._load_field(
                _Field(place, searcher, schema), [file for file in files if file.field == place.number], last_seq_no
            )
            for place in self._layout.sparse_places()
        }

    def keep(self, place: FieldPlace, vocabulary: Vocabulary, tile: Tile) -> Tile:
        """Write a tile to a file and give it as the file holds it, all documents alive; OSError where that fails.

        What is read from the disk later has to be there first, so tantivy's commit is finished before.
        """
        sync_commit(self._index_folder)
        words = [vocabulary.words[number] for number in tile.tokens.tolist()]
        content = TileContent({name: getattr(tile, name) for name in _ARRAYS}, words)
        file = write_tile(self._folder, self._layout.id, place.number, content)
        for other in list_tiles(self._folder):
            if other.field == place.number and other.path != file.path and _overlap(other, file):
                remove(other.path)
        return self._read(file, vocabulary)

    def keep_rest(self, fields: Mapping[str, SparseTiles], until: float) -> None:
        """Write what no file holds: sealed tiles, and the newest ones as one a field, so that the next start is short.

        No tile is begun after `until`, by the monotonic clock: the next start reads those documents again.
        """
        for name, held in fields.items():
            sealed = max((place for place, tile in enumerate(held.tiles) if tile.sealed), default=-1)
            newest = held.tiles[sealed + 1 :]
            rest = [[tile] for tile in held.tiles if is_unkept(tile)]
            live, widest = sum(tile.live for tile in newest), max((tile.widest for tile in newest), default=1)
            if live >= _WORTH_A_FILE and rows_needed(live, widest) <= TILE:
                rest.append(list(newest))
            for tiles in rest:
                if time.monotonic() >= until:
                    _log.info("tiles of index %s were not kept: its time to close was up", self._index_folder.name)
                    return
                self.keep(self._layout.places[name], held.vocabulary, tiles[0] if tiles[0].sealed else seal(tiles))

    def _load_field(self, field: _Field, files: Sequence[TileFile], last_seq_no: int) -> SparseTiles:
        vocabulary = Vocabulary()
        tiles: list[Tile] = []
        covered: list[TileFile] = []
        for file in sorted(files, key=lambda file: -file.written):  # of two for one span, the newer
            if any(_overlap(file, other) for other in covered):
                remove(file.path)
                continue
            try:
                tile = self._as_of(field, file, self._read(file, vocabulary))
            except TileFileError as error:
                _log.warning("tile file %s is built anew: %s", file.path, error)
                remove(file.path)
                continue
            except OSError as error:
                _log.warning("tile file %s is left out, as it cannot be read now: %s", file.path, error)
                continue
            if tile.live:
                tiles.append(tile)
                covered.append(file)
            else:
                remove(file.path)
        with ThreadPoolExecutor(1, "loading") as worker:
            for first, last in _gaps(covered, last_seq_no):
                loading = Loading(worker, vocabulary)
                for seq_no, address in field.addresses(first, last):
                    data: Any = field.searcher.doc(address).get_first("vec")
                    vectors = [vector for number, vector in read_vectors(data) if number == field.place.number]
                    loading.add(seq_no, vectors)
                tiles += loading.finish()
        return SparseTiles(vocabulary, tuple(sorted(tiles, key=lambda tile: int(tile.seq_nos[0]))))

    def _read(self, file: TileFile, vocabulary: Vocabulary) -> Tile:
        content = read_tile(file, self._layout.id)
        if {name: array.dtype.str for name, array in content.arrays.items()} != _ARRAYS:
            raise TileFileError("its arrays are not those of a tile")
        return restore(vocabulary, content.words, **content.arrays)

    def _as_of(self, field: _Field, file: TileFile, tile: Tile) -> Tile:
        """Mark what was deleted since; TileFileError where the index holds documents that the file should."""
        alive = field.count(file.first, file.last)
        if alive == tile.document_count:
            return tile
        seq_nos = np.array([seq_no for seq_no, _ in field.addresses(file.first, file.last)], np.int64)
        tile = with_dead(tile, seq_nos)
        if tile.document_count != alive:
            raise TileFileError("it lacks documents")
        return tile


class _Field:
    """Finds the documents that hold a sparse field, by seq_no."""

    def __init__(self, place: FieldPlace, searcher: Searcher, schema: Schema) -> None:
        self.place = place
        self.searcher = searcher
        self._schema = schema
        self._has = Query.term_query(schema, "has", str(place.number), "basic")

    def count(self, first: int, last: int) -> int:
        """Count those from `first` to `last`."""
        found: Any = self.searcher.search(self._between(first, last), limit=1, count=True)
        return int(found.count)

    def addresses(self, first: int, last: int) -> Iterator[tuple[int, Any]]:
        """List those from `first` to `last`, ascending, with their addresses."""
        for begin in range(first, last + 1, _SPAN):
            query = self._between(begin, min(begin + _SPAN - 1, last))
            hits: Any = self.searcher.search(query, limit=_SPAN, count=False).hits
            addresses = [address for _, address in hits]
            values: Any = self.searcher.fast_field_values("seq_no", addresses)
            seq_nos = np.fromiter(values, np.int64, len(addresses))
            for n in np.argsort(seq_nos).tolist():
                yield int(seq_nos[n]), addresses[n]

    def _between(self, first: int, last: int) -> Query:
        span = Query.range_query(self._schema, "seq_no", FieldType.Integer, first, last)
        both = [(Occur.Must, Query.const_score_query(part, 0.0)) for part in (self._has, span)]
        return Query.boolean_query(both)


def is_unkept(tile: Tile) -> bool:
    """Tell whether a tile is sealed, but no file holds it: writing it failed."""
    return tile.sealed and not is_mapped(tile.seq_nos)


def tiles_size(fields: Mapping[str, SparseTiles]) -> int:
    """Sum up the sizes of tiles in bytes, mapped or not, less what is small."""
    tiles = [tile for held in fields.values() for tile in held.tiles]
    return sum(tile.docs.nbytes + tile.weights.nbytes + tile.rows.nbytes + tile.cuts.nbytes for tile in tiles)


def _overlap(one: TileFile, other: TileFile) -> bool:
    return one.first <= other.last and other.first <= one.last


def _gaps(covered: Sequence[TileFile], last_seq_no: int) -> Iterator[tuple[int, int]]:
    """Give the spans of seq_nos from 1 to the last that no file covers."""
    begin = 1
    for file in sorted(covered):
        if begin < file.first:
            yield begin, file.first - 1
        begin = file.last + 1
    if begin <= last_seq_no:
        yield begin, last_seq_no
