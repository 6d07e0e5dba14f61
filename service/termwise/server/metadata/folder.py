"""The data folder: who holds it, of which format it is, and where things lie in it."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from termwise.server.errors import FailedPreconditionError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

FORMAT_VERSION: Final = 1
"""Format of the data folder that this release writes. It covers the layout; SQLite and the backends carry their own."""

_LOCK: Final = "LOCK"
_FORMAT: Final = "FORMAT"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A data folder that this process alone holds, until `close`.

    A kill releases it: the lock is the kernel's (flock), the file that stays behind means nothing.
    """

    path: Path
    lock: int
    """File descriptor that holds the lock."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Make the folder where it is absent, lock it, and check its format.

        Raises:
            FailedPreconditionError: another server holds it, it is of a newer format, it is something else's folder, or
                it cannot be written.

        """
        try:
            return cls._open(path)
        except OSError as error:
            raise FailedPreconditionError(
                f'Data folder "{path}" cannot be written: {error.strerror}. Give another with --data.',
                reason="DATA_FOLDER_UNWRITABLE",
            ) from error

    @classmethod
    def _open(cls, path: Path) -> Self:
        _make_durably(path)
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _hold(path, lock)
            _check_format(path)
            folder = cls(path, lock)
            _make_durably(folder.models)
            _make_durably(folder.cache)
        except BaseException:
            os.close(lock)
            raise
        return folder

    @property
    def metadata(self) -> Path:
        """File of the metadata store."""
        return self.path / "metadata.sqlite"

    @property
    def models(self) -> Path:
        """Folder of model artefacts."""
        return self.path / "models"

    @property
    def cache(self) -> Path:
        """Folder of what can be made again."""
        return self.path / "cache"

    def indices(self, backend: str) -> Path:
        """Folder of a storage backend; made where it is absent."""
        folder = self.path / "indices" / backend
        _make_durably(folder)
        return folder

    def close(self) -> None:
        """Let go of the folder; only once."""
        os.close(self.lock)

    def __enter__(self) -> Self:
        """Hold it for a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go."""
        self.close()


def _hold(path: Path, lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        who = f" (process {holder})" if holder.isdigit() else ""
        raise FailedPreconditionError(
            f'Data folder "{path}" is held by another server{who}; stop that one, or give another folder with --data.',
            reason="DATA_FOLDER_HELD",
            metadata={"data": str(path)} | ({"process": holder} if holder.isdigit() else {}),
        ) from error
    with suppress(OSError):  # a full disk; who holds the folder is good to know and no more
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _check_format(path: Path) -> None:
    file = path / _FORMAT
    if not file.exists():
        foreign = sorted(e.name for e in path.iterdir() if not e.name.startswith(".") and e.name not in _EXPECTED)
        if foreign:
            raise FailedPreconditionError(
                f'Folder "{path}" is not empty ("{foreign[0]}") and no data folder; give another with --data.',
                reason="NOT_A_DATA_FOLDER",
            )
        _write_durably(file, json.dumps({"format_version": FORMAT_VERSION}) + "\n")
        return
    try:
        version = json.loads(file.read_text("utf-8"))["format_version"]
    except (ValueError, KeyError, TypeError):
        version = None
    if type(version) is not int or version < 1:
        raise FailedPreconditionError(
            f'File "{file}" is broken; restore it from a backup of the data folder.', reason="DATA_FORMAT_BROKEN"
        )
    if version > FORMAT_VERSION:
        raise FailedPreconditionError(
            f'Data folder "{path}" has format version {version}, this server knows up to {FORMAT_VERSION}; '
            "start a newer release.",
            reason="DATA_FORMAT_TOO_NEW",
            metadata={"format_version": str(version), "known_format_version": str(FORMAT_VERSION)},
        )


_EXPECTED: Final = frozenset({_LOCK, "models", "cache", "lost+found"})
"""What a new folder may hold: our lock, mounts of volumes, and what ext4 puts at the root of one."""


def _write_durably(file: Path, text: str) -> None:
    """Write a file so that after a crash it is there as a whole or not at all."""
    draft = file.with_name(f".{file.name}.new")
    with draft.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
    _sync(file.parent)


def _make_durably(folder: Path) -> None:
    """Make a folder and those above it, so that what is written into it outlives a power cut."""
    if folder.is_dir():
        return
    _make_durably(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
