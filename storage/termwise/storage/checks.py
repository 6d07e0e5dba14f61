"""Checks that every backend makes alike: schemas, documents, and the fields and values of conditions."""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from termwise.storage.analysis import check_analyzer
from termwise.storage.errors import (
    DocumentExistsError,
    DocumentMissingError,
    InvalidDocumentError,
    SchemaError,
    VersionConflictError,
)
from termwise.storage.types import (
    MAX_CHUNKS,
    MAX_ID_BYTES,
    MAX_KEYWORD_BYTES,
    MAX_TOKEN_BYTES,
    SMALLEST_WEIGHT,
    AllOf,
    AnyOf,
    Condition,
    Delete,
    Exists,
    FieldKind,
    Lexical,
    Not,
    Operation,
    Put,
    Range,
    Scalar,
    Sparse,
    Terms,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from termwise.storage.types import Document, FieldSpec, IndexSchema, SparseVector

Column: TypeAlias = str | int | float
"""A column's value as backends keep it: booleans as 0 and 1, numbers as floats, -0.0 as 0.0."""

COLUMN_KINDS: Final = frozenset(
    {FieldKind.KEYWORD, FieldKind.INTEGER, FieldKind.NUMBER, FieldKind.BOOLEAN, FieldKind.DATE}
)
_SPARSE: Final = frozenset({FieldKind.SPARSE_VECTOR})
SMALLEST_INTEGER: Final = -(2**63)
LARGEST_INTEGER: Final = 2**63 - 1
_LONGEST_FIELD_NAME: Final = 1024


def check_schema(schema: IndexSchema) -> None:
    """Check names and analyzers; SchemaError for one that cannot be served."""
    for name, spec in schema.fields.items():
        if not name or _size(name) > _LONGEST_FIELD_NAME:
            msg = (
                f"Field name {_shown(name)} is {_size(name)} bytes long; names are 1 to {_LONGEST_FIELD_NAME:,} bytes."
            )
            raise SchemaError(msg)
        if spec.kind is FieldKind.TEXT:
            check_analyzer(spec.analyzer)


def field_of(schema: IndexSchema, name: str, kinds: frozenset[FieldKind] | set[FieldKind] | None = None) -> FieldSpec:
    """Give a field; SchemaError where there is none or it is of none of `kinds`."""
    spec = schema.fields.get(name)
    if spec is None:
        msg = f"Field {_shown(name)} does not exist in the index."
        raise SchemaError(msg)
    if kinds is not None and spec.kind not in kinds:
        wanted = " or ".join(sorted(kind.value for kind in kinds))
        msg = f"Field {_shown(name)} is of kind {spec.kind.value}; this needs {wanted}."
        raise SchemaError(msg)
    return spec


def column_value(kind: FieldKind, value: Scalar) -> Column:
    """Bring a column's value to the form that backends keep; ValueError, half a sentence, where it does not fit."""
    if kind is FieldKind.KEYWORD:
        if not isinstance(value, str):
            raise ValueError(f"takes strings, not {value!r}")
        if _size(value) > MAX_KEYWORD_BYTES:
            raise ValueError(f"takes up to {MAX_KEYWORD_BYTES:,} bytes, and {_shown(value)} has {_size(value):,}")
        return value
    if kind is FieldKind.BOOLEAN:
        if not isinstance(value, bool):
            raise ValueError(f"takes booleans, not {value!r}")
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"takes numbers, not {value!r}")  # noqa: TRY004 - callers turn ValueError into theirs
    if kind is FieldKind.NUMBER:
        number = _double(value)
        if math.isnan(number):
            raise ValueError("takes numbers, not NaN")
        return number + 0.0  # -0.0 becomes 0.0: they are equal, and must be found as such
    if not isinstance(value, int):
        raise ValueError(f"takes whole numbers, not {value!r}")  # noqa: TRY004 - callers turn ValueError into theirs
    return value


def _double(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"takes doubles, and {value} is beyond them") from None


def check_document(schema: IndexSchema, document: Document, *, vectors: bool = True) -> dict[str, tuple[Column, ...]]:
    """Check a document against the schema and the limits, and give its columns in the form that backends keep.

    Without `vectors` the weights and tokens of its sparse vectors are left to the caller.

    Raises:
        InvalidDocumentError: one sentence that names the document and the field.

    """
    columns: dict[str, tuple[Column, ...]] = {}
    try:
        _check_id(document.id)
        for name, texts in document.texts.items():
            field_of(schema, name, {FieldKind.TEXT})
            for text in texts:
                _size(text)
        for name, values in document.columns.items():
            kind = field_of(schema, name, COLUMN_KINDS).kind
            columns[name] = tuple(_stored_value(name, kind, value) for value in values)
        for name in chain(document.sparse, document.chunks):
            field_of(schema, name, _SPARSE)
        for name, held in document.chunks.items():
            _check_chunks(document, name, held)
        for name, held in document.vectors().items() if vectors else ():
            for vector in held:
                _check_vector(name, vector)
    except (SchemaError, ValueError) as error:
        message = str(error)
        msg = f"Document {_shown(document.id)}: {message[:1].lower()}{message[1:]}"
        raise InvalidDocumentError(msg) from error
    return columns


def _check_id(id_: str) -> None:
    if not 1 <= _size(id_) <= MAX_ID_BYTES:
        raise ValueError(f"Ids are 1 to {MAX_ID_BYTES} bytes, and this one has {_size(id_)}.")


def _stored_value(name: str, kind: FieldKind, value: Scalar) -> Column:
    try:
        stored = column_value(kind, value)
    except ValueError as error:
        raise ValueError(f"Field {_shown(name)} {error}.") from error
    if isinstance(stored, int) and not SMALLEST_INTEGER <= stored <= LARGEST_INTEGER:
        raise ValueError(f"Field {_shown(name)} takes 64-bit integers, and {stored} is beyond them.")
    if isinstance(stored, float) and math.isinf(stored):
        raise ValueError(f"Field {_shown(name)} takes finite numbers, not {stored}.")
    return stored


def _check_chunks(document: Document, name: str, held: Sequence[SparseVector]) -> None:
    if name in document.sparse:
        raise ValueError(f"Field {_shown(name)} is given one vector and chunks; give it either.")
    if len(held) > MAX_CHUNKS:
        raise ValueError(f"Field {_shown(name)} takes up to {MAX_CHUNKS:,} chunks a document, not {len(held):,}.")


def _check_vector(name: str, vector: SparseVector) -> None:
    """Guard against vectors that were not made by `sparse_vector`, as far as that is cheap."""
    weights = vector.weights
    if not len(vector.tokens) == len(weights) == len(set(vector.tokens)):
        raise ValueError(f"Field {_shown(name)} needs one weight a token, and distinct tokens.")
    if not len(weights):
        return
    if weights.dtype != np.float32 or not (weights.min() >= SMALLEST_WEIGHT and weights.max() < np.inf):
        raise ValueError(
            f"Field {_shown(name)} has weights that are not finite float32 of {SMALLEST_WEIGHT:.8E} or more."
        )
    if max(map(_size, vector.tokens)) > MAX_TOKEN_BYTES or "" in vector.tokens:
        raise ValueError(f"Field {_shown(name)} has tokens that are not 1 to {MAX_TOKEN_BYTES:,} bytes long.")


def condition_values(schema: IndexSchema, name: str, values: Sequence[Scalar]) -> tuple[Column, ...]:
    """Bring a condition's values to the form that backends keep; SchemaError where the field or a value does not fit.

    Keywords may be longer, and integers larger, than a document can hold: nothing equals those.
    """
    kind = field_of(schema, name, COLUMN_KINDS).kind
    try:
        return tuple(
            value if kind is FieldKind.KEYWORD and isinstance(value, str) else column_value(kind, value)
            for value in values
        )
    except ValueError as error:
        raise SchemaError(f"Field {_shown(name)} {error}.") from error


def check_condition(schema: IndexSchema, condition: Condition) -> None:
    """Check every field and value of a condition; SchemaError for the first that does not fit."""
    match condition:
        case Terms(name, values):
            condition_values(schema, name, values)
        case Range(name, gte, gt, lte, lt):
            condition_values(schema, name, [bound for bound in (gte, gt, lte, lt) if bound is not None])
        case Exists(name):
            field_of(schema, name)
        case Not(inner):
            check_condition(schema, inner)
        case AllOf(conditions) | AnyOf(conditions):
            for part in conditions:
                check_condition(schema, part)
        case Lexical(name):
            field_of(schema, name, {FieldKind.TEXT})
        case Sparse(name):
            field_of(schema, name, {FieldKind.SPARSE_VECTOR})
        case _:
            pass


def refusal(
    operation: Operation, id_: str, found: int
) -> DocumentExistsError | DocumentMissingError | VersionConflictError | None:
    """Say why an operation cannot run where the document's version is `found` (0: there is none); None where it can."""
    if isinstance(operation, Delete) and not found:
        return DocumentMissingError(id_, f'Document "{id_}" does not exist.')
    if isinstance(operation, Put) and operation.create and found:
        return DocumentExistsError(id_, f'Document "{id_}" exists at version {found}; write it without "create".')
    expected = operation.if_version
    if expected is not None and expected != found:
        state = f"is at version {found}" if found else "does not exist"
        wanted = f"at version {expected}" if expected else "absent"
        return VersionConflictError(id_, f'Document "{id_}" {state}, and the write wants it {wanted}; read it again.')
    return None


def check_depth(depth: int, count: int | None = None) -> None:
    """Refuse a ranking of nothing, and a count below 0; a caller's bug, hence ValueError."""
    if depth < 1:
        raise ValueError(f"depth is {depth}; rank at least 1 document.")
    if count is not None and count < 0:
        raise ValueError(f"count is {count}; count 0 matches or more, or None for all.")


def _size(text: str) -> int:
    """Count UTF-8 bytes. ValueError for text that has none (lone surrogates)."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"Text {text[:40]!r} is not valid Unicode; it holds half a surrogate pair.") from None


def _shown(text: str) -> str:
    short = text if len(text) <= 40 else text[:40] + "…"  # noqa: PLR2004 - as much as a message bears
    return f'"{short}"'
