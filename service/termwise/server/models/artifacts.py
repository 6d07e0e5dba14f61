"""The files of a model: which are taken, what must be among them, how a folder of them appears and how it goes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from termwise.server.errors import FailedPreconditionError, ResourceExhaustedError, TermwiseError
from termwise.server.inference.torchscript.names import ARCHIVE, METADATA, VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Collection

WEIGHTS: Final = "model.safetensors"
"""The file that weights are read from."""
SHARDS: Final = "model.safetensors.index.json"
"""Names the files of weights that come in several."""

_WANTED_SUFFIXES: Final = frozenset({".json", ".txt", ".model", ".spm", ".safetensors", ".md"})
_WANTED_STEMS: Final = ("LICENSE", "LICENCE", "NOTICE")
_PICKLE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_TOKENIZERS: Final = ("tokenizer.json", "vocab.txt", "vocab.json")
_PACKAGE: Final = (METADATA, ARCHIVE, VOCABULARY)
_MAX_DEPTH: Final = 3
"""A sentence-transformers model keeps each of its modules one folder down, and a Router those of its routes below its
own; nothing lies deeper."""

_DRAFT_PREFIX: Final = "draft~"
"""Begins the names of folders in the making. No identifier holds a "~", so none is ever a model's."""
_DIGITS: Final = 24
"""Hex digits of a hash in a draft's name."""
_SPARE_BYTES: Final = 32 << 20
"""What a download leaves of the disk, for metadata and indices, which lie on it too."""

_FOREIGN: Final = "lost+found"
"""What ext4 puts at the root of a volume, which the folder of models may be."""

_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_wanted(name: PurePosixPath) -> bool:
    """Tell whether a file, named relative to the model's folder, is one that a model may need.

    Pickles are left behind even where safetensors stand beside them: nothing may ever unpickle what was fetched. Of
    TorchScript, the archive of a package in ELSER's layout is wanted, by its one name.
    """
    if str(name) in _PACKAGE:
        return True
    return (
        not name.is_absolute()
        and 1 <= len(name.parts) <= _MAX_DEPTH
        and not any(part.startswith(".") for part in name.parts)
        and (name.suffix in _WANTED_SUFFIXES or name.name.upper().startswith(_WANTED_STEMS))
    )


def is_pickle(name: PurePosixPath) -> bool:
    """Tell whether a file's name is one that pickles have."""
    return name.suffix in _PICKLE_SUFFIXES


def check_names(names: Collection[str], source: str) -> None:
    """Check that a model's files, by their names relative to its folder, are all that it needs, before any is fetched.

    It knows the outlines: a transformers model, one of sentence-transformers (`modules.json`), whose files may lie in
    its modules' folders, and a package in ELSER's layout. What a file must hold the inspection says.

    Raises:
        FailedPreconditionError: one is missing; the message begins with `source` and names it.

    """
    if not names:
        raise unusable(f"{source} holds no files")
    if ARCHIVE in names:
        for name in (METADATA, VOCABULARY):
            if name not in names:
                raise unusable(f"{source} lacks {name}, which belongs to {ARCHIVE}")
        return
    ends = {PurePosixPath(name).name for name in names} if "modules.json" in names else names
    if "config.json" not in ends:
        raise unusable(f"{source} lacks config.json, which says what the model is")
    if WEIGHTS not in ends and SHARDS not in ends:
        raise _lacks_weights(names, source)
    if not any(name in ends for name in _TOKENIZERS):
        raise unusable(f"{source} lacks its tokenizer; add tokenizer.json (or vocab.txt and tokenizer_config.json)")


def _lacks_weights(names: Collection[str], source: str) -> FailedPreconditionError:
    pickles = sorted(name for name in names if is_pickle(PurePosixPath(name)))
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
        raise wrong_digest(what, actual, expected.lower())


def wrong_digest(what: str, actual: str, expected: str) -> FailedPreconditionError:
    """Make the error for a file whose SHA-256 is another one."""
    return FailedPreconditionError(
        f"{what} has SHA-256 {actual} instead of {expected}; it was altered, or sha256 is wrong.",
        reason="CHECKSUM_MISMATCH",
        metadata={"expected_sha256": expected, "actual_sha256": actual},
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


def check_room(folder: Path, size_bytes: int) -> None:
    """Check that a disk has room for so many bytes more. `folder` is there, and on it.

    Every repository asks it once it knows how much it is going to write, less what its scratch folder holds already.

    Raises:
        ResourceExhaustedError: it has not; message and metadata give what is needed and what is free.

    """
    free = shutil.disk_usage(folder).free
    if size_bytes + _SPARE_BYTES > free:
        raise ResourceExhaustedError(
            f"The model needs {size_bytes:,} bytes and {_SPARE_BYTES:,} to spare, and the disk of the data folder has "
            f"{free:,} free; make room and try again.",
            reason="DISK_FULL",
            metadata={"needed_bytes": str(size_bytes), "free_bytes": str(free)},
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """A model's folder in the making, on the file system where it will stay."""

    folder: Path
    """Holds both."""
    files: Path
    """Becomes the model's folder."""
    scratch: Path
    """For whatever is needed meanwhile. It outlives a failed attempt and the server."""


def draft_name(model_id: str, source: str, sha256: str) -> str:
    """Give the name of a model's draft. It changes with what is to be fetched, so that nothing is ever mixed."""
    wanted = hashlib.sha256(f"{source}\n{sha256}".encode()).hexdigest()
    return f"{_drafts_of(model_id)}{wanted[:_DIGITS]}"


def _drafts_of(model_id: str) -> str:
    """Give what the names of a model's drafts begin with. An id may have 255 bytes, as many as a file name."""
    return f"{_DRAFT_PREFIX}{hashlib.sha256(model_id.encode()).hexdigest()[:_DIGITS]}~"


def open_draft(models: Path, model_id: str, source: str, sha256: str) -> Draft:
    """Open a model's draft in the folder of models: `scratch` as it was left, `files` empty.

    A model has one: those of another source or checksum are removed.
    """
    name = draft_name(model_id, source, sha256)
    remove_drafts(models, model_id, but=name)
    folder = models / name
    draft = Draft(folder, folder / "files", folder / "scratch")
    shutil.rmtree(draft.files, ignore_errors=True)
    draft.files.mkdir(parents=True)
    draft.scratch.mkdir(exist_ok=True)
    return draft


def is_begun(draft: Draft) -> bool:
    """Tell whether an earlier attempt left something to go on from."""
    return any(draft.scratch.iterdir())


def clear_draft(draft: Draft) -> None:
    """Make both folders empty."""
    shutil.rmtree(draft.folder, ignore_errors=True)
    draft.files.mkdir(parents=True)
    draft.scratch.mkdir()


def close_draft(draft: Draft, *, keep: bool) -> None:
    """Close a draft, whatever became of it; `keep` what its scratch folder holds, if anything, for another attempt."""
    if keep and is_begun(draft):
        shutil.rmtree(draft.files, ignore_errors=True)
    else:
        shutil.rmtree(draft.folder, ignore_errors=True)


def remove_drafts(models: Path, model_id: str, *, but: str = "") -> None:
    """Remove a model's drafts, except the one that is named."""
    for folder in models.glob(f"{_drafts_of(model_id)}*"):
        if folder.name != but:
            shutil.rmtree(folder, ignore_errors=True)


def link(file: Path, target: Path) -> None:
    """Give a file of a draft a second name in it, so that the first outlives a kill; where there are no links, copy."""
    try:
        os.link(file, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(file, target, follow_symlinks=False)


def publish(files: Path, target: Path) -> None:
    """Make finished files the folder `target`, in place of what may be there: durably, and all of them or none."""
    for folder, _, names in os.walk(files, topdown=False):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))
    _bury(target)
    files.rename(target)
    sync(target.parent)


def remove(target: Path) -> None:
    """Remove a model's folder and its drafts, if they are there."""
    _bury(target)
    remove_drafts(target.parent, target.name)


def _bury(target: Path) -> None:
    """Remove a folder, if it is there.

    It is out of sight first, so no half of it is ever a model's folder; what cannot be removed the next start sweeps.
    """
    grave = target.with_name(f"{_DRAFT_PREFIX}{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        target.rename(grave)
        sync(target.parent)
        shutil.rmtree(grave, ignore_errors=True)


def sweep(models: Path, keep: Collection[str], drafts: Collection[str] | None = None) -> list[str]:
    """Remove whatever stands in the folder of models without a right to, and give the names.

    `keep` are the models that have folders, `drafts` those whose drafts stay (None: the same).
    """
    prefixes = tuple(map(_drafts_of, keep if drafts is None else drafts))
    stray = sorted(
        entry.name
        for entry in models.iterdir()
        if entry.name not in {*keep, _FOREIGN} and not entry.name.startswith(prefixes)
    )
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
    if (folder / ARCHIVE).is_file():
        return True
    return any(next(folder.glob(f"**/{name}"), None) is not None for name in (WEIGHTS, SHARDS))


def sync(path: Path) -> None:
    """Make a file or a folder outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
