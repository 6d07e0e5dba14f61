"""Packages in ELSER's layout among a model's files: their canonical names, and what their metadata say of the model."""

from __future__ import annotations

import dataclasses
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from termwise.server.inference.base import ExpansionConfig
from termwise.server.inference.torchscript.metadata import read_metadata
from termwise.server.inference.torchscript.names import ARCHIVE, METADATA, VOCABULARY
from termwise.server.models import artifacts

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from termwise.server.metadata.records import ModelRecord

_ARCHIVE_END: Final = ".pt"
_METADATA_END: Final = ".metadata.json"
_VOCABULARY_END: Final = ".vocab.json"


def is_archive(name: PurePosixPath) -> bool:
    """Tell whether a name may be that of a package's archive, such as elser_model_2.pt."""
    return len(name.parts) == 1 and name.suffix == _ARCHIVE_END and not name.name.startswith(".")


def holds_package(names: Collection[str]) -> bool:
    """Tell whether files, by their names, are a package's under its own names: an archive beside its metadata."""
    return any(is_archive(path) and f"{path.stem}{_METADATA_END}" in names for path in map(PurePosixPath, names))


def as_package(files: Mapping[str, Path]) -> dict[str, Path]:
    """Give a package's three files by their canonical names; `files` are named as at their source.

    Raises:
        FailedPreconditionError: one is missing or there are several, the metadata cannot be read, or the archive's size
            or SHA-256 is not what they say.

    """
    archives = [name for name in files if is_archive(PurePosixPath(name))]
    if len(archives) != 1:
        raise artifacts.unusable(f"There are {len(archives)} archives ({', '.join(archives)}); a package has one")
    stem = archives[0].removesuffix(_ARCHIVE_END)
    said = [name for name in files if name.endswith(_METADATA_END) and "/" not in name]
    if not said:
        raise artifacts.unusable(
            f"{archives[0]} is a package's archive and lacks its metadata; add {stem}{_METADATA_END}"
        )
    if len(said) > 1:
        raise artifacts.unusable(f"There are {len(said)} metadata files ({', '.join(said)}); a package has one")
    metadata = read_metadata(files[said[0]].read_bytes())
    candidates = [metadata.vocabulary_file, VOCABULARY, f"{stem}{_VOCABULARY_END}"]
    vocabulary = next((name for name in candidates if name in files), None)
    if vocabulary is None:
        raise artifacts.unusable(f"The package lacks {candidates[0] or candidates[2]}, its vocabulary")
    archive = files[archives[0]]
    size = archive.stat().st_size
    if metadata.size_bytes and metadata.size_bytes != size:
        raise artifacts.unusable(
            f"{archives[0]} has {size:,} bytes instead of the {metadata.size_bytes:,} that {said[0]} says",
            reason="SIZE_MISMATCH",
        )
    artifacts.check_digest(archive, metadata.sha256, archives[0])
    return {METADATA: files[said[0]], ARCHIVE: archive, VOCABULARY: files[vocabulary]}


def package_changes(folder: Path, record: ModelRecord) -> dict[str, Any]:
    """Give what the metadata of a package in a model's folder change in its record; nothing where there is none.

    What the operator left open, the package says.
    """
    if not (folder / ARCHIVE).is_file():
        return {}
    metadata = read_metadata((folder / METADATA).read_bytes())
    return {
        "package": dict(metadata.raw),
        "config": dataclasses.asdict(metadata.expansion(ExpansionConfig(**record.config))),
        "description": record.description or metadata.description,
        "tags": record.tags or metadata.tags,
    }
