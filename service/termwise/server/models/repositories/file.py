"""Models from the server's machine: `file:///folder`, or `file:///folder/<package>.metadata.json`."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Final
from urllib.parse import unquote

from termwise.server.errors import FailedPreconditionError, invalid_field
from termwise.server.inference.torchscript.metadata import read_metadata
from termwise.server.inference.torchscript.names import VOCABULARY_LIMIT_BYTES
from termwise.server.models import artifacts
from termwise.server.models.package_files import as_package, holds_package
from termwise.server.models.repositories.answers import too_long
from termwise.server.models.repositories.base import CHUNK
from termwise.server.models.repositories.locations import METADATA_END, archive_name, is_package

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from termwise.server.inference.torchscript.metadata import PackageMetadata
    from termwise.server.models.repositories.base import Report

_URI: Final = re.compile(r"file://(?:localhost)?(?P<path>/[^?#\x00-\x1f]*)")
_FORM: Final = (
    "A file source is file:///folder, or file:///folder/<package>.metadata.json, with an absolute path; write #, ? and "
    "% in it as %23, %3F and %25."
)
_DEEPEST: Final = 3
METADATA_LIMIT_BYTES: Final = 1_000_000
"""Most bytes of a package's metadata file."""


class FileRepository:
    """Copies a model's folder, or a package. `sha256` is that of `model.safetensors`, or of the package's archive.

    Sources lie in `models`, the folder that the operator set aside for them, links followed; without one all are
    refused: whoever may put models could otherwise read whatever the server may.
    """

    scheme: Final = "file"

    def __init__(self, models: Path | None) -> None:
        """Take the folder that sources must lie in."""
        self._models = models.absolute() if models else None

    def check(self, uri: str) -> None:
        """Refuse what is no `file:///folder`, or lies elsewhere."""
        path = _parse(uri)
        if self._models is None:
            raise FailedPreconditionError(
                "file:// models are switched off; set model_folder to the folder that they lie in.",
                reason="MODEL_FOLDER_NOT_SET",
            )
        if not path.is_relative_to(self._models):
            raise invalid_field(
                "source_uri", f'"{path}" does not lie in the folder that the setting model_folder names.'
            )

    def resolve(self, uri: str) -> Path:
        """Give the path that a URI names, links followed; errors as `check`, and where links lead out."""
        self.check(uri)
        path = _parse(uri)
        real = path.resolve()
        if self._models is None or not real.is_relative_to(self._models.resolve()):
            raise artifacts.unusable(
                f'"{path}" leads out of the folder that the setting model_folder names; put a copy of the files there',
                reason="SOURCE_LEADS_OUT",
            )
        return real

    def fetch(self, uri: str, folder: Path, *, scratch: Path, sha256: str, report: Report) -> None:
        """Copy the files that are wanted; a link that leads out of the source's folder is refused."""
        origin = self.resolve(uri)
        if is_package(uri):
            root = origin.parent
            metadata = self.read_metadata(uri)
            if metadata is None:
                raise artifacts.unusable(f'There is no file "{_parse(uri)}" on the server\'s machine')
            _fetch_package(root, _package_names(origin.name, metadata), folder, scratch, sha256, report)
            return
        if not origin.is_dir():
            raise artifacts.unusable(f'There is no folder "{_parse(uri)}" on the server\'s machine')
        names = {str(name): name for name in _walk(origin)}
        if holds_package(names):
            said = [name for name in names if name.endswith(METADATA_END) and "/" not in name]
            if len(said) > 1:
                raise artifacts.unusable(
                    f'Folder "{_parse(uri)}" holds {len(said)} packages ({", ".join(sorted(said)[:5])}); name the one: '
                    f"file://…/{min(said)}"
                )
            metadata = _read(origin, said[0])
            _fetch_package(origin, _package_names(said[0], metadata), folder, scratch, sha256, report)
            return
        artifacts.check_names(names, f'Folder "{_parse(uri)}"')
        wanted = [name for name in sorted(names) if artifacts.is_wanted(names[name])]
        _copy(origin, wanted, folder, report)
        artifacts.check_digest(folder / artifacts.WEIGHTS, sha256, artifacts.WEIGHTS)

    def read_metadata(self, uri: str) -> PackageMetadata | None:
        """Read the metadata file that a URI names; None where there is none.

        Raises:
            FailedPreconditionError: it cannot be used, or it lies elsewhere than it may.

        """
        path = self.resolve(uri)
        return _read(path.parent, path.name) if path.exists() else None


def _parse(uri: str) -> Path:
    """Give the path of a URI, without "." and ".."; links play no part."""
    match = _URI.fullmatch(uri)
    path = unquote(match["path"]) if match else ""
    if "\0" in path or not path.strip("/") or ".." in path.split("/"):
        raise invalid_field("source_uri", _FORM)
    return Path("/" + path.lstrip("/"))


def _read(root: Path, name: str) -> PackageMetadata:
    with _open(_real(root, name)) as source:
        raw = source.read(METADATA_LIMIT_BYTES + 1)
    if len(raw) > METADATA_LIMIT_BYTES:
        raise too_long(f"The metadata file {name}", len(raw), METADATA_LIMIT_BYTES)
    return read_metadata(raw, packaged=True)


def _package_names(said: str, metadata: PackageMetadata) -> dict[str, str]:
    """Give the names that a package's files have at their source, by what each is."""
    return {"metadata": said, "archive": archive_name(metadata.packaged_model_id), "words": metadata.vocabulary_file}


def _fetch_package(root: Path, names: dict[str, str], folder: Path, scratch: Path, sha256: str, report: Report) -> None:
    """Copy a package's three files, compare what came with its metadata, and give them their canonical names."""
    words = _real(root, names["words"]).stat().st_size
    if words > VOCABULARY_LIMIT_BYTES:
        raise too_long(f"The vocabulary {names['words']}", words, VOCABULARY_LIMIT_BYTES)
    copies = scratch / "package"
    copies.mkdir(exist_ok=True)
    for stale in copies.iterdir():
        stale.unlink()
    _copy(root, sorted(set(names.values())), copies, report)
    files = as_package({name: copies / name for name in names.values()})
    for name, copy in files.items():
        artifacts.link(copy, folder / name)
    artifacts.check_digest(copies / names["archive"], sha256, names["archive"])


def _copy(root: Path, names: Iterable[str], folder: Path, report: Report) -> None:
    """Copy files, by their relative names."""
    files = {name: _real(root, name) for name in names}
    total = sum(real.stat().st_size for real in files.values())
    artifacts.check_room(folder, total)
    done = 0
    report(done, total)
    for name, real in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with _open(real) as source, target.open("xb") as sink:
            while block := source.read(CHUNK):
                sink.write(block)
                done += len(block)
                report(done, total)


def _walk(root: Path, inside: PurePosixPath = PurePosixPath()) -> Iterator[PurePosixPath]:  # noqa: B008 - immutable
    """Give the names of files, those of folders below too; linked and hidden folders are left alone."""
    for entry in os.scandir(root / inside):
        name = inside / entry.name
        if entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith(".") and len(name.parts) < _DEEPEST:
                yield from _walk(root, name)
        elif not entry.is_dir():
            yield name


def _real(root: Path, name: str) -> Path:
    """Follow links, but not out of the folder."""
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise artifacts.unusable(
            f'"{name}" is a link that leads out of the folder; put a copy of the file in its place'
        )
    if not path.exists():
        raise artifacts.unusable(f'Folder "{root}" lacks {name}')
    return path


def _open(path: Path) -> BinaryIO:
    """Open a regular file: not a link put there meanwhile, and not a pipe, which would block for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise artifacts.unusable(f'"{path.name}" is no regular file')
    return os.fdopen(descriptor, "rb")
