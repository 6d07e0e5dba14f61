"""Messages to and from the client's own values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from termwise.client.errors import error_from_status
from termwise.client.parsing import invalid, json_text, parse, utf8
from termwise.client.types import (
    Create,
    Delete,
    Document,
    JsonObject,
    Operation,
    Put,
    SparseVector,
    VectorLike,
    WriteResult,
)
from termwise.v1 import document_pb2, indices_pb2, sparse_vector_pb2

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

_RESULTS = {
    indices_pb2.RESULT_UNSPECIFIED: "",
    indices_pb2.RESULT_CREATED: "created",
    indices_pb2.RESULT_UPDATED: "updated",
    indices_pb2.RESULT_DELETED: "deleted",
}


def seconds(duration: Duration) -> float:
    """Give a duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def vector_from(message: sparse_vector_pb2.SparseVector) -> SparseVector:
    """Read a sparse vector."""
    return SparseVector(tuple(message.tokens), tuple(message.weights))


def vector_message(vector: VectorLike, path: str) -> sparse_vector_pb2.SparseVector:
    """Write a sparse vector. The server checks tokens and weights; here only their types are."""
    try:
        value = SparseVector.of(vector)
        return sparse_vector_pb2.SparseVector(tokens=value.tokens, weights=value.weights)
    except (AttributeError, TypeError, ValueError) as error:
        raise invalid(path, str(error)) from error


def document_message(document: Document | JsonObject, path: str) -> document_pb2.Document:
    """Write a document; a dict is one in proto3 JSON form: `{"id": "1", "source": {...}}`.

    Bodies travel as JSON text, so integers keep all their digits. Raises InvalidArgumentError.
    """
    if isinstance(document, Mapping):
        rest = {key: value for key, value in document.items() if key != "source"}
        message = parse(rest, document_pb2.Document, path)
        if "source" in document:
            message.source_json = json_text(document["source"], f"{path}.source")
        return message
    if not isinstance(document, Document):
        raise invalid(path, f"expected a Document or a dict, got {type(document).__name__}")
    message = document_pb2.Document(
        id=utf8(document.id, f"{path}.id"), source_json=json_text(document.source, f"{path}.source")
    )
    for field, vector in document.sparse_vectors.items():
        message.sparse_vectors[field].CopyFrom(vector_message(vector, f'{path}.sparse_vectors["{field}"]'))
    return message


def document_from(message: document_pb2.Document, version: int = 0) -> Document:
    """Read a document that has its body as JSON text, or none."""
    return Document(
        source=json.loads(message.source_json or "{}"),
        id=message.id,
        sparse_vectors={field: vector_from(vector) for field, vector in message.sparse_vectors.items()},
        version=version,
    )


def operation_message(operation: Operation | Document | JsonObject, path: str) -> indices_pb2.IndexOperation:
    """Write one operation; a document or a dict is put. Raises InvalidArgumentError."""
    match operation:
        case Put(document, pipeline, if_version):
            put = indices_pb2.IndexOperation.Put(document=document_message(document, path))
            return indices_pb2.IndexOperation(put=put, pipeline=pipeline, if_version=if_version)
        case Create(document, pipeline):
            create = indices_pb2.IndexOperation.Create(document=document_message(document, path))
            return indices_pb2.IndexOperation(create=create, pipeline=pipeline)
        case Delete(identifier, if_version):
            delete = indices_pb2.IndexOperation.Delete(id=identifier)
            return indices_pb2.IndexOperation(delete=delete, if_version=if_version)
        case _:
            return operation_message(Put(operation), path)


def is_repeatable(operation: indices_pb2.IndexOperation) -> bool:
    """Whether an operation may run twice: it puts under an explicit id, whatever stands there."""
    return bool(operation.WhichOneof("kind") == "put" and operation.put.document.id) and not operation.HasField(
        "if_version"
    )


def write_result(message: Any) -> WriteResult:
    """Read the answer of any write; an operation's own error stands in it."""
    failed = message.DESCRIPTOR.fields_by_name.get("error") is not None and message.HasField("error")
    return WriteResult(
        id=message.id,
        version=message.version,
        result=_RESULTS.get(message.result, ""),
        error=error_from_status(message.error) if failed else None,
    )
