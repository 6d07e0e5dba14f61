"""The files of a model: which are taken, what must be among them, how a folder of them appears and how it goes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from termwise.server.errors import FailedPreconditionError, ResourceExhaustedError, TermwiseError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

WEIGHTS: Final = "model.safetensors"
"""The file that weights are read from."""
SHARDS: Final = "model.safetensors.index.json"
"""Names the files of weights that come in several."""

_WANTED_SUFFIXES: Final = frozenset({".json", ".txt", ".model", ".spm", ".safetensors", ".md"})
_WANTED_STEMS: Final = ("LICENSE", "LICENCE", "NOTICE")
_PICKLE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_TOKENIZERS: Final = ("tokenizer.json", "vocab.txt")
_MAX_DEPTH: Final = 2
"""A sentence-transformers model keeps a `config.json` for each of its modules one folder down; nothing lies deeper."""

_DRAFT_PREFIX: Final = "draft~"
"""Begins the names of folders in the making. No identifier holds a "~", so none is ever a model's."""

_FOREIGN: Final = "lost+found"
"""What ext4 puts at the root of a volume, which the folder of models may be."""

_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_wanted(name: PurePosixPath) -> bool:
    """Tell whether a file, named relative to the model's folder, is one that a model may need.

    Pickles are left behind even where safetensors stand beside them: nothing may ever unpickle what was fetched.
    """
    return (
        len(name.parts) <= _MAX_DEPTH
        and not any(part.startswith(".") for part in name.parts)
        and (name.suffix in _WANTED_SUFFIXES or name.name.upper().startswith(_WANTED_STEMS))
    )


def check_names(names: Collection[str], source: str) -> None:
    """Check that files at the top of a model's folder are all that a model needs, before any is fetched.

    Raises:
        FailedPreconditionError: one is missing; the message begins with `source` and names it.

    """
    if not names:
        raise unusable(f"{source} holds no files")
    if "config.json" not in names:
        raise unusable(f"{source} lacks config.json, which says what the model is")
    if WEIGHTS not in names and SHARDS not in names:
        raise _lacks_weights(names, source)
    if not any(name in names for name in _TOKENIZERS):
        raise unusable(f"{source} lacks its tokenizer; add tokenizer.json (or vocab.txt and tokenizer_config.json)")


def _lacks_weights(names: Collection[str], source: str) -> FailedPreconditionError:
    pickles = sorted(name for name in names if PurePosixPath(name).suffix in _PICKLE_SUFFIXES)
    if pickles:
        return unusable(
            f"{source} holds {pickles[0]}, a pickle, which can run code when it is read; convert it to {WEIGHTS} "
            "by loading it with transformers and calling save_pretrained(folder)",
            reason="MODEL_IS_PICKLE",
        )
    return unusable(f"{source} lacks {WEIGHTS}")


def check_digest(file: Path, expected: str, what: str) -> None:
    """Compare a file's SHA-256 with the hex one that is expected; empty: no check.

    Raises:
        FailedPreconditionError: they differ, and the message names both; or there is no such file.

    """
    if not expected:
        return
    if not file.is_file():
        raise unusable(f"There is no {what} to compare with sha256; leave sha256 empty")
    with file.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if actual != expected.lower():
        raise FailedPreconditionError(
            f"{what} has SHA-256 {actual} instead of {expected.lower()}; it was altered, or sha256 is wrong.",
            reason="CHECKSUM_MISMATCH",
            metadata={"expected_sha256": expected.lower(), "actual_sha256": actual},
        )


def unusable(sentence: str, *, reason: str = "MODEL_UNUSABLE") -> FailedPreconditionError:
    """Make the error for a source whose files cannot be used. `sentence` lacks its full stop."""
    return FailedPreconditionError(f"{sentence}.", reason=reason)


def from_os_error(error: OSError, doing: str) -> TermwiseError:
    """Make the domain's error of the operating system's; `doing` is such as "fetching the model"."""
    if error.errno in _DISK_FULL:
        return disk_full(doing)
    return FailedPreconditionError(
        f"{error.strerror or type(error).__name__} while {doing}.", reason="MODEL_UNREADABLE"
    )


def disk_full(doing: str) -> ResourceExhaustedError:
    """Make the error for a full disk."""
    return ResourceExhaustedError(
        f"The disk of the data folder is full while {doing}; make room and try again.", reason="DISK_FULL"
    )


@dataclass(frozen=True, slots=True)
class Draft:
    """A model's folder in the making, on the file system where it will stay."""

    files: Path
    """Becomes the model's folder."""
    scratch: Path
    """For whatever is needed meanwhile."""


@contextmanager
def draft(models: Path) -> Iterator[Draft]:
    """Make a draft in the folder of models; what was not published is gone afterwards."""
    folder = models / f"{_DRAFT_PREFIX}{uuid.uuid4().hex}"
    made = Draft(folder / "files", folder / "scratch")
    try:
        made.files.mkdir(parents=True)
        made.scratch.mkdir()
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(files: Path, target: Path) -> None:
    """Make finished files the folder `target`: durably, and all of them or none."""
    for folder, _, names in os.walk(files, topdown=False):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))
    files.rename(target)
    _sync(target.parent)


def remove(target: Path) -> None:
    """Remove a model's folder, if it is there.

    It is out of sight first, so no half of it is ever a model's folder; what cannot be removed the next start sweeps.
    """
    grave = target.with_name(f"{_DRAFT_PREFIX}{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        target.rename(grave)
        _sync(target.parent)
        shutil.rmtree(grave, ignore_errors=True)


def sweep(models: Path, keep: Collection[str]) -> list[str]:
    """Remove whatever stands in the folder of models without being one of `keep`, and give the names."""
    stray = sorted(entry.name for entry in models.iterdir() if entry.name not in {*keep, _FOREIGN})
    for name in stray:
        path = models / name
        if path.is_dir() and not path.is_symlink():
            # Whatever a process that outlived the last server still writes there is swept at the next start.
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
    return stray


def is_complete(folder: Path) -> bool:
    """Tell whether a model's folder is there with its weights."""
    return (folder / WEIGHTS).is_file() or (folder / SHARDS).is_file()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
