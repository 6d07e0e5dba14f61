"""What the benchmarks of the service share: a server in a process of its own, the default model, and a full index."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from termwise.v1 import (
    document_pb2,
    indices_pb2,
    indices_pb2_grpc,
    sparse_vector_pb2,
    trained_models_pb2,
    trained_models_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import grpc

MODEL = ".splade_tiny"
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TERMWISE_BENCH_DATA", ROOT.parent / "shared" / "data"))
OPTIONS = [("grpc.max_receive_message_length", 1 << 25), ("grpc.max_send_message_length", 1 << 25)]


@contextmanager
def server(place: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a server on a free loopback port for as long as the block lasts; its data stay in `place`/data."""
    port_file = place / "port"
    port_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "termwise.server", "--data", str(place / "data"), "--port", "0", *flags]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--port-file", str(port_file)], stdout=log, stderr=log)
        try:
            while not port_file.exists():
                if process.poll() is not None:
                    sys.exit((place / "log").read_text())
                time.sleep(0.005)
            yield f"127.0.0.1:{int(port_file.read_text())}", process
        finally:
            process.terminate()
            process.wait(timeout=60)


def settle(process: subprocess.Popen[bytes], longest: float = 60.0) -> None:
    """Wait until a server has nothing left to do after writes: merging segments and sealing tiles take a while."""
    until = time.perf_counter() + longest
    calm = 0
    while calm < 3 and time.perf_counter() < until:
        before = _cpu_seconds(process.pid)
        time.sleep(1)
        calm = calm + 1 if _cpu_seconds(process.pid) - before < 0.05 else 0


def _cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def deploy(channel: grpc.Channel, *deployments: str, allocations: int = 1) -> str:
    """Download the default model where it is not there yet, and deploy it without a cache; give its precision.

    Benchmarks send the same texts again and again, and what they cost shall be seen.
    """
    stub = trained_models_pb2_grpc.TrainedModelsStub(channel)
    put = trained_models_pb2.PutTrainedModelRequest(
        model_id=MODEL, wait_for=trained_models_pb2.PutTrainedModelRequest.WAIT_FOR_READY
    )
    model = stub.PutTrainedModel(put, timeout=600).trained_model
    if model.state != trained_models_pb2.TrainedModel.STATE_READY:
        sys.exit(f"the default model could not be had: {model.error}")
    precision = ""
    for name in deployments:
        request = trained_models_pb2.StartDeploymentRequest(
            model_id=MODEL, deployment_id=name, number_of_allocations=allocations, cache_size_bytes=0
        )
        precision = str(stub.StartDeployment(request, timeout=600).deployment.precision)
    return precision


def passages(count: int) -> list[dict[str, str]]:
    """Give real passages as bodies, `{"title", "text"}`; where the collection is not at hand, made-up ones."""
    file = DATA / "wiki-100k" / "corpus.jsonl.gz"
    if not file.exists():
        words = [f"word{n % 977} of{n % 13} the sea" for n in range(4_000)]
        return [{"title": f"{n}", "text": " ".join(words[n % 3_900 : n % 3_900 + 30])} for n in range(count)]
    with gzip.open(file, "rt") as lines:
        return [{"title": row["title"], "text": row["text"]} for row in map(json.loads, islice(lines, count))]


def titles(count: int) -> list[str]:
    """Give real search titles as queries, evenly drawn; else made-up ones."""
    file = DATA / "wiki-100k" / "queries.csv"
    if not file.exists():
        return [f"word{n * 7 % 977} sea of{n % 13}" for n in range(count)]
    lines = [line.split(",", 1)[-1].strip().strip('"') for line in file.read_text().splitlines()[1:]]
    return lines[:: max(1, len(lines) // count)][:count]


def create(channel: grpc.Channel, index: str, deployment: str = "", pipeline: str = "") -> None:
    """Make an index of passages: two text fields, and a sparse vector field `vector` that searches by `deployment`."""
    text = indices_pb2.FieldMapping(text=indices_pb2.TextField())
    vector = indices_pb2.FieldMapping(sparse_vector=indices_pb2.SparseVectorField(search_deployment_id=deployment))
    indices_pb2_grpc.IndicesStub(channel).CreateIndex(
        indices_pb2.CreateIndexRequest(
            index=index,
            mapping=indices_pb2.Mapping(properties={"title": text, "text": text, "vector": vector}),
            settings=indices_pb2.IndexSettings(default_pipeline=pipeline),
        )
    )


def bulk(channel: grpc.Channel, index: str, documents: Iterable[document_pb2.Document]) -> float:
    """Write documents over one stream, and give the seconds that it took; exits where one is refused."""

    def requests() -> Iterator[indices_pb2.BulkIndexRequest]:
        yield indices_pb2.BulkIndexRequest(defaults=indices_pb2.BulkIndexRequest.Defaults(index=index))
        for document in documents:
            put = indices_pb2.IndexOperation.Put(document=document)
            yield indices_pb2.BulkIndexRequest(operation=indices_pb2.IndexOperation(put=put))

    began = time.perf_counter()
    for answer in indices_pb2_grpc.IndicesStub(channel).BulkIndex(requests()):
        if answer.HasField("error"):
            sys.exit(f"document {answer.id}: {answer.error.message}")
    return time.perf_counter() - began


def document(number: int, body: dict[str, str], vector: Any = None) -> document_pb2.Document:
    """Make a document of a body; `vector` is its tokens and weights."""
    message = document_pb2.Document(id=str(number), source_json=json.dumps(body, ensure_ascii=False))
    if vector is not None:
        tokens, weights = vector
        message.sparse_vectors["vector"].CopyFrom(sparse_vector_pb2.SparseVector(tokens=tokens, weights=weights))
    return message
