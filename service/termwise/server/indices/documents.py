"""From a document's body to what storage keeps of it, by the mapping."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from termwise.server.errors import invalid_field
from termwise.server.indices.mapping import ancestors, sparse_field_of
from termwise.server.indices.values import parse_number, parse_value, show
from termwise.storage.types import MAX_ID_BYTES, Document, FieldKind, SparseVector, sparse_vector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Mapping as AnyMapping

    from termwise.server.indices.mapping import FieldMapping, Mapping
    from termwise.storage.types import Scalar


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the request holds a document and its body, for errors: "document" and "document.source", say."""

    document: str = "document"
    body: str = "document.source"

    @property
    def id(self) -> str:
        """Where the id stands."""
        return f"{self.document}.id"

    def vector(self, name: str) -> str:
        """Where a vector of `sparse_vectors` stands."""
        return f'{self.document}.sparse_vectors["{name}"]'


@dataclass(frozen=True, slots=True)
class InputDocument:
    """A document as a request gives it.

    `source` is the body as JSON text, not yet checked; an empty `id` is made up on writing. `sparse` holds the vectors
    that stand beside the body, checked.
    """

    id: str
    source: bytes = b"{}"
    sparse: AnyMapping[str, SparseVector] = field(default_factory=dict)
    paths: Paths = field(default_factory=Paths)


def check_id(value: str, field_name: str) -> str:
    """Give a document's id back where it is 1 to 512 bytes.

    Raises:
        InvalidArgumentError: it is not; the violation names `field_name`.

    """
    if not value:
        raise invalid_field(field_name, "It is empty; give the document's id.")
    if len(value.encode()) > MAX_ID_BYTES:
        raise invalid_field(
            field_name, f"The id is {len(value.encode()):,} bytes long; ids are up to {MAX_ID_BYTES} bytes."
        )
    return value


def new_id() -> str:
    """Make up an id that no document has: 32 hex digits, at random."""
    return uuid.uuid4().hex


def parse_document(
    mapping: Mapping,
    id_: str,
    source: bytes,
    body: dict[str, Any],
    sparse: AnyMapping[str, SparseVector],
    paths: Paths,
) -> Document:
    """Give the document that storage keeps: `source` as it is, and the values of the mapping's fields.

    `body` is what `source` says. A field's name is a dotted path: objects nest, arrays give several values, null is
    none, and a key with dots in it counts as nested objects.

    Raises:
        InvalidArgumentError: the violation names the field as the request holds it, such as `document.source.year`.

    """
    found: dict[str, list[Any]] = {}
    _collect(mapping, body, "", found, paths)
    texts: dict[str, list[str]] = {}
    columns: dict[str, list[Scalar]] = {}
    vectors: dict[str, SparseVector] = {}
    for name, raw in found.items():
        each = mapping.properties[name]
        where = f"{paths.body}.{name}"
        values = list(_flatten(raw))
        if not values:
            continue
        if each.kind is FieldKind.SPARSE_VECTOR:
            vectors[name] = _vector_of_body(values, where)
        else:
            _parse_values(name, each, values, where, texts, columns)
    for name, vector in sparse.items():
        sparse_field_of(mapping, name, paths.vector(name))
        if name in vectors:
            raise invalid_field(
                paths.vector(name), "The body has this field too; give it in one place.", reason="FIELD_GIVEN_TWICE"
            )
        vectors[name] = vector
    return Document(id=id_, source=source, texts=texts, columns=columns, sparse=vectors)


def _collect(mapping: Mapping, value: dict[str, Any], prefix: str, found: dict[str, list[Any]], paths: Paths) -> None:
    """Gather the raw values of the mapping's properties. The body's depth is bounded, and so is the recursion."""
    for key, child in value.items():
        name = prefix + key
        if name in mapping.properties:
            found.setdefault(name, []).append(child)
        elif name in mapping.objects:
            _descend(mapping, child, name, found, paths)
        else:
            if "." in key:
                _check_above(mapping, name, paths)
            if mapping.strict:
                raise invalid_field(
                    f"{paths.body}.{name}",
                    "The mapping has no such field and takes no others; add it to the mapping or leave it out.",
                    reason="UNKNOWN_FIELD",
                )


def _descend(mapping: Mapping, child: Any, name: str, found: dict[str, list[Any]], paths: Paths) -> None:
    for each in _flatten([child]):
        if not isinstance(each, dict):
            raise invalid_field(
                f"{paths.body}.{name}",
                f"The mapping has an object here, the document has {show(each)}.",
                reason="MAPPING_CONFLICT",
            )
        _collect(mapping, each, name + ".", found, paths)


def _check_above(mapping: Mapping, name: str, paths: Paths) -> None:
    """A key with dots must not put an object where a field is mapped, as nested objects must not."""
    above = next((path for path in ancestors(name) if path in mapping.properties), None)
    if above is not None:
        raise _conflict(mapping.properties[above], f"{paths.body}.{name}")


def _conflict(each: FieldMapping, where: str) -> Exception:
    return invalid_field(
        where,
        f"The mapping has a field of kind {each.kind.value} here, the document has an object.",
        reason="MAPPING_CONFLICT",
    )


def _flatten(values: list[Any]) -> Iterator[Any]:
    """Give the values of nested arrays, nulls left out."""
    for value in values:
        if isinstance(value, list):
            yield from _flatten(value)
        elif value is not None:
            yield value


def _parse_values(
    name: str,
    each: FieldMapping,
    values: list[Any],
    where: str,
    texts: dict[str, list[str]],
    columns: dict[str, list[Scalar]],
) -> None:
    for value in values:
        if isinstance(value, dict):
            raise _conflict(each, where)
    for full, field_mapping in [(name, each), *((f"{name}.{short}", sub) for short, sub in each.fields.items())]:
        target: dict[str, list[Any]] = texts if field_mapping.kind is FieldKind.TEXT else columns
        try:
            target[full] = [parse_value(field_mapping.kind, value) for value in values]
        except ValueError as error:
            tail = "" if full == name else f' (as "{full}")'
            raise invalid_field(where, f"{error}{tail}", reason="MAPPING_CONFLICT") from error


def _vector_of_body(values: list[Any], where: str) -> SparseVector:
    """Read objects of token to weight, null weights left out; several are joined by each token's largest weight."""
    weights: dict[str, float] = {}
    for value in values:
        if not isinstance(value, dict):
            raise invalid_field(
                where,
                f"The mapping has a sparse vector here, the document has {show(value)}; give token to weight.",
                reason="MAPPING_CONFLICT",
            )
        for token, weight in value.items():
            if weight is None:
                continue
            try:
                number = parse_number(weight)
            except ValueError as error:
                raise invalid_field(
                    where, f"Weight of token {token[:40]!r}: {error}", reason="INVALID_WEIGHT"
                ) from error
            weights[token] = max(number, weights.get(token, number))
    try:
        return sparse_vector(list(weights), list(weights.values()))
    except ValueError as error:
        raise invalid_field(where, str(error), reason="INVALID_WEIGHT") from error


def parse_vector(tokens: list[str], weights: list[float], where: str) -> SparseVector:
    """Make a vector of what a request gives.

    Raises:
        InvalidArgumentError: weights that are no weights, tokens that stand twice or are too long; it names `where`.

    """
    try:
        return sparse_vector(tokens, weights)
    except ValueError as error:
        raise invalid_field(where, str(error), reason="INVALID_WEIGHT") from error
