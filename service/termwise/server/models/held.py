"""The files of an upload as far as they have come: durable before they are counted, so that a cut costs little.

A model's upload lies in its draft (`artifacts.open_draft`): the files below `scratch/files`, and beside them a ledger
that says of each how large it will be, its SHA-256, and how many of its bytes are held. The ledger is written after the
bytes are on disk; what a file has beyond it is cut off when the upload goes on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, TypeVar

from termwise.server.errors import FailedPreconditionError, TermwiseError, invalid_field
from termwise.server.models import artifacts
from termwise.server.models.package_files import is_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from io import FileIO
    from pathlib import Path

    from termwise.server.models.artifacts import Draft

Result = TypeVar("Result")

LIMIT_BYTES: Final = 64 << 30
"""Most bytes of all files of an upload."""

_MAX_FILES: Final = 100
_MAX_NAME: Final = 255
_LEDGER: Final = "ledger.json"
_FILES: Final = "files"
_SYNC_BYTES: Final = 8 << 20
"""Bytes that are written before they are made durable; a server that is killed loses as many at most."""
_HEX: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file of an upload: `bytes_held` of its `size_bytes` are there."""

    file_name: str
    size_bytes: int
    sha256: str
    bytes_held: int = 0

    @property
    def is_whole(self) -> bool:
        """Tell whether all of it is there (and has the SHA-256 that it shall have)."""
        return self.bytes_held == self.size_bytes


def read_ledger(draft_folder: Path) -> dict[str, UploadedFile]:
    """Give the files that a draft holds, by name; none where there is no draft. Blocking."""
    try:
        rows = json.loads((draft_folder / "scratch" / _LEDGER).read_bytes())
        return {row["file_name"]: UploadedFile(**row) for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


class HeldFiles:
    """An upload's draft while parts arrive. Its methods block, and may be called from any thread, one after another."""

    def __init__(self, draft: Draft) -> None:
        """Take a draft as it was left."""
        self._draft = draft
        self._root = draft.scratch / _FILES
        self._root.mkdir(exist_ok=True)
        self._files = read_ledger(draft.folder)
        self._lock = threading.Lock()
        self._closed = False
        self._name = ""
        self._stream: FileIO | None = None
        self._unsynced = 0

    def begin(self, file: UploadedFile, offset: int) -> None:
        """Begin a file, or go on with it at `offset`, which is 0 or what is held of it.

        Raises:
            InvalidArgumentError: its name, size or SHA-256 cannot be a model's file's.
            FailedPreconditionError: `offset` is not what is held; `held_bytes` of the error's metadata is.
            ResourceExhaustedError: the disk has no room for the rest of it.

        """
        with self._lock:
            self._check_open()
            self._settle()
            self._check(file)
            known = self._files.get(file.file_name)
            held = known.bytes_held if known is not None else 0
            if offset and (offset != held or known is None):
                raise _wrong_offset(file, offset, held)
            if offset and known is not None and (known.size_bytes, known.sha256) != (file.size_bytes, file.sha256):
                raise FailedPreconditionError(
                    f'"{file.file_name}" is held in part, of another size or SHA-256; begin it anew with offset 0.',
                    reason="UPLOAD_OF_ANOTHER_FILE",
                    metadata={"file_name": file.file_name, "held_bytes": str(held)},
                )
            artifacts.check_room(self._draft.folder, file.size_bytes - offset)
            self._open(replace(file, bytes_held=offset))

    def append(self, data: bytes) -> None:
        """Take the next bytes of the file that was begun.

        Raises:
            InvalidArgumentError: none was begun.
            FailedPreconditionError: it has another size or SHA-256 than it should, and is dropped.
            ResourceExhaustedError: the disk is full; what was held before stays.

        """
        with self._lock:
            self._check_open()
            if self._stream is None:
                raise invalid_field("data", "It belongs to no file; send a header before a file's first bytes.")
            file = self._files[self._name]
            done = file.bytes_held + self._unsynced + len(data)
            if done > file.size_bytes:
                self._drop()
                raise FailedPreconditionError(
                    f'"{file.file_name}" has more than the {file.size_bytes:,} bytes of its header; it is dropped.',
                    reason="UPLOAD_SIZE_MISMATCH",
                    metadata={"file_name": file.file_name, "held_bytes": "0"},
                )
            try:
                write_all(self._stream, data)
                self._unsynced += len(data)
                if done == file.size_bytes:
                    self._finish()
                elif self._unsynced >= _SYNC_BYTES:
                    self._sync()
            except OSError as error:
                with suppress(OSError):
                    self._stream.truncate(file.bytes_held)  # a full disk gets back what does not count
                self._abandon()
                raise artifacts.from_os_error(error, f'taking "{file.file_name}"') from error

    def publish(self, make: Callable[[Mapping[str, Path], Path], Result]) -> Result:
        """Call `make` with all files by name and an empty folder on their file system, and give what it gives.

        Raises:
            FailedPreconditionError: there are no files, or one is not all there.

        """
        with self._lock:
            self._check_open()
            self._settle()
            if not self._files:
                raise artifacts.unusable("Nothing was uploaded yet", reason="UPLOAD_INCOMPLETE")
            for file in self._files.values():
                if not file.is_whole:
                    raise FailedPreconditionError(
                        f'"{file.file_name}" is not all there: {file.bytes_held:,} of {file.size_bytes:,} bytes are '
                        "held; send the rest, or delete the model and put it again to be rid of the file.",
                        reason="UPLOAD_INCOMPLETE",
                        metadata={"file_name": file.file_name, "held_bytes": str(file.bytes_held)},
                    )
            shutil.rmtree(self._draft.files, ignore_errors=True)
            self._draft.files.mkdir()
            return make({name: self._root / name for name in sorted(self._files)}, self._draft.files)

    def discard(self) -> None:
        """Remove all of it."""
        with self._lock:
            self._closed = True
            self._abandon()
            artifacts.close_draft(self._draft, keep=False)

    def close(self) -> None:
        """Make what came durable; whatever is called afterwards raises FailedPreconditionError."""
        with self._lock:
            if not self._closed:
                self._closed = True
                with suppress(OSError):
                    self._settle()
                with suppress(OSError):
                    artifacts.close_draft(self._draft, keep=bool(self._files))

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError("The upload was stopped.", reason="UPLOAD_STOPPED")

    def _check(self, file: UploadedFile) -> None:
        check_name(file.file_name)
        if not _HEX.fullmatch(file.sha256):
            raise invalid_field("header.sha256", "It must be 64 hexadecimal digits, those of the whole file's SHA-256.")
        others = [each for each in self._files.values() if each.file_name != file.file_name]
        left = LIMIT_BYTES - sum(each.size_bytes for each in others)
        if not 0 <= file.size_bytes <= left:
            raise invalid_field("header.size_bytes", f"It must be from 0 to {left:,}, in bytes.")
        if len(others) >= _MAX_FILES:
            raise invalid_field("header.file_name", f"A model has {_MAX_FILES} files at most.")
        path = PurePosixPath(file.file_name)
        for each in map(PurePosixPath, (other.file_name for other in others)):
            if each in path.parents or path in each.parents:
                raise invalid_field("header.file_name", f'"{each}" and "{path}" cannot both be files.')

    def _open(self, file: UploadedFile) -> None:
        path = self._root / file.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files[file.file_name] = file
        self._write_ledger()  # first: bytes beyond it count for nothing
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        self._stream = os.fdopen(descriptor, "r+b", buffering=0)
        self._stream.truncate(file.bytes_held)
        self._stream.seek(file.bytes_held)
        for folder in path.parents:
            artifacts.sync(folder)
            if folder == self._draft.folder:
                break
        self._name = file.file_name
        if file.is_whole:
            self._finish()

    def _sync(self) -> None:
        """Make durable what was written, and count it."""
        if self._stream is not None and self._unsynced:
            os.fsync(self._stream.fileno())
            file = self._files[self._name]
            self._files[self._name] = replace(file, bytes_held=file.bytes_held + self._unsynced)
            self._unsynced = 0
            self._write_ledger()

    def _settle(self) -> None:
        """Leave the file that was begun as it stands."""
        self._sync()
        self._abandon()

    def _abandon(self) -> None:
        """Leave the file that was begun, without the bytes that are not durable."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._name, self._unsynced = None, "", 0

    def _finish(self) -> None:
        """Check a file whose last byte came. Its last bytes count only then, should the server be killed meanwhile."""
        file = self._files[self._name]
        try:
            artifacts.check_digest(self._root / file.file_name, file.sha256, f'"{file.file_name}"')
        except TermwiseError as error:
            self._drop()
            error.metadata |= {"file_name": file.file_name, "held_bytes": "0"}
            raise
        self._settle()

    def _drop(self) -> None:
        name = self._name
        self._abandon()
        del self._files[name]
        self._write_ledger()
        (self._root / name).unlink(missing_ok=True)

    def _write_ledger(self) -> None:
        draft = self._draft.scratch / f"{_LEDGER}.new"
        draft.write_text(json.dumps([asdict(file) for file in self._files.values()]), "utf-8")
        artifacts.sync(draft)
        draft.replace(self._draft.scratch / _LEDGER)
        artifacts.sync(self._draft.scratch)


def write_all(stream: FileIO, data: bytes) -> None:
    """Write to a file without a buffer, which may take less at a time (where the disk fills up, say)."""
    left = memoryview(data)
    while left:
        left = left[stream.write(left) or 0 :]


def check_name(name: str) -> None:
    """Check the name of a file that a model is to have.

    Raises:
        InvalidArgumentError: it leads out of the model's folder, or nothing that a model needs has such a name.

    """
    path = PurePosixPath(name)
    if (
        not name
        or len(name.encode(errors="replace")) > _MAX_NAME
        or str(path) != name
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or not name.isprintable()
    ):
        raise invalid_field(
            "header.file_name",
            "It must be the file's path relative to the model's folder, such as model.safetensors, with / between "
            "folders.",
        )
    if artifacts.is_pickle(path) and not is_archive(path):
        raise invalid_field(
            "header.file_name",
            f'"{path.name}" is a pickle, which can run code when it is read; convert it to {artifacts.WEIGHTS} by '
            "loading it with transformers and calling save_pretrained(folder).",
            reason="MODEL_IS_PICKLE",
        )
    if not artifacts.is_wanted(path) and not is_archive(path):
        raise invalid_field(
            "header.file_name",
            f'"{name}" is no file of a model: weights are .safetensors, a package in ELSER\'s layout is .pt, '
            ".metadata.json and .vocab.json, and what else a model needs is .json, .txt, .model, .spm or .md, three "
            "folders deep at most.",
        )


def _wrong_offset(file: UploadedFile, offset: int, held: int) -> FailedPreconditionError:
    return FailedPreconditionError(
        f'{held:,} bytes of "{file.file_name}" are held, and not {offset:,}; go on with offset {held}.',
        reason="UPLOAD_OFFSET_MISMATCH",
        metadata={"file_name": file.file_name, "held_bytes": str(held), "offset": str(offset)},
    )
