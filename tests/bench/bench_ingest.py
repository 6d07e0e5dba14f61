"""Ingest end to end: real passages through BulkIndex and an inference pipeline, beside the encoder alone.

`make bench-ingest` (ARGS="--format json"). One object a line; `documents_per_s` is the median of the rounds, whose
slowest and fastest stand beside it.

- `encoder`: the passages' texts through the encoder in this process, by as many threads as the deployment has
  allocations, 64 texts at a time.
- `ingest`: the same passages over one stream to a server in a process of its own. Its pipeline expands the text; title
  and text are searchable words too; every document is acknowledged once it is durable. `share` is the part of the
  encoder's throughput that is left, and its bar is 0.85 with one allocation: with two, two cores have nothing left for
  the rest. The encoder and the stream take turns, so that both meet the same machine.
- `vectors-given`: documents that bring their vectors, so without the model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import serving

from termwise.server.inference.base import ExpansionConfig, Side
from termwise.server.inference.hardware import set_compute_threads
from termwise.server.inference.loader import load_encoder
from termwise.v1 import document_pb2, indices_pb2, indices_pb2_grpc, pipeline_pb2, pipeline_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.server.inference.base import Encoder, Expansion

BAR = 0.85
BATCH = 64
DEPLOYMENT = "for_ingest"
PIPELINE = "expand"


def encode(encoder: Encoder, texts: list[str], threads: int) -> tuple[float, list[Expansion]]:
    """Encode texts by several threads, and give the seconds and the expansions."""
    parts: list[list[Expansion]] = [[] for _ in range(0, len(texts), BATCH)]
    pending = iter(list(enumerate(range(0, len(texts), BATCH))))
    lock = threading.Lock()

    def work() -> None:
        set_compute_threads(1)
        while True:
            with lock:
                place, start = next(pending, (-1, 0))
            if place < 0:
                return
            tokenized = encoder.tokenize(texts[start : start + BATCH], Side.DOCUMENT)
            parts[place] = list(encoder.encode(tokenized, Side.DOCUMENT))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - began, [expansion for part in parts for expansion in part]


def make_pipeline(channel: grpc.Channel) -> None:
    """Store the pipeline that expands `text` into `vector`."""
    pair = pipeline_pb2.InferenceProcessor.InputOutput(input_field="text", output_field="vector")
    inference = pipeline_pb2.InferenceProcessor(deployment_id=DEPLOYMENT, input_output=[pair])
    pipeline = pipeline_pb2.IngestPipeline(processors=[pipeline_pb2.Processor(inference=inference)])
    request = pipeline_pb2.PutPipelineRequest(pipeline_id=PIPELINE, pipeline=pipeline)
    pipeline_pb2_grpc.PipelineStub(channel).PutPipeline(request)


def fill(channel: grpc.Channel, documents: list[document_pb2.Document], pipeline: str) -> float:
    """Write documents into a new index, and give the seconds that it took; the index goes."""
    serving.create(channel, "bench", pipeline=pipeline)
    seconds = serving.bulk(channel, "bench", documents)
    indices_pb2_grpc.IndicesStub(channel).DeleteIndex(indices_pb2.DeleteIndexRequest(index="bench"))
    return seconds


def row(cell: str, allocations: int, count: int, seconds: list[float]) -> dict[str, Any]:
    """Sum the rounds up."""
    speeds = sorted(count / each for each in seconds)
    return {
        "bench": "ingest",
        "cell": cell,
        "allocations": allocations,
        "documents": count,
        "documents_per_s": round(statistics.median(speeds)),
        "slowest": round(speeds[0]),
        "fastest": round(speeds[-1]),
    }


def measure(place: Path, allocations: int, bodies: list[dict[str, str]], rounds: int) -> list[dict[str, Any]]:
    """Take turns between the encoder and the stream; then the stream with vectors."""
    plain = [serving.document(number, body) for number, body in enumerate(bodies)]
    texts = [body["text"] for body in bodies]
    alone, through, given = [], [], []
    with serving.server(place) as (address, _), grpc.insecure_channel(address, serving.OPTIONS) as channel:
        precision = serving.deploy(channel, DEPLOYMENT, allocations=allocations)
        make_pipeline(channel)
        folder = place / "data" / "models" / serving.MODEL
        encoder = load_encoder(
            folder, ExpansionConfig(), threads=1, precision=precision, cache=place / "data" / "cache"
        )
        encode(encoder, texts[: 4 * BATCH], allocations)
        fill(channel, plain[: 4 * BATCH], PIPELINE)
        for _ in range(rounds):
            seconds, expansions = encode(encoder, texts, allocations)
            alone.append(seconds)
            through.append(fill(channel, plain, PIPELINE))
        full = [
            serving.document(number, body, (expansion.tokens, expansion.weights))
            for number, (body, expansion) in enumerate(zip(bodies, expansions, strict=True))
        ]
        given = [fill(channel, full, "") for _ in range(rounds)]
    rows = [row("encoder", allocations, len(texts), alone), row("ingest", allocations, len(texts), through)]
    share = rows[1]["documents_per_s"] / rows[0]["documents_per_s"]
    bar = BAR if allocations == 1 else None
    rows[1] |= {"share": round(share, 3), "bar": bar, "ok": None if bar is None else share >= bar}
    rows.append(row("vectors-given", allocations, len(texts), given))
    return [each | {"precision": precision} for each in rows]


def show(rows: list[dict[str, Any]], write: Callable[[str], object]) -> None:
    """Print for a person."""
    write(f"{'cell':<15}{'allocations':>12}{'documents/s':>13}{'of encoder':>12}{'bar':>7}\n")
    for one in rows:
        share = f"{one['share']:.0%}" if "share" in one else ""
        bar = f"{one['bar']:.0%}" if one.get("bar") else ""
        verdict = {None: "", True: "  ok", False: "  MISS"}[one.get("ok")]
        line = f"{one['cell']:<15}{one['allocations']:>12}{one['documents_per_s']:>13,}{share:>12}{bar:>7}{verdict}"
        write(f"{line}\n")


def main() -> int:
    """Run everything; the exit status tells whether the bar was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=["table", "json"], default="table")
    parser.add_argument("--documents", type=int, default=5_000, help="passages of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--allocations", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: about half a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.documents, arguments.rounds = 2_000, 3
    bodies = serving.passages(arguments.documents)
    rows = []
    for allocations in arguments.allocations:
        with tempfile.TemporaryDirectory(prefix="termwise-bench-", ignore_cleanup_errors=True) as place:
            found = measure(Path(place), allocations, bodies, arguments.rounds)
        rows += found
        for one in found if arguments.format == "json" else ():
            print(json.dumps(one), flush=True)
    if arguments.format == "table":
        show(rows, sys.stdout.write)
        print(f"{rows[0]['precision']}, {os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")
    return 0 if all(one.get("ok") is not False for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
