"""A document on its way through a pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from termwise.server.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError
from termwise.server.indices.body import MAX_DEPTH, dump_json, is_deeper
from termwise.server.ingest.paths import ABSENT, find, get_path, remove_path, set_path
from termwise.storage.types import SparseVector

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from termwise.server.errors import TermwiseError
    from termwise.server.indices.documents import Paths

_INGEST: Final = "_ingest."


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which model made a vector; `aliases` are its other names."""

    model_id: str
    fingerprint: str
    aliases: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a processor failed a document."""

    error: TermwiseError
    processor_type: str
    processor_tag: str

    @property
    def passing(self) -> bool:
        """Whether it says nothing about the document, only that the server is busy: the caller should retry.

        Such failures pass by `on_failure` and `ignore_failure`, or an overloaded server would silently index documents
        without their vectors.
        """
        return isinstance(self.error, ResourceExhaustedError | UnavailableError | DeadlineExceededError)


class StepStatus(Enum):
    """What became of a step."""

    SUCCESS = "success"
    ERROR_IGNORED = "error_ignored"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A document as it is at one moment."""

    id: str
    source: bytes
    sparse: Mapping[str, SparseVector]


@dataclass(frozen=True, slots=True)
class Step:
    """A step that ran, and the document afterwards."""

    processor_type: str
    tag: str
    status: StepStatus
    document: Snapshot
    failure: Failure | None = None


@dataclass(slots=True, eq=False)
class Draft:
    """A document that processors change.

    A field is one of the body or a sparse vector beside it: setting one takes the place of the other. `inferred` says
    which model made which vector. `failure` ends the run for the document. `ingest` is what `{{_ingest.…}}` stands for.
    """

    id: str
    text: bytes
    body: dict[str, Any]
    sparse: dict[str, SparseVector]
    paths: Paths
    inferred: dict[str, Provenance] = field(default_factory=dict)
    failure: Failure | None = None
    ingest: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    changed: bool = False

    def get(self, path: str) -> Any:
        """Give a field's value: JSON, a SparseVector, or ABSENT."""
        vector = self.sparse.get(path)
        return get_path(self.body, path) if vector is None else vector

    def show(self, path: str) -> Any:
        """Give what `{{path}}` stands for: JSON, or ABSENT."""
        if path.startswith(_INGEST) and self.ingest:
            return self.ingest.get(path.removeprefix(_INGEST), ABSENT)
        value = self.get(path)
        if isinstance(value, SparseVector):
            return dict(zip(value.tokens, value.weights.tolist(), strict=True))
        return value

    def set(self, path: str, value: Any, provenance: Provenance | None = None) -> None:
        """Set a field to JSON or to a SparseVector; `provenance` is for the latter.

        Raises:
            ValueError: something on the way is no object, or the body would be nested too deep; one sentence.

        """
        if isinstance(value, SparseVector):
            self._remove_from_body(path)
            self.sparse[path] = value
        else:
            if is_deeper(value, MAX_DEPTH - path.count(".") - 1):
                msg = f'Field "{path}" would be nested more than {MAX_DEPTH} levels deep.'
                raise ValueError(msg)
            set_path(self.body, path, value)
            self.changed = True
            self.sparse.pop(path, None)
        self.inferred.pop(path, None)
        if provenance is not None:
            self.inferred[path] = provenance

    def rename(self, path: str, target: str) -> None:
        """Move a field that is there.

        Raises:
            ValueError: as `set`; the field is where it was.

        """
        vector = self.sparse.get(path)
        if vector is not None:
            provenance = self.inferred.get(path)
            self.remove(path)
            self.set(target, vector, provenance)
            return
        found = find(self.body, path)
        if found is None:
            msg = f'Field "{path}" does not exist in the document.'
            raise ValueError(msg)
        holder, key = found
        value = holder.pop(key)
        try:
            self.set(target, value)
        except ValueError:
            holder[key] = value
            raise

    def remove(self, path: str) -> None:
        """Remove a field, wherever it is."""
        self._remove_from_body(path)
        self.sparse.pop(path, None)
        self.inferred.pop(path, None)

    def source(self) -> bytes:
        """Give the body as JSON text: as it came, unless it was changed."""
        return dump_json(self.body) if self.changed else self.text

    def snapshot(self) -> Snapshot:
        """Give the document as it is now."""
        return Snapshot(self.id, self.source(), dict(self.sparse))

    def _remove_from_body(self, path: str) -> None:
        if remove_path(self.body, path) is not ABSENT:
            self.changed = True
