"""Calls of the Indices service; the bulk stream is in `bulk`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from termwise.client.calls import LIFECYCLE_TIMEOUT, Paged, Unary
from termwise.client.messages import document_from, document_message, is_repeatable, operation_message, write_result
from termwise.client.parsing import parse
from termwise.client.types import Document, JsonObject, MessageLike, Operation, VectorLike, WriteResult
from termwise.v1 import document_pb2
from termwise.v1 import indices_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def create_index(
    index: str,
    *,
    mapping: MessageLike | None = None,
    settings: MessageLike | None = None,
    timeout: float | None = None,
) -> Unary[pb.Index]:
    """Make an index. Raises AlreadyExistsError where the name is taken. Never retried.

    Args:
        index: Its name.
        mapping: A Mapping, such as `{"properties": {"title": {"text": {"analyzer": "english"}}}}`.
        settings: IndexSettings, such as `{"default_pipeline": "expand"}`.
        timeout: Seconds; by default 300.
    """
    request = pb.CreateIndexRequest(index=index)
    if mapping is not None:
        request.mapping.CopyFrom(parse(mapping, pb.Mapping, "mapping"))
    if settings is not None:
        request.settings.CopyFrom(parse(settings, pb.IndexSettings, "settings"))
    return Unary(
        "Indices/CreateIndex",
        request,
        lambda answer: answer.index,
        idempotent=False,
        timeout=timeout or LIFECYCLE_TIMEOUT,
    )


def get_index(index: str, *, timeout: float | None = None) -> Unary[pb.Index]:
    """Give one index. Raises NotFoundError."""
    return Unary(
        "Indices/GetIndex",
        pb.GetIndexRequest(index=index),
        lambda answer: answer.index,
        idempotent=True,
        timeout=timeout,
    )


def list_indices(*, page_size: int = 0, timeout: float | None = None) -> Paged[list[pb.Index]]:
    """Give all indices by name, fetched page by page (`page_size` 0: the server's default)."""
    return Paged(
        "Indices/ListIndices",
        pb.ListIndicesRequest(page_size=page_size),
        lambda pages: [index for page in pages for index in page.indices],
        timeout=timeout,
    )


def delete_index(index: str, *, timeout: float | None = None) -> Unary[None]:
    """Delete an index and its documents. Never retried."""
    return Unary(
        "Indices/DeleteIndex",
        pb.DeleteIndexRequest(index=index),
        lambda _: None,
        idempotent=False,
        timeout=timeout or LIFECYCLE_TIMEOUT,
    )


def get_index_stats(index: str, *, timeout: float | None = None) -> Unary[pb.IndexStats]:
    """Count an index: documents, bytes, tokens."""
    return Unary(
        "Indices/GetIndexStats",
        pb.GetIndexStatsRequest(index=index),
        lambda answer: answer.stats,
        idempotent=True,
        timeout=timeout,
    )


def put_document(
    index: str,
    source: JsonObject | str,
    *,
    id: str = "",  # noqa: A002 - the field's name in the protos
    sparse_vectors: Mapping[str, VectorLike] | None = None,
    pipeline: str = "",
    create: bool = False,
    if_version: int | None = None,
    timeout: float | None = None,
) -> Unary[WriteResult]:
    """Write one document; when this returns it is durable, and the next search finds it.

    Retried only where it has an id and neither `create` nor `if_version` is set: then a second write does no harm.

    Args:
        index: The index.
        source: The JSON object; a string is JSON text, sent and stored as it is.
        id: The document's id; empty: the server makes one up.
        sparse_vectors: Sparse vectors by field.
        pipeline: The pipeline; empty: the index's default; "_none": none.
        create: The document must not exist; raises AlreadyExistsError.
        if_version: Write only over this version; 0: only where there is none. Raises AbortedError.
        timeout: Seconds; by default the client's.
    """
    op_type = pb.PutDocumentRequest.OP_TYPE_CREATE if create else pb.PutDocumentRequest.OP_TYPE_INDEX
    return Unary(
        "Indices/PutDocument",
        pb.PutDocumentRequest(
            index=index,
            document=document_message(Document(source, id, sparse_vectors or {}), "document"),
            pipeline=pipeline,
            op_type=op_type,
            if_version=if_version,
        ),
        write_result,
        idempotent=bool(id) and not create and if_version is None,
        timeout=timeout,
    )


def get_document(
    index: str,
    id: str,  # noqa: A002 - the field's name in the protos
    *,
    include_sparse_vectors: Iterable[str] = (),
    timeout: float | None = None,
) -> Unary[Document]:
    """Give one document. Raises NotFoundError. `include_sparse_vectors`: fields whose vectors to give; "*": all."""
    request = pb.GetDocumentRequest(
        index=index,
        id=id,
        source_format=document_pb2.SOURCE_FORMAT_JSON,
        include_sparse_vectors=include_sparse_vectors,
    )
    return Unary(
        "Indices/GetDocument",
        request,
        lambda answer: document_from(answer.document, answer.version),
        idempotent=True,
        timeout=timeout,
    )


def delete_document(
    index: str,
    id: str,  # noqa: A002 - the field's name in the protos
    *,
    if_version: int | None = None,
    timeout: float | None = None,
) -> Unary[WriteResult]:
    """Delete one document. Raises NotFoundError where there is none. Never retried."""
    return Unary(
        "Indices/DeleteDocument",
        pb.DeleteDocumentRequest(index=index, id=id, if_version=if_version),
        write_result,
        idempotent=False,
        timeout=timeout,
    )


def batch_index(
    index: str,
    operations: Iterable[Operation | Document | JsonObject],
    *,
    pipeline: str = "",
    timeout: float | None = None,
) -> Unary[list[WriteResult]]:
    """Run up to 1,000 writes in one call and give one result each, in order. For more, use `bulk`.

    A write that fails does not touch the others, and raises nothing: look at each result's `ok`.

    Args:
        index: The index.
        operations: Put, Create and Delete; a document or a dict `{"id": ..., "source": {...}}` is put.
        pipeline: The pipeline of writes that name none; empty: the index's default; "_none": none.
        timeout: Seconds; by default the client's.
    """
    messages = [operation_message(each, f"operations[{place}]") for place, each in enumerate(operations)]
    return Unary(
        "Indices/BatchIndex",
        pb.BatchIndexRequest(index=index, pipeline=pipeline, operations=messages),
        lambda answer: [write_result(each) for each in answer.results],
        idempotent=all(is_repeatable(each) for each in messages),
        timeout=timeout,
    )
