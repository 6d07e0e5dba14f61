"""Models from a folder of the server's machine: `file:///folder`."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Final
from urllib.parse import unquote

from termwise.server.errors import invalid_field
from termwise.server.models import artifacts
from termwise.server.models.repositories.base import CHUNK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from termwise.server.models.repositories.base import Report

_URI: Final = re.compile(r"file://(?:localhost)?(?P<path>/[^?#\x00-\x1f]*)")
_FORM: Final = "A file source is file:///folder with an absolute path; write #, ? and % in it as %23, %3F and %25."


class FileRepository:
    """Copies a model's folder. `sha256` is that of its `model.safetensors`."""

    scheme: Final = "file"

    def check(self, uri: str) -> None:
        """Refuse what is no `file:///folder`."""
        _folder(uri)

    def fetch(self, uri: str, folder: Path, *, scratch: Path, sha256: str, report: Report) -> None:
        """Copy the files that are wanted; a link that leads out of the folder is refused."""
        del scratch
        origin = _folder(uri)
        if not origin.is_dir():
            raise artifacts.unusable(f'There is no folder "{origin}" on the server\'s machine')
        root = origin.resolve()
        artifacts.check_names({entry.name for entry in os.scandir(root)}, f'Folder "{origin}"')
        files = {name: _real(root, name) for name in sorted(_files(root))}
        total = sum(real.stat().st_size for real in files.values())
        done = 0
        report(done, total)
        for name, real in files.items():
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            with _open(real) as source, target.open("xb") as sink:
                while block := source.read(CHUNK):
                    sink.write(block)
                    done += len(block)
                    report(done, total)
        artifacts.check_digest(folder / artifacts.WEIGHTS, sha256, artifacts.WEIGHTS)


def _folder(uri: str) -> Path:
    match = _URI.fullmatch(uri)
    path = unquote(match["path"]) if match else ""
    if "\0" in path or not path.strip("/"):
        raise invalid_field("source_uri", _FORM)
    return Path(path)


def _files(root: Path) -> Iterator[PurePosixPath]:
    """Give the files that are wanted, those of folders one level down too; linked folders are left alone."""
    for entry in os.scandir(root):
        if entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith("."):
                below = (PurePosixPath(entry.name, inner.name) for inner in os.scandir(entry) if not inner.is_dir())
                yield from filter(artifacts.is_wanted, below)
        elif not entry.is_dir() and artifacts.is_wanted(PurePosixPath(entry.name)):
            yield PurePosixPath(entry.name)


def _real(root: Path, name: PurePosixPath) -> Path:
    """Follow links, but not out of the folder."""
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise artifacts.unusable(
            f'"{name}" is a link that leads out of the folder; put a copy of the file in its place'
        )
    return path


def _open(path: Path) -> BinaryIO:
    """Open a regular file: not a link put there meanwhile, and not a pipe, which would block for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise artifacts.unusable(f'"{path.name}" is no regular file')
    return os.fdopen(descriptor, "rb")
