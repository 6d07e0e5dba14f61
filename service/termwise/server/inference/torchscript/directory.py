"""The directory of a zip file, read anew: whether every zip reader finds the same one in it.

A zip file is read from its end, and readers differ in where they look: one follows the offset that the last record
states, another counts back from it; one goes where the locator of the large format points, another looks for the
large record in front of the locator. A file with two directories then has one content for the checks and another for
torch, whose reader is miniz. Here there may be one directory alone, right in front of the last record, and nothing in
it that a reader may pass over. Sections are those of PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO, Final

from termwise.server.inference.torchscript.refusals import unsafe, unusable

if TYPE_CHECKING:
    import zipfile
    from collections.abc import Iterable, Iterator

# 4.3.16: signature, disks and entries, bytes and offset of the directory, bytes of a comment.
_END: Final = struct.Struct("<4s4H2LH")
# 4.3.15: signature, disk, offset of the large record, number of disks.
_LOCATOR: Final = struct.Struct("<4sLQL")
# 4.3.14: signature, own bytes, versions, disks and entries, bytes and offset of the directory.
_LARGE: Final = struct.Struct("<4sQ2H2L4Q")
# 4.3.12 and 4.3.7: what stands before a name in the directory, and before the member itself.
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_FIELD: Final = struct.Struct("<HH")
_LARGE_FIELD: Final = 1
_LARGE_BYTES: Final = _LARGE.size - 12
_FULL: Final = 0xFFFFFFFF
_FULL_SHORT: Final = 0xFFFF
# miniz cuts a name that is longer than 511 bytes.
_LONGEST_NAME: Final = 400


def check_directory(stream: BinaryIO, size: int, members: Iterable[zipfile.ZipInfo]) -> None:
    """Check a file's directory, and that its members lie one behind the other from the first byte up to it.

    Args:
        stream: the file, of `size` bytes.
        size: see `stream`.
        members: what Python's reader makes of it.

    Raises:
        FailedPreconditionError: readers could differ, or members overlap.

    """
    try:
        start, end, count = _find(stream, size)
        stream.seek(start)
        entries = list(_entries(stream.read(end - start)))
        spans = sorted((member.header_offset, _end_of(stream, member)) for member in members)
    except struct.error as error:
        raise unusable("its archive is broken; download it again") from error
    if count != len(entries) or count != len(spans):
        raise unsafe("the directory of its archive does not list what it says it does")
    place = 0
    for begins, ends in spans:
        if begins < place or (place == 0 and begins):
            raise unsafe("members of its archive overlap, or something stands before them")
        place = ends
    if place > start:
        raise unsafe("members of its archive reach into its directory")


def _find(stream: BinaryIO, size: int) -> tuple[int, int, int]:
    """Give where the directory starts and ends, and how many entries it has."""
    end = size - _END.size
    stream.seek(end)
    _, disk, first, here, count, length, start, comment = _END.unpack(stream.read())
    large = end - _LOCATOR.size - _LARGE.size
    stream.seek(max(0, end - _LOCATOR.size))
    located = stream.read(_LOCATOR.size)
    if located.startswith(b"PK\x06\x07"):
        _, held_by, place, disks = _LOCATOR.unpack(located)
        stream.seek(max(0, large))
        mark, own, _, _, disk, first, here, whole, held, begins = _LARGE.unpack(stream.read(_LARGE.size))
        if (mark, own, place, held_by, disks) != (b"PK\x06\x06", _LARGE_BYTES, large, 0, 1):
            raise _two()
        fits = count in {whole, _FULL_SHORT} and length in {held, _FULL} and start in {begins, _FULL}
        end, count, length, start = large, whole, held, begins
    else:
        fits = _FULL not in {length, start}
    if not fits or (disk, first, comment) != (0, 0, 0) or here != count or start + length != end:
        raise _two()
    return start, end, count


def _entries(raw: bytes) -> Iterator[str]:
    """Walk the directory's entries, which fill it."""
    place = 0
    while place < len(raw):
        mark, *_, name, extra, comment, disk, _, _, _ = _ENTRY.unpack_from(raw, place)
        place += _ENTRY.size + name + extra + comment
        if mark != b"PK\x01\x02" or comment or disk or name > _LONGEST_NAME or place > len(raw):
            raise unsafe("the directory of its archive holds what torch does not write")
        _check_extra(raw[place - extra : place])
        yield mark.hex()


def _check_extra(raw: bytes) -> None:
    """Check that an entry's extra fields are whole, and large sizes are there once at most."""
    place = large = 0
    while place < len(raw):
        kind, length = _FIELD.unpack_from(raw, place)
        place += _FIELD.size + length
        large += kind == _LARGE_FIELD
    if place != len(raw) or large > 1:
        raise unsafe("the directory of its archive holds what torch does not write")


def _end_of(stream: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Give where a member's content ends, by the header in front of it."""
    stream.seek(member.header_offset)
    mark, _, _, method, *_, name, extra = _LOCAL.unpack(stream.read(_LOCAL.size))
    if mark != b"PK\x03\x04" or method != member.compress_type or stream.read(name) != member.filename.encode():
        raise unsafe("a member of its archive is another one than its directory says")
    return member.header_offset + _LOCAL.size + int(name) + int(extra) + member.compress_size


def _two() -> Exception:
    return unsafe("its archive may have two directories, of which readers take different ones")
