"""What the service adds to encoding and retrieval, what many callers get, and how fast health answers under load.

`make bench-overhead` (ARGS="--format json"). One object a line: {"bench": "overhead", "cell", "p50_ms", "p99_ms",
"bar", "ok", "calls"}, or "per_s" and "ratio" in place of milliseconds.

- `encoder`: one short query, tokenised and encoded in this process, one thread, the server's own precision.
- `infer`: the same query by Infer over loopback, from a server in a process of its own; the two take turns, so both
  meet the same machine. `infer-inside` is what the server says that tokenising and encoding took. `overhead` is the
  difference of the medians of the first two; its bar is 1.5 ms.
- `search`: a search by text (a real title) for ten hits and their bodies among 100,000 passages, as its caller sees it.
  `search-encode` and `search-retrieve` are the parts that the answer tells; `search-rest` is what is left of each call:
  queue of the call, conversion, bodies, gRPC, and the caller's own share. Its bar is 1.5 ms for the median.
- `search-awake` and so on: the same while a loop of the lowest priority, which gives way to everything, keeps each
  processor awake. A lone caller leaves the processors idle between the steps of a call, and a virtual machine's host
  then takes them away: waking up adds as much as the service's own work, and does not where there are more callers.
- `16-callers-text`, `16-callers-weights`: searches a second of 16 concurrent callers and how many times that of one
  caller it is. The callers are one process with an event loop, which takes its part of the processors; "weights" sends
  expansions instead of texts. The bar is 1.7 times, for texts.
- `2-threads-ranking`: rankings a second of two threads in this process, over the same index and with the same
  expansions, and how many times that of one thread it is: what two processors give where no service stands between.
- `health-idle` and `health-saturated`: grpc.health.v1 Check on a connection of its own, once every few milliseconds;
  the bar is 20 ms for the 99th percentile while four callers a deployment send 32 passages at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import searches
import serving
from grpc_health.v1 import health_pb2, health_pb2_grpc

from termwise.v1 import document_pb2, trained_models_pb2_grpc
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

QUERY = "is pluto a planet?"
PASSAGE = (
    "Salmon are raised in floating net pens off the coast of Norway, where cold water and deep fjords suit them; the "
    "young fish grow up in fresh water on land before they are moved to the sea, and are harvested after two years. "
) * 3
OVERHEAD_BAR_MS = 1.5
HEALTH_BAR_MS = 20.0
REST_BAR_MS = 1.5
RATIO_BAR = 1.7
PASSAGES = 100_000


def infer(deployment: str, texts: list[str], side: str) -> pb.InferRequest:
    """Make a request."""
    return pb.InferRequest(deployment_id=deployment, texts=texts, input_type=f"INPUT_TYPE_{side}")


def overhead(stub: Any, folder: Path, precision: str, calls: int) -> list[dict[str, Any]]:
    """Take turns between the encoder and Infer."""
    # Imported late: the callers that make the load need no torch.
    from termwise.server.inference.base import ExpansionConfig, Side  # noqa: PLC0415
    from termwise.server.inference.loader import load_encoder  # noqa: PLC0415

    encoder = load_encoder(folder, ExpansionConfig(), threads=1, precision=precision)
    request = infer("for_search", [QUERY], "QUERY")
    alone, served, inside = [], [], []
    for turn in range(calls + 50):
        began = time.perf_counter()
        encoder.encode(encoder.tokenize([QUERY], Side.QUERY), Side.QUERY)
        middle = time.perf_counter()
        answer = stub.Infer(request)
        ended = time.perf_counter()
        if turn >= 50:
            alone.append((middle - began) * 1e3)
            served.append((ended - middle) * 1e3)
            took = answer.timings
            inside.append((took.tokenize.ToMicroseconds() + took.inference.ToMicroseconds()) / 1e3)
    difference = statistics.median(served) - statistics.median(alone)
    return [
        row("encoder", alone),
        row("infer", served),
        row("infer-inside", inside),
        row("overhead", [difference], bar=OVERHEAD_BAR_MS) | {"calls": calls, "p99_ms": None},
    ]


def row(cell: str, times: list[float], bar: float | None = None, *, tail: bool = False) -> dict[str, Any]:
    """Sum up. `bar` is for the median, or for the 99th percentile where `tail`."""
    p50 = statistics.median(times)
    p99 = sorted(times)[max(0, int(len(times) * 0.99 + 0.5) - 1)]
    return {
        "bench": "overhead",
        "cell": cell,
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "bar": bar,
        "ok": None if bar is None else (p99 if tail else p50) <= bar,
        "calls": len(times),
    }


def fill(channel: grpc.Channel, count: int) -> None:
    """Make the index that is searched: real passages with their vectors."""
    import numpy as np  # noqa: PLC0415

    import vectors  # noqa: PLC0415

    collection = vectors.load(count)
    words, matrix = np.array(collection.vocabulary, dtype=object), collection.documents

    def documents() -> Iterator[document_pb2.Document]:
        for number, body in enumerate(serving.passages(count)):
            part = slice(matrix.indptr[number], matrix.indptr[number + 1])
            yield serving.document(number, body, (words[matrix.indices[part]], matrix.data[part]))

    serving.create(channel, searches.INDEX, "for_search")
    serving.bulk(channel, searches.INDEX, documents())


def search(
    channel: grpc.Channel, address: str, place: Path, queries: dict[str, Any], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure searches, one by one and by many callers, for texts and their expansions."""
    titles = list(queries)
    rows = one_by_one(channel, titles, arguments.calls, "")
    with awake():
        rows += one_by_one(channel, titles, arguments.calls, "-awake")
    given = [searches.by_weights(vector) for vector in queries.values()]
    for cell, requests, bar in (
        ("16-callers-text", [searches.by_text(title) for title in titles], RATIO_BAR),
        ("16-callers-weights", given, None),
    ):
        seconds, rounds = (2.0, 1) if arguments.quick else (4.0, 3)
        rows.append(ratio_row(cell, *searches.ratio(address, requests, seconds, rounds, place), bar))
    return rows


def one_by_one(channel: grpc.Channel, titles: list[str], calls: int, suffix: str) -> list[dict[str, Any]]:
    """Search by one text after the other."""
    times = searches.one_by_one(channel, titles, calls)
    return [
        row(f"{cell}{suffix}", values, REST_BAR_MS if cell == "search-rest" else None) for cell, values in times.items()
    ]


@contextmanager
def awake() -> Iterator[None]:
    """Keep all processors from sleeping for as long as the block lasts; on Linux."""
    code = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); print(flush=True)\nwhile 1: pass"
    with ExitStack() as stack:
        for processor in os.sched_getaffinity(0) if hasattr(os, "SCHED_IDLE") else ():
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE))
            stack.callback(process.kill)
            os.sched_setaffinity(process.pid, {processor})
            assert process.stdout is not None
            process.stdout.readline()
        yield


def ratio_row(cell: str, one: float, many: float, bar: float | None = None) -> dict[str, Any]:
    """Compare the throughput of many with that of one, both by the second."""
    ratio = round(many / one, 2)
    return {
        "bench": "overhead",
        "cell": cell,
        "per_s": round(many),
        "per_s_of_one": round(one),
        "ratio": ratio,
        "bar": bar,
        "ok": None if bar is None else ratio >= bar,
    }


def health(address: str, cell: str, seconds: float, bar: float | None) -> dict[str, Any]:
    """Check health again and again on one connection."""
    times = []
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="readiness")
        stub.Check(request)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            began = time.perf_counter()
            stub.Check(request)
            times.append((time.perf_counter() - began) * 1e3)
            time.sleep(0.004)
    return row(cell, times, bar, tail=True)


def load(address: str, deployment: str) -> None:
    """Keep a deployment busy until the process is ended."""
    numbers = count()

    def send() -> Any:
        # Equal texts in flight would run once.
        texts = [f"{next(numbers)} {PASSAGE}" for _ in range(32)]
        return stub.Infer.future(infer(deployment, texts, "DOCUMENT"))

    with grpc.insecure_channel(address) as channel:
        stub = trained_models_pb2_grpc.TrainedModelsStub(channel)
        print("loading", flush=True)
        running = [send() for _ in range(4)]
        while True:
            running.pop(0).result()
            running.append(send())


@contextmanager
def saturated(address: str) -> Iterator[None]:
    """Keep both deployments busy for as long as the block lasts."""
    with ExitStack() as stack:
        for deployment in ("for_search", "for_ingest"):
            command = [sys.executable, __file__, "--load", address, deployment]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
        time.sleep(1)
        yield


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print for a person."""
    print(f"{'cell':<20}{'p50 ms':>10}{'p99 ms':>10}{'bar':>7}{'':>6}")
    for one in rows:
        bar = "" if one["bar"] is None else f"{one['bar']:.1f}"
        verdict = {None: "", True: "ok", False: "MISS"}[one["ok"]]
        if "ratio" in one:
            figures = f"{one['per_s']:>8}/s{one['ratio']:>9.2f}x"
        else:
            figures = f"{one['p50_ms']:>10.2f}" + (f"{one['p99_ms']:>10.2f}" if one["p99_ms"] else f"{'':>10}")
        print(f"{one['cell']:<20}{figures}{bar:>7}{verdict:>6}")


def main() -> int:
    """Run everything; the exit status tells whether the bars were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=["table", "json"], default="table")
    parser.add_argument("--calls", type=int, default=500, help="calls of Infer, and of Search")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of health checks, idle and saturated each")
    parser.add_argument("--documents", type=int, default=PASSAGES, help="passages to search")
    parser.add_argument("--quick", action="store_true", help="less of everything: 10,000 passages, within a minute")
    parser.add_argument("--load", nargs=2, metavar=("ADDRESS", "DEPLOYMENT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(*arguments.load)
    if arguments.quick:
        arguments.calls, arguments.seconds, arguments.documents = 200, 3, min(arguments.documents, 10_000)
    place = Path(tempfile.mkdtemp(prefix="termwise-bench-"))
    try:
        with (
            serving.server(place) as (address, process),
            grpc.insecure_channel(address, serving.OPTIONS) as channel,
        ):
            precision = serving.deploy(channel, "for_search", "for_ingest")
            stub = trained_models_pb2_grpc.TrainedModelsStub(channel)
            rows = overhead(stub, place / "data" / "models" / serving.MODEL, precision, arguments.calls)
            fill(channel, arguments.documents)
            serving.settle(process)
            titles = serving.titles(2_000)
            queries = dict(zip(titles, searches.expansions(channel, titles), strict=True))
            searched = search(channel, address, place, queries, arguments)
            rows.append(health(address, "health-idle", arguments.seconds, None))
            with saturated(address):
                rows.append(health(address, "health-saturated", arguments.seconds, HEALTH_BAR_MS))
        one, two = searches.ranked_by_threads(place / "data", list(queries.values()), 0.5 if arguments.quick else 1.0)
        searched.append(ratio_row("2-threads-ranking", one, two))
        rows[4:4] = [each | {"documents": arguments.documents} for each in searched]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if arguments.format == "json":
        for one in rows:
            print(json.dumps(one | {"precision": precision}))
    else:
        print_table(rows)
        print(f"precision {precision}, {os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")
    return 0 if all(one["ok"] is not False for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
