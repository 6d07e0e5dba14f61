"""Termwise as a caller meets it: a server in a process of its own, weights given, `Search` over loopback.

The time of a call holds both processes and the way between them, protobuf included, and counting matches as the service
does by default. Requests are made beforehand.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import serving

from peers.base import Answer, Built, Lane, Truth, size_of
from termwise.v1 import document_pb2, indices_pb2, indices_pb2_grpc, search_pb2, search_pb2_grpc, sparse_vector_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vectors import Collection, Query

INDEX = "bench"


class TermwiseGrpc:
    """Search through the service."""

    name = "termwise grpc"

    def build(self, collection: Collection, folder: Path) -> Built:
        """Index every document by one stream; seconds are those of the whole stream."""
        with serving.server(folder) as (address, _), grpc.insecure_channel(address, serving.OPTIONS) as channel:
            stub = indices_pb2_grpc.IndicesStub(channel)
            field = indices_pb2.FieldMapping(sparse_vector=indices_pb2.SparseVectorField())
            stub.CreateIndex(indices_pb2.CreateIndexRequest(index=INDEX, mapping={"properties": {"vector": field}}))
            began = time.perf_counter()
            for answer in stub.BulkIndex(self._requests(collection)):
                if answer.HasField("error"):
                    raise RuntimeError(f"document {answer.id}: {answer.error.message}")
            seconds = time.perf_counter() - began
        return Built(seconds, size_of(folder / "data" / "indices"))

    def open(self, collection: Collection, folder: Path) -> None:
        """Start the server on the data."""
        self._words = collection.vocabulary
        self._server = serving.server(folder)
        self._channel = grpc.insecure_channel(self._server.__enter__()[0], serving.OPTIONS)

    def lanes(self, queries: Sequence[Query], k: int, truth: Truth) -> list[Lane]:
        """Give one lane."""
        del truth
        requests = []
        for tokens, weights in queries:
            vector = sparse_vector_pb2.SparseVector(tokens=[self._words[t] for t in tokens], weights=weights)
            query = search_pb2.Query(sparse_vector=search_pb2.SparseVectorQuery(field="vector", vector=vector))
            requests.append(search_pb2.SearchRequest(indices=[INDEX], query=query, size=k))
        search = search_pb2_grpc.SearchStub(self._channel).Search
        return [Lane("termwise grpc", requests, search, _read, "weights given, loopback", exact=True)]

    def memory_bytes(self) -> int:
        """Say nothing: the index is that of `termwise`, in another process."""
        return 0

    def close(self) -> None:
        """Stop the server."""
        self._channel.close()
        self._server.__exit__(None, None, None)

    def _requests(self, collection: Collection) -> Iterator[indices_pb2.BulkIndexRequest]:
        words, matrix = np.array(collection.vocabulary, dtype=object), collection.documents
        yield indices_pb2.BulkIndexRequest(defaults=indices_pb2.BulkIndexRequest.Defaults(index=INDEX))
        for row in range(matrix.shape[0]):
            part = slice(matrix.indptr[row], matrix.indptr[row + 1])
            vector = sparse_vector_pb2.SparseVector(tokens=words[matrix.indices[part]], weights=matrix.data[part])
            document = document_pb2.Document(id=str(row), sparse_vectors={"vector": vector})
            put = indices_pb2.IndexOperation.Put(document=document)
            yield indices_pb2.BulkIndexRequest(operation=indices_pb2.IndexOperation(put=put))


def _read(answer: Any) -> Answer:
    return np.array([int(hit.id) for hit in answer.hits], np.int64), np.array([hit.score for hit in answer.hits])
