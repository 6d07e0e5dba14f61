"""Sparse search through gRPC, weights given, beside scipy on the same vectors; every answer is compared with scipy's.

`make bench-search` (ARGS="--format json --documents 100000"). One object a line:
{"engine", "documents", "queries", "k", "p50_ms", "p95_ms", "recall", "vectors"}.

Ours is timed as a caller sees it: a call over loopback to a server in a process of its own. scipy is timed in this
process: a product of the matrix by column, then a partial sort; its matrix is made beforehand, and it has no service
around it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

import vectors
from termwise.v1 import (
    document_pb2,
    indices_pb2,
    indices_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    sparse_vector_pb2,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vectors import Collection

INDEX = "bench"
OPTIONS = [("grpc.max_receive_message_length", 1 << 25), ("grpc.max_send_message_length", 1 << 25)]


@contextmanager
def server(data: Path) -> Iterator[grpc.Channel]:
    """Run a server on a free loopback port for as long as the block lasts."""
    port_file = data / "port"
    command = [sys.executable, "-m", "termwise.server", "--data", str(data / "data"), "--host", "127.0.0.1"]
    command += ["--port", "0", "--port-file", str(port_file)]
    with (data / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not port_file.exists() or not port_file.read_text().strip():
                if process.poll() is not None:
                    sys.exit((data / "log").read_text())
                time.sleep(0.05)
            with grpc.insecure_channel(f"127.0.0.1:{port_file.read_text().strip()}", OPTIONS) as channel:
                grpc.channel_ready_future(channel).result(timeout=60)
                yield channel
        finally:
            process.terminate()
            process.wait(timeout=60)


def index(channel: grpc.Channel, collection: Collection) -> float:
    """Index every document by one stream; give the seconds that it took."""
    stub = indices_pb2_grpc.IndicesStub(channel)
    mapping = indices_pb2.Mapping(
        properties={"vector": indices_pb2.FieldMapping(sparse_vector=indices_pb2.SparseVectorField())}
    )
    stub.CreateIndex(indices_pb2.CreateIndexRequest(index=INDEX, mapping=mapping))
    words, matrix = np.array(collection.vocabulary, dtype=object), collection.documents

    def requests() -> Iterator[indices_pb2.BulkIndexRequest]:
        yield indices_pb2.BulkIndexRequest(defaults=indices_pb2.BulkIndexRequest.Defaults(index=INDEX))
        for row in range(matrix.shape[0]):
            part = slice(matrix.indptr[row], matrix.indptr[row + 1])
            vector = sparse_vector_pb2.SparseVector(tokens=words[matrix.indices[part]], weights=matrix.data[part])
            document = document_pb2.Document(id=str(row), sparse_vectors={"vector": vector})
            put = indices_pb2.IndexOperation.Put(document=document)
            yield indices_pb2.BulkIndexRequest(operation=indices_pb2.IndexOperation(put=put))

    began = time.perf_counter()
    for number, answer in enumerate(stub.BulkIndex(requests())):
        if answer.HasField("error"):
            sys.exit(f"document {answer.id}: {answer.error.message}")
        if number % 10_000 == 0:
            print(f"  indexed {number:,}", file=sys.stderr)
    return time.perf_counter() - began


def compare(channel: grpc.Channel, collection: Collection, k: int, rounds: int) -> list[dict[str, Any]]:
    """Run each query by both, in turn; give a row an engine. Exits where an answer is not scipy's."""
    stub = search_pb2_grpc.SearchStub(channel)
    columns = collection.documents.tocsc()
    times: dict[str, list[float]] = {"termwise grpc": [], "scipy": []}
    for tokens, weights in collection.queries[:rounds]:
        vector = sparse_vector_pb2.SparseVector(tokens=[collection.vocabulary[t] for t in tokens], weights=weights)
        query = search_pb2.Query(sparse_vector=search_pb2.SparseVectorQuery(field="vector", vector=vector))
        request = search_pb2.SearchRequest(indices=[INDEX], query=query, size=k)
        began = time.perf_counter()
        answer = stub.Search(request)
        times["termwise grpc"].append(time.perf_counter() - began)
        began = time.perf_counter()
        scores = columns[:, tokens] @ weights
        best = np.argpartition(-scores, k)[:k]
        best = best[np.lexsort((best, -scores[best]))]
        times["scipy"].append(time.perf_counter() - began)
        check(answer, scores, k)
    size = collection.documents.shape[0]
    return [
        {
            "engine": engine,
            "documents": size,
            "queries": "30 tokens",
            "k": k,
            "p50_ms": round(statistics.median(values) * 1e3, 3),
            "p95_ms": round(float(np.quantile(values, 0.95)) * 1e3, 3),
            "recall": 1.0,
            "vectors": collection.label,
        }
        for engine, values in times.items()
    ]


def check(answer: search_pb2.SearchResponse, scores: np.ndarray, k: int) -> None:
    """Exit where the hits are not the best documents, or their scores not the dot products, up to float32 rounding."""
    given = np.array([hit.score for hit in answer.hits])
    true = np.sort(scores)[::-1][:k]
    own = scores[[int(hit.id) for hit in answer.hits]]
    if len(given) != k or not np.allclose(given, true, rtol=1e-5) or not np.allclose(given, own, rtol=1e-5):
        sys.exit(f"not exact: {given} instead of {true}")


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--format", choices=["table", "json"], default="table")
    parser.add_argument("--synthetic", action="store_true", help="do not look for the real collection")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as channel:
        collection = vectors.load(arguments.documents, real=not arguments.synthetic)
        seconds = index(channel, collection)
        compare(channel, collection, arguments.k, 20)  # warm
        rows = compare(channel, collection, arguments.k, arguments.queries)
    rows.append(
        {
            "engine": "termwise bulk",
            "documents": arguments.documents,
            "documents_per_s": round(arguments.documents / seconds),
        }
    )
    for row in rows:
        print(json.dumps(row) if arguments.format == "json" else "  ".join(f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
