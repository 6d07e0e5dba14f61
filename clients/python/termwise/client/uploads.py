"""The bookkeeping of an upload: which files, how much of each the server holds, and what is left to send."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from termwise.client.errors import TermwiseError, UnavailableError
from termwise.client.parsing import invalid
from termwise.client.trained_models import get_model
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from termwise.client.calls import Unary

PART_BYTES = 1 << 20
"""Bytes of a file in one message: few enough for any limit, enough to hide what a message costs."""
DEPTH = 3
"""How deep below its folder a model's files lie, at the most."""

_SUFFIXES = frozenset({".json", ".txt", ".model", ".spm", ".safetensors", ".md"})
_STEMS = ("LICENSE", "LICENCE", "NOTICE")

Files: TypeAlias = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]
"""A model's folder; or its files by the names that they have in the model."""


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """How far an upload is: the file under way, and bytes of all files together.

    Attributes:
        file_name: The file that is being sent; empty at the commit.
        bytes_done: Bytes that are sent, or were held before.
        bytes_total: Bytes of all files.
    """

    file_name: str
    bytes_done: int
    bytes_total: int


OnUpload: TypeAlias = Callable[[UploadProgress], None]


@dataclass(frozen=True)
class LocalFile:
    """A file of a model: its name there, and where it is here."""

    name: str
    path: Path

    @cached_property
    def size(self) -> int:
        """Its bytes."""
        return self.path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Its checksum in hex. Reads all of it, once."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def local_files(files: Files) -> tuple[LocalFile, ...]:
    """Give what there is to send, by name.

    Of a folder these are the files that a model may need, to the depth that one has: configuration, tokenizer,
    safetensors, and a TorchScript archive that stands beside its metadata. Pickles stay behind, since no server loads
    them. Raises InvalidArgumentError where nothing is left, OSError where it cannot be read.
    """
    if isinstance(files, Mapping):
        found = [LocalFile(name, Path(path)) for name, path in files.items()]
        if not found:
            raise invalid("files", "there are none")
    else:
        folder = Path(files)
        if not folder.is_dir():
            raise invalid("files", f'"{folder}" is no folder; for single files give a dict of names and paths')
        found = [
            LocalFile(path.relative_to(folder).as_posix(), path)
            for path in folder.rglob("*")
            if path.is_file() and _is_wanted(path, path.relative_to(folder))
        ]
        if not any(file.path.suffix in {".safetensors", ".pt"} for file in found):
            raise invalid(
                "files",
                f'"{folder}" has neither safetensors nor a TorchScript package; save the model with '
                "safe_serialization=True",
            )
    return tuple(sorted(found, key=lambda file: file.name))


def _is_wanted(path: Path, name: Path) -> bool:
    if len(name.parts) > DEPTH or any(part.startswith(".") for part in name.parts):
        return False
    if name.suffix == ".pt":
        return path.with_name(f"{path.stem}.metadata.json").is_file()
    return name.suffix in _SUFFIXES or name.name.upper().startswith(_STEMS)


@dataclass(slots=True)
class UploadSession:
    """One upload over as many connections as it takes. It reads files, and does no other I/O."""

    model_id: str
    files: tuple[LocalFile, ...]
    _broke: bool = False
    _committed: bool = False
    _held: dict[str, int] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The call that it is."""
        return "TrainedModels/UploadTrainedModel"

    def look(self) -> Unary[pb.TrainedModel]:
        """Give the call that says what the server holds."""
        return get_model(self.model_id)

    def resume(self, model: pb.TrainedModel) -> bool:
        """Take in what the server holds; tells whether that is more than it was."""
        before, self._held = sum(self._held.values()), self._bytes_held(model)
        return sum(self._held.values()) > before

    def is_done(self, model: pb.TrainedModel) -> bool:
        """Whether a commit arrived, though its answer may not have."""
        return self._committed and model.state == pb.TrainedModel.STATE_READY

    def judge(self, error: TermwiseError) -> tuple[TermwiseError, bool]:
        """Give an error of the stream as it counts, and whether to go on after it.

        After a break the server may take a while to miss the old stream, and says so.
        """
        if self._broke and error.reason == "UPLOAD_RUNNING":
            error = UnavailableError(error.message, reason=error.reason, metadata=error.metadata)
        self._broke = self._broke or isinstance(error, UnavailableError)
        return error, isinstance(error, UnavailableError)

    def parts(self) -> Iterator[tuple[pb.UploadTrainedModelRequest, UploadProgress]]:
        """Give the messages that send the rest, each with what is done once it is sent."""
        total = sum(file.size for file in self.files)
        done = sum(self._held.values())
        left = [file for file in self.files if self._held.get(file.name, -1) < file.size]
        # A stream begins with a header, also where only the commit is missing.
        for file in left or self.files[-1:]:
            offset = self._held.get(file.name, 0)
            header = pb.UploadHeader(
                model_id=self.model_id,
                file_name=file.name,
                size_bytes=file.size,
                sha256=file.sha256,
                offset=offset,
            )
            yield pb.UploadTrainedModelRequest(header=header), UploadProgress(file.name, done, total)
            with file.path.open("rb") as stream:
                stream.seek(offset)
                while data := stream.read(PART_BYTES):
                    done += len(data)
                    yield pb.UploadTrainedModelRequest(data=data), UploadProgress(file.name, done, total)
        self._committed = True
        yield pb.UploadTrainedModelRequest(commit=pb.UploadCommit()), UploadProgress("", total, total)

    def _bytes_held(self, model: pb.TrainedModel) -> dict[str, int]:
        """Give how much the server holds of each file, as far as it is the same file."""
        held = {each.file_name: each for each in model.uploads}
        return {
            file.name: held[file.name].bytes_held
            for file in self.files
            if file.name in held
            and (held[file.name].size_bytes, held[file.name].sha256) == (file.size, file.sha256)
            and held[file.name].bytes_held <= file.size
        }
