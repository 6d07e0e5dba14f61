"""Tiles in files: a pure cache of what tantivy's stored vectors say, mapped into memory when an index opens.

A file holds one sealed tile of one field: its arrays and its words. It says nothing of deletions, so it stays true for
ever: a seq_no never changes its vector, and a tile holds every document of its span that was alive when it was made.
It is written beside its final name, synced, and renamed; whatever is not as it was written is refused, removed and
built anew from the stored vectors (ADR 11).

A file: 8 bytes of magic, 4 of header length, the header as JSON, 4 of the CRC-32 of all before, then arrays as they lie
in memory, little-endian, each at a multiple of 64 bytes. The header names the format's version, the index, the field,
and each array's type, shape, place and checksum.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from termwise.storage.tantivy.layout import sync

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TILE_FORMAT: Final = 3
"""Raised with every change of a tile's arrays or of what they mean: files of another version are built anew."""

_MAGIC: Final = b"TWTILE\r\n"
_HEAD: Final = struct.Struct("<8sI")
_CRC: Final = struct.Struct("<I")
_ALIGNMENT: Final = 64
_PAGE: Final = 4096
_CHUNK: Final = 256 * _PAGE
"""What stays in a core's cache while it is summed up twice."""

_LONGEST_HEADER: Final = 1 << 20
_NAME: Final = re.compile(r"(\d+)-(\d+)-(\d+)\.tile")
_UNFINISHED: Final = ".new"
_NOTHING: Final = np.empty(0, np.uint8)
_COLD: Final = 20
"""MADV_COLD of Linux, which Python does not name."""


class TileFileError(Exception):
    """A file that is not what was written; half a sentence says why."""


@dataclass(frozen=True, slots=True, eq=False)
class TileContent:
    """What a file holds: a tile's arrays by name, `seq_nos` (int64, ascending) among them, and its words."""

    arrays: Mapping[str, NDArray[Any]]
    words: Sequence[str]


@dataclass(frozen=True, slots=True, order=True)
class TileFile:
    """A file by its name: the field's number and the span of seq_nos; and what it was when it was listed."""

    first: int
    last: int
    field: int
    path: Path
    size: int = 0
    """In bytes."""
    written: int = 0
    """When, in nanoseconds since the epoch."""

    @classmethod
    def named(cls, folder: Path, field: int, first: int, last: int) -> TileFile:
        """Give the file of a field's span in a folder."""
        return cls(first, last, field, folder / f"{field}-{first}-{last}.tile")


def list_tiles(folder: Path) -> list[TileFile]:
    """List a folder's files, by span; what cannot be looked at counts as absent."""
    files = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = _NAME.fullmatch(entry.name)
            with suppress(OSError):  # removed meanwhile
                if name is not None and entry.is_file():
                    status, path = entry.stat(), folder / entry.name
                    size, written = status.st_size, status.st_mtime_ns
                    files.append(TileFile(int(name[2]), int(name[3]), int(name[1]), path, size, written))
    return sorted(files)


def remove_unfinished(folder: Path) -> None:
    """Remove what a crash left of files. Only for when nobody writes any."""
    with suppress(OSError):
        for path in tuple(folder.glob(f"*{_UNFINISHED}")):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file where that can be done; one that stays is read again at the next start."""
    with suppress(OSError):
        path.unlink()


def write_tile(folder: Path, index: str, field: int, content: TileContent) -> TileFile:
    """Write a tile durably. OSError where it cannot be written; then nothing is left of it."""
    folder.mkdir(exist_ok=True)
    text = [word.encode() for word in content.words]
    bounds = np.cumsum([0, *map(len, text)], dtype=np.int64)
    joined = np.frombuffer(b"".join(text), np.uint8)
    arrays = {**content.arrays, "text": joined, "text_starts": bounds}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    head = {
        "format_version": TILE_FORMAT,
        "index": index,
        "field": field,
        "arrays": [
            {"name": name, "type": array.dtype.str, "shape": array.shape, "checksum": checksum(array)}
            for name, array in arrays.items()
        ],
    }
    header = json.dumps(head).encode()
    start = _HEAD.pack(_MAGIC, len(header)) + header
    seq_nos = arrays["seq_nos"]
    file = TileFile.named(folder, field, int(seq_nos[0]), int(seq_nos[-1]))
    fresh = file.path.with_suffix(_UNFINISHED)
    try:
        with fresh.open("wb") as target:
            target.write(start + _CRC.pack(zlib.crc32(start)))
            for array in arrays.values():
                target.write(b"\0" * (-target.tell() % _ALIGNMENT))
                target.write(array.data.cast("B") if array.size else b"")
            target.flush()
            os.fsync(target.fileno())
        fresh.rename(file.path)
        sync(folder)
    except BaseException:
        remove(fresh)
        raise
    return file


def read_tile(file: TileFile, index: str) -> TileContent:
    """Map a file into memory, read-only, after every byte was checked. The file may be removed meanwhile.

    Raises:
        TileFileError: it is not a whole file of this format, index, field and span.
        OSError: it cannot be read now, which says nothing of what it holds.

    """
    with file.path.open("rb") as source:
        try:
            data = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise TileFileError("it is empty") from error
    head, end = _header(data)
    if head.get("format_version") != TILE_FORMAT:
        raise TileFileError(f"it is of format version {head.get('format_version')}, not {TILE_FORMAT}")
    if (head.get("index"), head.get("field")) != (index, file.field):
        raise TileFileError("it belongs to another index or field")
    arrays = _arrays(data, head["arrays"], end)
    text, bounds = arrays.pop("text").tobytes(), arrays.pop("text_starts").tolist()
    words = [text[first:last].decode() for first, last in pairwise(bounds)]
    seq_nos = arrays["seq_nos"]
    if (int(seq_nos[0]), int(seq_nos[-1])) != (file.first, file.last):
        raise TileFileError("its name is another file's")
    return TileContent(arrays, words)


def _header(data: mmap.mmap) -> tuple[dict[str, Any], int]:
    """Read the header, and where it ends."""
    size = len(data)
    if size < _HEAD.size:
        raise TileFileError("it is cut off")
    magic, length = _HEAD.unpack_from(data)
    end = _HEAD.size + length
    if magic != _MAGIC or length > _LONGEST_HEADER or size < end + _CRC.size:
        raise TileFileError("it does not begin as it should")
    if _CRC.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
        raise TileFileError("its header has changed")
    head: dict[str, Any] = json.loads(data[_HEAD.size : end])
    return head, end + _CRC.size


def _arrays(data: mmap.mmap, entries: Sequence[Mapping[str, Any]], at: int) -> dict[str, NDArray[Any]]:
    """Map the arrays that begin behind `at`."""
    arrays = {}
    for entry in entries:
        at += -at % _ALIGNMENT
        kind, count = np.dtype(entry["type"]), math.prod(entry["shape"])
        if at + count * kind.itemsize > len(data):
            raise TileFileError("it is cut off")
        array = np.frombuffer(data, kind, count, at) if count else np.empty(0, kind)
        if checksum(array) != entry["checksum"]:
            raise TileFileError(f'its array "{entry["name"]}" has changed')
        arrays[entry["name"]] = array.reshape(entry["shape"])
        at += array.nbytes
    if at != len(data):
        raise TileFileError("it is longer than it should be")
    return arrays


def checksum(array: NDArray[Any]) -> int:
    """Sum up an array's bytes: a CRC-32 of sums of its 64-bit words, by page and by place in the page.

    A page's sum tells which page words belong to, the other where in it, so that words that changed places show.
    """
    data = np.frombuffer(np.ascontiguousarray(array).data, np.uint8) if array.size else _NOTHING
    whole = len(data) - len(data) % _PAGE
    value = 0
    for first in range(0, whole, _CHUNK):
        words = data[first : min(first + _CHUNK, whole)].view(np.uint64).reshape(-1, _PAGE // 8)
        value = zlib.crc32(words.sum(axis=1, dtype=np.uint64).data, value)
        value = zlib.crc32(words.sum(axis=0, dtype=np.uint64).data, value)
    return zlib.crc32(data[whole:].data, value)


def is_mapped(array: NDArray[Any]) -> bool:
    """Tell whether an array lies in a mapped file."""
    return _mapping(array) is not None


def cool(array: NDArray[Any]) -> None:
    """Tell the kernel to reclaim the file that an array is mapped from before other pages; others are left alone."""
    holder = _mapping(array)
    if holder is not None:
        with suppress(OSError):  # Linux before 5.4
            holder.madvise(_COLD)


def _mapping(array: NDArray[Any]) -> mmap.mmap | None:
    holder: Any = array
    while isinstance(holder, (np.ndarray, memoryview)):
        holder = holder.base if isinstance(holder, np.ndarray) else holder.obj
    return holder if isinstance(holder, mmap.mmap) else None
