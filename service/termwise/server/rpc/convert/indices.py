"""Indices, mappings and writes between protobuf and the domain."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from termwise.server.errors import InvalidArgumentError, TermwiseError, invalid_field
from termwise.server.indices.mapping import FieldMapping, Mapping
from termwise.server.indices.state import IndexSettings
from termwise.server.ingest.bulk import Acknowledgement, BulkItem
from termwise.server.ingest.writing import (
    DeleteDocument,
    PutDocument,
    Request,
    WriteFields,
    WriteOperation,
    WriteResult,
)
from termwise.server.metadata.records import IndexRecord, IndexState
from termwise.server.rpc.convert.document import document_from_proto
from termwise.server.rpc.status import to_status
from termwise.storage.types import FieldKind, IndexStatistics, Result
from termwise.v1 import indices_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from collections.abc import Mapping as AnyMapping

LARGE: Final = 64 * 1024
"""Messages beyond this many bytes are converted in a thread: it may take longer than the event loop can be without."""

MAX_OPERATIONS: Final = 1_000
"""Most operations of a BatchIndex."""

_STATES: Final = {
    IndexState.CREATING: pb.Index.STATE_CREATING,
    IndexState.READY: pb.Index.STATE_READY,
    IndexState.DELETING: pb.Index.STATE_DELETING,
}

_RESULTS: Final = {
    Result.CREATED: pb.RESULT_CREATED,
    Result.UPDATED: pb.RESULT_UPDATED,
    Result.DELETED: pb.RESULT_DELETED,
}


def mapping_from_proto(message: pb.Mapping, field: str = "mapping") -> Mapping:
    """Read a mapping; whether it can work is checked where the index is made.

    Raises:
        InvalidArgumentError: a field without a kind, or a value that there is not.

    """
    if message.dynamic not in pb.Mapping.Dynamic.values():
        raise invalid_field(f"{field}.dynamic", f"{message.dynamic} is no value of it.")
    return Mapping(
        {
            name: _field_from_proto(each, f'{field}.properties["{name}"]')
            for name, each in sorted(message.properties.items())
        },
        strict=message.dynamic == pb.Mapping.DYNAMIC_STRICT,
    )


def _field_from_proto(message: pb.FieldMapping, field: str) -> FieldMapping:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise invalid_field(field, "It has no kind; give one, such as text or keyword.")
    return FieldMapping(
        kind=FieldKind(kind),
        analyzer=message.text.analyzer or "standard",
        model_id=message.sparse_vector.model_id,
        search_deployment_id=message.sparse_vector.search_deployment_id,
        fields={
            name: _field_from_proto(each, f'{field}.fields["{name}"]') for name, each in sorted(message.fields.items())
        },
    )


def mapping_to_proto(mapping: Mapping) -> pb.Mapping:
    """Write a mapping."""
    message = pb.Mapping(dynamic=pb.Mapping.DYNAMIC_STRICT if mapping.strict else pb.Mapping.DYNAMIC_FALSE)
    for name, each in mapping.properties.items():
        _fill_field(message.properties[name], each)
    return message


def _fill_field(message: pb.FieldMapping, each: FieldMapping) -> None:
    # The names of the kinds are those of the oneof.
    kind = getattr(message, each.kind.value)
    kind.SetInParent()
    if each.kind is FieldKind.TEXT:
        kind.analyzer = each.analyzer
    if each.kind is FieldKind.SPARSE_VECTOR:
        kind.model_id = each.model_id
        kind.search_deployment_id = each.search_deployment_id
    for name, sub in each.fields.items():
        _fill_field(message.fields[name], sub)


def settings_from_proto(message: pb.IndexSettings) -> IndexSettings:
    """Read the settings of an index."""
    return IndexSettings(default_pipeline=message.default_pipeline, storage=message.storage)


def index_to_proto(record: IndexRecord) -> pb.Index:
    """Write an index."""
    message = pb.Index(
        name=record.name,
        mapping=mapping_to_proto(Mapping.from_json(record.mapping)),
        settings=pb.IndexSettings(
            default_pipeline=record.settings.get("default_pipeline", ""), storage=record.settings.get("storage", "")
        ),
        state=_STATES[record.state],
    )
    message.create_time.FromDatetime(record.create_time)
    return message


def statistics_to_proto(counts: IndexStatistics, fingerprints: AnyMapping[str, str]) -> pb.IndexStats:
    """Write the counts of an index."""
    message = pb.IndexStats(
        document_count=counts.document_count, size_bytes=counts.size_bytes, last_version=counts.last_seq_no
    )
    for name, each in counts.sparse_fields.items():
        message.sparse_fields[name].CopyFrom(
            pb.SparseFieldStats(
                document_count=each.document_count,
                token_count=each.token_count,
                posting_count=each.posting_count,
                fingerprint=fingerprints.get(name, ""),
            )
        )
    return message


def put_from_proto(request: pb.PutDocumentRequest) -> WriteOperation:
    """Read a PutDocument.

    Raises:
        InvalidArgumentError: a value that cannot be.

    """
    if request.op_type not in pb.PutDocumentRequest.OpType.values():
        raise invalid_field("op_type", f"{request.op_type} is no value of it.")
    return WriteOperation(
        request.index,
        PutDocument(
            document_from_proto(request.document, "document"),
            create=request.op_type == pb.PutDocumentRequest.OP_TYPE_CREATE,
        ),
        pipeline=request.pipeline,
        if_version=request.if_version if request.HasField("if_version") else None,
    )


def delete_from_proto(request: pb.DeleteDocumentRequest) -> WriteOperation:
    """Read a DeleteDocument."""
    return WriteOperation(
        request.index,
        DeleteDocument(request.id),
        if_version=request.if_version if request.HasField("if_version") else None,
    )


def operation_from_proto(
    message: pb.IndexOperation, field: str, defaults: pb.BulkIndexRequest.Defaults, defaults_field: str
) -> Request:
    """Read an operation that stands at `field` of a request, or give its result where it cannot be run.

    What it leaves empty comes from `defaults`, which stand at `defaults_field` (empty for the request itself).
    """
    prefix = f"{defaults_field}." if defaults_field else ""
    try:
        return WriteOperation(
            message.index or defaults.index,
            _action(message, field),
            pipeline=message.pipeline or defaults.pipeline,
            if_version=message.if_version if message.HasField("if_version") else None,
            fields=WriteFields(
                index=f"{field}.index" if message.index or not defaults.index else f"{prefix}index",
                pipeline=f"{field}.pipeline" if message.pipeline else f"{prefix}pipeline",
                if_version=f"{field}.if_version",
            ),
        )
    except TermwiseError as error:
        kind = message.WhichOneof("kind")
        document = message.put.document if kind == "put" else message.create.document
        return WriteResult(message.delete.id if kind == "delete" else document.id, error=error)


def _action(message: pb.IndexOperation, field: str) -> PutDocument | DeleteDocument:
    kind = message.WhichOneof("kind")
    if kind == "put":
        return PutDocument(document_from_proto(message.put.document, f"{field}.put.document"))
    if kind == "create":
        return PutDocument(document_from_proto(message.create.document, f"{field}.create.document"), create=True)
    if kind == "delete":
        return DeleteDocument(message.delete.id, f"{field}.delete.id")
    raise invalid_field(field, "It says neither put, create nor delete; give one of them.")


def batch_from_proto(request: pb.BatchIndexRequest) -> list[Request]:
    """Read a BatchIndex.

    Raises:
        InvalidArgumentError: there are no operations or too many.

    """
    if not request.operations:
        raise invalid_field("operations", "It is empty; give 1 to 1,000 operations.")
    if len(request.operations) > MAX_OPERATIONS:
        raise invalid_field(
            "operations", f"There are {len(request.operations):,}; give at most {MAX_OPERATIONS:,}, or use BulkIndex."
        )
    defaults = pb.BulkIndexRequest.Defaults(index=request.index, pipeline=request.pipeline)
    return [
        operation_from_proto(each, f"operations[{place}]", defaults, "")
        for place, each in enumerate(request.operations)
    ]


async def bulk_from_proto(requests: AsyncIterator[pb.BulkIndexRequest]) -> AsyncIterator[BulkItem]:
    """Read a stream of operations; defaults hold for those that follow.

    Raises:
        InvalidArgumentError: a message that says nothing.

    """
    defaults = pb.BulkIndexRequest.Defaults()
    async for request in requests:
        kind = request.WhichOneof("kind")
        if kind == "defaults":
            defaults = request.defaults
        elif kind == "operation":
            size = request.ByteSize()
            read = partial(operation_from_proto, request.operation, "operation", defaults, "defaults")
            operation = await asyncio.to_thread(read) if size > LARGE else read()
            yield BulkItem(request.operation.operation_id, operation, size)
        else:
            raise InvalidArgumentError(
                "A message of the stream has neither defaults nor an operation; send one of them.",
                reason="EMPTY_MESSAGE",
            )


def result_to_proto(operation_id: str, result: WriteResult) -> pb.IndexOperationResult:
    """Write what became of an operation of a batch."""
    message = pb.IndexOperationResult(operation_id=operation_id, id=result.id)
    _fill_result(message, result)
    return message


def acknowledgement_to_proto(acknowledgement: Acknowledgement) -> pb.BulkIndexResponse:
    """Write what became of an operation of a stream."""
    message = pb.BulkIndexResponse(operation_id=acknowledgement.operation_id, id=acknowledgement.result.id)
    _fill_result(message, acknowledgement.result)
    return message


def _fill_result(message: pb.IndexOperationResult | pb.BulkIndexResponse, result: WriteResult) -> None:
    if result.written is not None:
        message.version = result.written.seq_no
        message.result = write_result(result.written.result)
    elif result.error is not None:
        message.error.CopyFrom(to_status(result.error))


def write_result(result: Result) -> pb.Result.ValueType:
    """Write what a write did."""
    return _RESULTS[result]
