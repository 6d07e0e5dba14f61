"""The folder of an index: `format.json`, tantivy's files in `tantivy/`, a `lock`, and `last_seq_no` where needed.

`tiles/` is a cache (see `tile_files`); it may be removed while the index is closed.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import tantivy

from termwise.storage.analysis import check_analyzer, text_analyzer, versioned
from termwise.storage.errors import SchemaError, StorageFormatError
from termwise.storage.types import FieldKind, FieldSpec, IndexSchema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT_VERSION: Final = 3
"""Raised with every change that older code cannot read.

1: a document's sparse terms are single values. 2: they are one text, cut apart at white space. 3: a document may have
several vectors in a field. All are read and written; new indices are of version 3.
"""

_FORMAT_FILE: Final = "format.json"
_TANTIVY_FOLDER: Final = "tantivy"
TILES_FOLDER: Final = "tiles"
_SEQ_NO_FILE: Final = "last_seq_no"

_FULL: Final = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_FULL_TEXTS: Final = tuple(text for code in _FULL for text in (f"os error {code})", f"Os {{ code: {code},"))
"""How Rust writes such an error, for people or in full; tantivy passes it on as text."""


@dataclass(frozen=True, slots=True)
class FieldPlace:
    """Where a field lives in tantivy.

    `number` counts fields from 0. `column` is tantivy's field, for all kinds but sparse vectors; `prefix` begins a
    sparse vector's terms in the shared field `sparse`. `analyzer` is a versioned name.
    """

    name: str
    number: int
    kind: FieldKind
    analyzer: str

    @property
    def column(self) -> str:
        """Name tantivy's own field."""
        return f"f{self.number}"

    @property
    def prefix(self) -> str:
        """Give what the field's terms in `sparse` begin with."""
        return f"{self.number}\0"


@dataclass(frozen=True, slots=True)
class Layout:
    """An index's schema and its fields' places."""

    schema: IndexSchema
    places: dict[str, FieldPlace]
    version: int = FORMAT_VERSION
    id: str = ""
    """Tells the index from all others, so that no foreign file passes for one of its own; empty in version 1."""

    @property
    def joined_terms(self) -> bool:
        """Whether a document's sparse terms are one text."""
        return self.version > 1

    @property
    def keeps_chunks(self) -> bool:
        """Whether a document may have several vectors in a field."""
        return self.version > 2  # noqa: PLR2004 - see FORMAT_VERSION

    @classmethod
    def new(cls, schema: IndexSchema) -> Layout:
        """Give every field a place, and every analyzer its newest version."""
        return cls(
            schema,
            {
                name: FieldPlace(name, n, spec.kind, versioned(spec.analyzer) if spec.kind is FieldKind.TEXT else "")
                for n, (name, spec) in enumerate(schema.fields.items())
            },
            id=uuid.uuid4().hex,
        )

    def sparse_places(self) -> list[FieldPlace]:
        """List the sparse vector fields."""
        return [place for place in self.places.values() if place.kind is FieldKind.SPARSE_VECTOR]

    def tantivy_schema(self) -> tantivy.Schema:
        """Make tantivy's schema.

        `key` (the id) is raw text, because tantivy deletes nothing by a number's term. `has` lists the fields that hold
        a value. Filters need documents alone; BM25 needs frequencies and no positions.
        """
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("key", stored=True, tokenizer_name="raw", index_option="basic")
        builder.add_integer_field("seq_no", indexed=True, fast=True)
        builder.add_text_field("has", tokenizer_name="raw", index_option="basic")
        tokenizer = "whitespace" if self.joined_terms else "raw"
        builder.add_text_field("sparse", tokenizer_name=tokenizer, index_option="basic")
        builder.add_bytes_field("source", stored=True)
        builder.add_bytes_field("vec", stored=True)
        for place in self.places.values():
            if place.kind is FieldKind.TEXT:
                builder.add_text_field(place.column, tokenizer_name=place.analyzer, index_option="freq")
            elif place.kind is FieldKind.KEYWORD:
                builder.add_text_field(place.column, tokenizer_name="raw", index_option="basic")
            elif place.kind is FieldKind.NUMBER:
                builder.add_float_field(place.column, indexed=True, fast=True)
            elif place.kind is not FieldKind.SPARSE_VECTOR:
                builder.add_integer_field(place.column, indexed=True, fast=True)
        return builder.build()

    def create(self, folder: Path) -> None:
        """Write a new index into an empty folder, and every byte of it to the disk."""
        inner = folder / _TANTIVY_FOLDER
        inner.mkdir()
        tantivy.Index(self.tantivy_schema(), str(inner))
        fields = [{"name": p.name, "kind": p.kind.value, "analyzer": p.analyzer} for p in self.places.values()]
        content = {"format_version": self.version, "id": self.id, "fields": fields}
        (folder / _FORMAT_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
        for path in (*inner.iterdir(), inner, folder / _FORMAT_FILE, folder):
            sync(path)

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """Read an index's layout; StorageFormatError where it is newer than this code, or broken."""
        try:
            content: dict[str, Any] = json.loads((folder / _FORMAT_FILE).read_text(encoding="utf-8"))
            version = int(content["format_version"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageFormatError(f"Index folder {folder.name} is broken: {_FORMAT_FILE}: {error}.") from error
        if version > FORMAT_VERSION:
            raise StorageFormatError(
                f"Index folder {folder.name} is of format version {version}, and this release reads up to version "
                f"{FORMAT_VERSION}; use a newer release."
            )
        try:
            places = {
                entry["name"]: FieldPlace(entry["name"], number, FieldKind(entry["kind"]), entry["analyzer"])
                for number, entry in enumerate(content["fields"])
            }
            for place in places.values():
                if place.kind is FieldKind.TEXT:
                    check_analyzer(place.analyzer)
        except (ValueError, KeyError, TypeError, SchemaError) as error:
            raise StorageFormatError(f"Index folder {folder.name} is broken: {_FORMAT_FILE}: {error}.") from error
        fields = {p.name: FieldSpec(p.kind, p.analyzer.partition(".")[0] or "standard") for p in places.values()}
        return cls(IndexSchema(fields), places, version, str(content.get("id", "")))

    def open(self, folder: Path) -> tantivy.Index:
        """Open tantivy's index and teach it the analyzers; StorageFormatError where it is broken."""
        try:
            index = tantivy.Index.open(str(folder / _TANTIVY_FOLDER))
            index.config_reader("manual")
        except (OSError, ValueError) as error:
            raise StorageFormatError(f"Index folder {folder.name} is broken: {error}.") from error
        for place in self.places.values():
            if place.kind is FieldKind.TEXT:
                index.register_tokenizer(place.analyzer, text_analyzer(place.analyzer))
        return index


def commit_stamp(folder: Path) -> int:
    """Read the stamp of tantivy's last commit, which grows by commit."""
    meta = json.loads((folder / _TANTIVY_FOLDER / "meta.json").read_text(encoding="utf-8"))
    return int(meta["opstamp"])


def sync_commit(folder: Path) -> None:
    """Finish a commit: tantivy writes every file to the disk, but not the last renaming, that of `meta.json`."""
    sync(folder / _TANTIVY_FOLDER)


def read_last_seq_no(folder: Path) -> int:
    """Read what `write_last_seq_no` wrote, 0 where it never did."""
    try:
        return int((folder / _SEQ_NO_FILE).read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise StorageFormatError(f"Index folder {folder.name} is broken: {_SEQ_NO_FILE}: {error}.") from error


def write_last_seq_no(folder: Path, seq_no: int) -> None:
    """Keep a seq_no that no document carries (a deletion's), so that it is never used again."""
    fresh = folder / f"{_SEQ_NO_FILE}.new"
    fresh.write_text(str(seq_no), encoding="ascii")
    sync(fresh)
    fresh.replace(folder / _SEQ_NO_FILE)
    sync(folder)


def folder_size(folder: Path) -> int:
    """Sum up the sizes of an index's files in bytes; what is removed meanwhile takes none."""
    total = 0
    for place in (folder, folder / _TANTIVY_FOLDER, folder / TILES_FOLDER):
        with suppress(OSError), os.scandir(place) as entries:  # the index is dropped
            for entry in entries:
                with suppress(OSError):  # the file is merged away
                    total += entry.stat().st_size if entry.is_file() else 0
    return total


def is_full(error: BaseException) -> bool:
    """Tell whether an error means that the disk, a quota or a file has no more room."""
    return (isinstance(error, OSError) and error.errno in _FULL) or any(text in str(error) for text in _FULL_TEXTS)


def has_room(folder: Path, size: int) -> bool:
    """Tell whether a file of so many bytes could be written."""
    probe = folder / "room"
    try:
        with probe.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True


def sync(path: Path) -> None:
    """Write a file or a folder's entries to the disk."""
    with opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file or a folder for reading and close it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
