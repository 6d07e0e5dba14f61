"""Documents, bodies and sparse vectors between protobuf and the domain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Protocol

from termwise.server.errors import invalid_field
from termwise.server.indices.body import MAX_EXACT_DOUBLE, dump_json, read_body
from termwise.server.indices.documents import InputDocument, Paths, parse_vector
from termwise.server.indices.mapping import sparse_field_of
from termwise.server.indices.source_filter import SourceFilter
from termwise.v1 import document_pb2, sparse_vector_pb2

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from collections.abc import Mapping as AnyMapping

    from google.protobuf.struct_pb2 import Struct, Value

    from termwise.server.indices.mapping import Mapping
    from termwise.storage.types import SparseVector

_EVERYTHING: Final = SourceFilter()
_EVERY_VECTOR: Final = "*"


class HasBody(Protocol):
    """A message with the oneof `body` and the map `sparse_vectors`: a Document or a Hit."""

    source_json: str

    @property
    def source(self) -> Struct:
        """The body as a Struct."""
        ...

    @property
    def sparse_vectors(self) -> Any:
        """Vectors by field."""
        ...


def document_from_proto(message: document_pb2.Document, field: str) -> InputDocument:
    """Read a document that stands at `field` ("document") of a request.

    Raises:
        InvalidArgumentError: a Struct or a vector that cannot be used; JSON text is checked later.

    """
    which = message.WhichOneof("body")
    paths = Paths(field, f"{field}.{which or 'source'}")
    source = b"{}"
    if which == "source_json":
        source = message.source_json.encode()
    elif which == "source":
        source = dump_json(_object_from_struct(message.source, paths.body))
    sparse = {
        name: sparse_vector_from_proto(vector, paths.vector(name)) for name, vector in message.sparse_vectors.items()
    }
    return InputDocument(message.id, source, sparse, paths)


def sparse_vector_from_proto(message: sparse_vector_pb2.SparseVector, field: str) -> SparseVector:
    """Read a vector: sorted, checked.

    Raises:
        InvalidArgumentError: unequal lengths, a weight or token that cannot be, a token that stands twice.

    """
    return parse_vector(list(message.tokens), list(message.weights), field)


def sparse_vector_to_proto(vector: SparseVector) -> sparse_vector_pb2.SparseVector:
    """Write a vector."""
    return sparse_vector_pb2.SparseVector(tokens=vector.tokens, weights=vector.weights.tolist())


def value_from_proto(value: Value, field: str) -> Any:
    """Read a JSON value; doubles without a fraction become integers up to 2^53.

    Raises:
        InvalidArgumentError: a number that is not finite, or a value that says nothing; the violation names `field`.

    """
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        return _number(value.number_value, field)
    if kind == "bool_value":
        return value.bool_value
    if kind == "null_value":
        return None
    if kind == "struct_value":
        return _object_from_struct(value.struct_value, field)
    if kind == "list_value":
        return [value_from_proto(each, field) for each in value.list_value.values]
    raise invalid_field(field, "A value is not set; give null, a boolean, a number, a string, a list or an object.")


def _number(number: float, field: str) -> int | float:
    if not math.isfinite(number):
        raise invalid_field(field, f"{number} is no JSON number; give a finite one.")
    whole = number.is_integer() and abs(number) <= MAX_EXACT_DOUBLE
    return int(number) if whole else number


def _object_from_struct(struct: Struct, field: str) -> dict[str, Any]:
    # A Struct's entries have no order; sorted ones make the stored text the same each time.
    return {key: value_from_proto(value, f"{field}.{key}") for key, value in sorted(struct.fields.items())}


def fill_struct(struct: Struct, body: AnyMapping[str, Any]) -> None:
    """Write an object into an empty Struct. Integers beyond 2^53 lose digits."""
    struct.SetInParent()
    for key, value in body.items():
        fill_value(struct.fields[key], value)


def fill_value(target: Value, value: Any) -> None:
    """Write a JSON value into an empty Value."""
    if value is None:
        target.null_value = 0  # type: ignore[assignment] # NULL_VALUE
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, str):
        target.string_value = value
    elif isinstance(value, int | float):
        target.number_value = value
    elif isinstance(value, dict):
        fill_struct(target.struct_value, value)
    else:
        target.list_value.SetInParent()
        for each in value:
            fill_value(target.list_value.values.add(), each)


def check_source_format(value: int, field: str = "source_format") -> None:
    """Refuse a source format that there is not.

    Raises:
        InvalidArgumentError: it is none.

    """
    if value not in document_pb2.SourceFormat.values():
        raise invalid_field(field, f"{value} is no source format.")


def fill_body(target: HasBody, source: bytes, source_format: int, source_filter: SourceFilter = _EVERYTHING) -> None:
    """Write a stored body into a Document or a Hit, in the form asked for (one that `check_source_format` let pass)."""
    if source_format == document_pb2.SOURCE_FORMAT_NONE:
        return
    if source_format == document_pb2.SOURCE_FORMAT_JSON:
        target.source_json = source_filter.apply_to_source(source).decode()
        return
    # A Struct's numbers are doubles anyway.
    fill_struct(target.source, source_filter.apply(read_body(source)))


def vector_names(requested: Iterable[str], mapping: Mapping, field: str = "include_sparse_vectors") -> Collection[str]:
    """Give the sparse vector fields that a request asks for; `*` is all of them.

    Raises:
        InvalidArgumentError: there is no such field.

    """
    names = list(requested)
    for place, name in enumerate(names):
        if name != _EVERY_VECTOR:
            sparse_field_of(mapping, name, f"{field}[{place}]")
    return mapping.sparse_fields if _EVERY_VECTOR in names else frozenset(names)


def fill_vectors(target: HasBody, sparse: AnyMapping[str, SparseVector], names: Collection[str] | None = None) -> None:
    """Write vectors into a Document or a Hit: those of `names`, or all."""
    for name, vector in sparse.items():
        if names is None or name in names:
            target.sparse_vectors[name].CopyFrom(sparse_vector_to_proto(vector))
