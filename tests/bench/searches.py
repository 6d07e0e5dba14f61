"""Searches as callers make them: one at a time, and many at once from a process that costs little.

Run by itself it is that process: `searches.py ADDRESS CALLERS SECONDS FILE` sends the requests in the file, each caller
one after the other, and prints how many were answered. Requests are bytes already and answers stay bytes, so that the
clients leave the processors to the server: about 0.25 ms a call, all of gRPC in it.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from termwise.v1 import document_pb2, search_pb2, search_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from termwise.v1 import sparse_vector_pb2

INDEX = "passages"
FIELD = "vector"
SIZE = 10


def by_text(text: str) -> search_pb2.SearchRequest:
    """Ask for the best ten passages, bodies as JSON, for a text that the service expands."""
    query = search_pb2.Query(text_expansion=search_pb2.TextExpansionQuery(field=FIELD, text=text))
    return _request(query)


def by_weights(vector: sparse_vector_pb2.SparseVector) -> search_pb2.SearchRequest:
    """Ask the same with the expansion given."""
    return _request(search_pb2.Query(sparse_vector=search_pb2.SparseVectorQuery(field=FIELD, vector=vector)))


def _request(query: search_pb2.Query) -> search_pb2.SearchRequest:
    source_format = document_pb2.SOURCE_FORMAT_JSON
    return search_pb2.SearchRequest(indices=[INDEX], size=SIZE, query=query, source_format=source_format)


def expansions(channel: grpc.Channel, texts: Sequence[str]) -> list[sparse_vector_pb2.SparseVector]:
    """Give the expansions of texts, as searches by them tell."""
    stub = search_pb2_grpc.SearchStub(channel)
    return [stub.Search(by_text(text)).expansions[0].vector for text in texts]


def one_by_one(channel: grpc.Channel, texts: Sequence[str], calls: int) -> dict[str, list[float]]:
    """Search text by text, one call at a time; give milliseconds of the caller, and of what the server tells."""
    stub = search_pb2_grpc.SearchStub(channel)
    times: dict[str, list[float]] = {"search": [], "search-encode": [], "search-retrieve": [], "search-rest": []}
    for turn in range(calls + 50):
        request = by_text(texts[turn % len(texts)])
        began = time.perf_counter()
        answer = stub.Search(request)
        whole = (time.perf_counter() - began) * 1e3
        if len(answer.hits) != SIZE:
            sys.exit(f"{len(answer.hits)} hits instead of {SIZE}")
        if turn >= 50:
            encode = answer.timings.encode.ToNanoseconds() / 1e6
            retrieve = answer.timings.retrieve.ToNanoseconds() / 1e6
            for name, value in zip(times, (whole, encode, retrieve, whole - encode - retrieve), strict=True):
                times[name].append(value)
    return times


def throughput(address: str, requests: Sequence[Any], callers: int, seconds: float, place: Path) -> float:
    """Give searches a second that so many callers get together."""
    file = place / "requests"
    file.write_bytes(pickle.dumps([request.SerializeToString() for request in requests]))
    command = [sys.executable, __file__, address, str(callers), str(seconds), str(file)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout)["per_s"])


async def _call(address: str, callers: int, seconds: float, requests: list[bytes]) -> float:
    async with grpc.aio.insecure_channel(address) as channel:
        search = channel.unary_unary("/termwise.v1.Search/Search")
        answered = 0
        until = time.perf_counter() + seconds

        async def caller(place: int) -> None:
            nonlocal answered
            while time.perf_counter() < until:
                await search(requests[place % len(requests)])
                place += 1
                answered += 1

        began = time.perf_counter()
        await asyncio.gather(*(caller(37 * number) for number in range(callers)))
        return answered / (time.perf_counter() - began)


def _main(address: str, callers: str, seconds: str, file: str) -> None:
    try:
        from uvloop import run  # noqa: PLC0415 - a client may lack it
    except ImportError:
        run = asyncio.run
    requests = pickle.loads(Path(file).read_bytes())  # noqa: S301 - this program wrote it
    run(_call(address, int(callers), 0.5, requests))
    print(json.dumps({"per_s": run(_call(address, int(callers), float(seconds), requests))}))


def ratio(address: str, requests: Sequence[Any], seconds: float, rounds: int, place: Path) -> tuple[float, float]:
    """Give the throughput of one caller and of 16, which take turns; medians of the rounds."""
    one, many = [], []
    for _ in range(rounds):
        one.append(throughput(address, requests, 1, seconds, place))
        many.append(throughput(address, requests, 16, seconds, place))
    return statistics.median(one), statistics.median(many)


def ranked_by_threads(
    data: Path, vectors: Sequence[sparse_vector_pb2.SparseVector], seconds: float
) -> tuple[float, float]:
    """Give the rankings a second that one thread of this process gets, and two together, in the index of a data folder.

    The two take turns, four times. The server that wrote the folder must have ended.
    """
    # Imported late: the callers that make the load need nothing of this.
    from termwise.storage.registry import find_backend  # noqa: PLC0415
    from termwise.storage.types import Sparse, sparse_vector  # noqa: PLC0415

    leaves = [Sparse(FIELD, sparse_vector(each.tokens, each.weights)) for each in vectors]
    store = find_backend("tantivy")(data / "indices" / "tantivy")
    try:
        index = store.open(store.list()[0])

        def rank(place: int, until: float) -> int:
            ranked = 0
            while time.perf_counter() < until:
                index.reader().rank(leaves[(place + ranked) % len(leaves)], SIZE, count=10_000)
                ranked += 1
            return ranked

        def together(threads: int) -> float:
            until = time.perf_counter() + seconds
            with ThreadPoolExecutor(threads) as pool:
                return sum(pool.map(rank, [997 * place for place in range(threads)], [until] * threads)) / seconds

        together(2)
        pairs = [(together(1), together(2)) for _ in range(4)]
    finally:
        store.close()
    return statistics.median(one for one, _ in pairs), statistics.median(two for _, two in pairs)


if __name__ == "__main__":
    _main(*sys.argv[1:])
