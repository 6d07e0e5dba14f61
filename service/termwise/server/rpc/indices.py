"""The Indices service: convert, call, convert."""

# ruff: noqa: N802 - the methods bear the names of the RPCs

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from termwise.server.context import authorize
from termwise.server.rpc import paging
from termwise.server.rpc.context import request_context
from termwise.server.rpc.convert import document as documents
from termwise.server.rpc.convert import indices as convert
from termwise.v1 import indices_pb2 as pb
from termwise.v1 import indices_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import grpc.aio
    from google.protobuf.message import Message

    from termwise.server.indices.catalog import Indices
    from termwise.server.indices.state import OpenIndex
    from termwise.server.ingest.bulk import Bulk
    from termwise.server.ingest.writing import Writer
    from termwise.storage.types import StoredDocument

    Context = grpc.aio.ServicerContext[Any, Any]

Asked = TypeVar("Asked", bound="Message")
Read = TypeVar("Read")


class IndicesServicer(indices_pb2_grpc.IndicesServicer):
    """Indices and documents. Errors of the domain are raised; an interceptor makes them statuses."""

    def __init__(self, indices: Indices, writer: Writer, bulk: Bulk) -> None:
        """Serve these."""
        self._indices = indices
        self._writer = writer
        self._bulk = bulk

    async def CreateIndex(self, request: pb.CreateIndexRequest, grpc_context: Context) -> pb.CreateIndexResponse:
        """Make an index."""
        authorize(request_context(grpc_context), "indices.create", f"index/{request.index}")
        mapping = convert.mapping_from_proto(request.mapping)
        record = await self._indices.create(request.index, mapping, convert.settings_from_proto(request.settings))
        return pb.CreateIndexResponse(index=convert.index_to_proto(record))

    async def GetIndex(self, request: pb.GetIndexRequest, grpc_context: Context) -> pb.GetIndexResponse:
        """Give an index."""
        authorize(request_context(grpc_context), "indices.read", f"index/{request.index}")
        return pb.GetIndexResponse(index=convert.index_to_proto(await self._indices.get(request.index)))

    async def ListIndices(self, request: pb.ListIndicesRequest, grpc_context: Context) -> pb.ListIndicesResponse:
        """Give a page of indices."""
        authorize(request_context(grpc_context), "indices.read", "index/*")
        size = paging.page_size(request.page_size)
        after = paging.after_token(request.page_token, "ListIndices")
        found = await self._indices.list(after, size + 1)
        records, token = paging.page(found, size, "ListIndices", lambda record: record.name)
        return pb.ListIndicesResponse(
            indices=[convert.index_to_proto(record) for record in records], next_page_token=token
        )

    async def DeleteIndex(self, request: pb.DeleteIndexRequest, grpc_context: Context) -> pb.DeleteIndexResponse:
        """Delete an index."""
        authorize(request_context(grpc_context), "indices.delete", f"index/{request.index}")
        await self._indices.delete(request.index)
        return pb.DeleteIndexResponse()

    async def PutDocument(self, request: pb.PutDocumentRequest, grpc_context: Context) -> pb.PutDocumentResponse:
        """Write a document."""
        context = request_context(grpc_context)
        authorize(context, "documents.write", f"index/{request.index}")
        written = await self._writer.write(context, await _read(convert.put_from_proto, request))
        return pb.PutDocumentResponse(
            id=written.id, version=written.seq_no, result=convert.write_result(written.result)
        )

    async def GetDocument(self, request: pb.GetDocumentRequest, grpc_context: Context) -> pb.GetDocumentResponse:
        """Give a document."""
        authorize(request_context(grpc_context), "documents.read", f"index/{request.index}")
        documents.check_source_format(request.source_format)
        opened, found = await self._writer.get(request.index, request.id)
        if len(found.source) > convert.LARGE:
            return await asyncio.to_thread(_document_response, request, opened, found)
        return _document_response(request, opened, found)

    async def DeleteDocument(
        self, request: pb.DeleteDocumentRequest, grpc_context: Context
    ) -> pb.DeleteDocumentResponse:
        """Delete a document."""
        context = request_context(grpc_context)
        authorize(context, "documents.write", f"index/{request.index}")
        written = await self._writer.write(context, convert.delete_from_proto(request))
        return pb.DeleteDocumentResponse(
            id=written.id, version=written.seq_no, result=convert.write_result(written.result)
        )

    async def BatchIndex(self, request: pb.BatchIndexRequest, grpc_context: Context) -> pb.BatchIndexResponse:
        """Run a few operations."""
        context = request_context(grpc_context)
        authorize(context, "documents.write", f"index/{request.index}")
        operations = await _read(convert.batch_from_proto, request)
        if not all(operation.index for operation in request.operations):
            # The call fails as a whole where the index that operations rely on does not exist.
            await self._indices.open(request.index)
        results = await self._writer.batch(context, operations)
        return pb.BatchIndexResponse(
            results=[
                convert.result_to_proto(operation.operation_id, result)
                for operation, result in zip(request.operations, results, strict=True)
            ],
            failed_count=sum(result.written is None for result in results),
        )

    async def BulkIndex(
        self, request_iterator: AsyncIterator[pb.BulkIndexRequest], grpc_context: Context
    ) -> AsyncIterator[pb.BulkIndexResponse]:
        """Run a stream of operations."""
        context = request_context(grpc_context)
        authorize(context, "documents.write", "index/*")
        items = convert.bulk_from_proto(request_iterator)
        async with aclosing(self._bulk.run(context, items)) as acknowledgements:
            async for acknowledgement in acknowledgements:
                yield convert.acknowledgement_to_proto(acknowledgement)

    async def GetIndexStats(self, request: pb.GetIndexStatsRequest, grpc_context: Context) -> pb.GetIndexStatsResponse:
        """Count an index."""
        authorize(request_context(grpc_context), "indices.read", f"index/{request.index}")
        counts, fingerprints = await self._indices.statistics(request.index)
        return pb.GetIndexStatsResponse(stats=convert.statistics_to_proto(counts, fingerprints))


async def _read(read: Callable[[Asked], Read], request: Asked) -> Read:
    """Convert a request, a large one in a thread."""
    if request.ByteSize() > convert.LARGE:
        return await asyncio.to_thread(read, request)
    return read(request)


def _document_response(
    request: pb.GetDocumentRequest, opened: OpenIndex, found: StoredDocument
) -> pb.GetDocumentResponse:
    response = pb.GetDocumentResponse(version=found.seq_no)
    response.document.id = found.id
    documents.fill_body(response.document, found.source, request.source_format)
    names = documents.vector_names(request.include_sparse_vectors, opened.mapping)
    documents.fill_vectors(response.document, found.sparse, names)
    return response
