"""What the service adds to the encoder, and how fast health answers beside two saturated deployments.

`make bench-overhead` (ARGS="--format json"). One object a line: {"cell", "p50_ms", "p99_ms", "bar_ms", "ok", "calls"}.

- `encoder`: one short query, tokenised and encoded in this process, one thread, the server's own precision.
- `infer`: the same query by Infer over loopback, from a server in a process of its own; the two take turns, so both
  meet the same machine. `infer-inside` is what the server says that tokenising and encoding took. `overhead` is the
  difference of the medians of the first two; its bar is 1.5 ms.
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
from grpc_health.v1 import health_pb2, health_pb2_grpc

from termwise.v1 import trained_models_pb2 as pb
from termwise.v1 import trained_models_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = ".splade_tiny"
QUERY = "is pluto a planet?"
PASSAGE = (
    "Salmon are raised in floating net pens off the coast of Norway, where cold water and deep fjords suit them; the "
    "young fish grow up in fresh water on land before they are moved to the sea, and are harvested after two years. "
) * 3
OVERHEAD_BAR_MS = 1.5
HEALTH_BAR_MS = 20.0


@contextmanager
def server(place: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a server on a free loopback port for as long as the block lasts."""
    port_file = place / "port"
    command = [sys.executable, "-m", "termwise.server", "--data", str(place / "data"), "--port", "0"]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--port-file", str(port_file)], stdout=log, stderr=log)
        try:
            while not port_file.exists():
                if process.poll() is not None:
                    sys.exit((place / "log").read_text())
                time.sleep(0.05)
            yield f"127.0.0.1:{int(port_file.read_text())}", process
        finally:
            process.terminate()
            process.wait(timeout=60)


def infer(deployment: str, texts: list[str], side: str) -> pb.InferRequest:
    """Make a request."""
    return pb.InferRequest(deployment_id=deployment, texts=texts, input_type=f"INPUT_TYPE_{side}")


def prepare(stub: trained_models_pb2_grpc.TrainedModelsStub) -> str:
    """Download the default model and deploy it twice; give the precision in use."""
    put = pb.PutTrainedModelRequest(model_id=MODEL, wait_for=pb.PutTrainedModelRequest.WAIT_FOR_READY)
    model = stub.PutTrainedModel(put, timeout=600).trained_model
    if model.state != pb.TrainedModel.STATE_READY:
        sys.exit(f"the default model could not be had: {model.error}")
    for name in ("for_search", "for_ingest"):
        # The same texts are sent again and again: what they cost shall be seen.
        request = pb.StartDeploymentRequest(model_id=MODEL, deployment_id=name, cache_size_bytes=0)
        deployment = stub.StartDeployment(request, timeout=600).deployment
    return str(deployment.precision)


def overhead(stub: Any, folder: Path, precision: str, calls: int) -> list[dict[str, Any]]:
    """Take turns between the encoder and Infer."""
    # Imported late: the callers that make the load need no torch.
    from termwise.server.inference.base import ExpansionConfig, Side  # noqa: PLC0415
    from termwise.server.inference.loader import load_encoder  # noqa: PLC0415

    encoder = load_encoder(folder, ExpansionConfig(), threads=1, precision=precision)
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
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
        "cell": cell,
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "bar_ms": bar,
        "ok": None if bar is None else (p99 if tail else p50) <= bar,
        "calls": len(times),
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
    print(f"{'cell':<18}{'p50 ms':>10}{'p99 ms':>10}{'bar ms':>9}{'':>5}{'calls':>8}")
    for one in rows:
        p99 = "" if one["p99_ms"] is None else f"{one['p99_ms']:.2f}"
        bar = "" if one["bar_ms"] is None else f"{one['bar_ms']:.1f}"
        verdict = {None: "", True: "ok", False: "MISS"}[one["ok"]]
        print(f"{one['cell']:<18}{one['p50_ms']:>10.2f}{p99:>10}{bar:>9}{verdict:>5}{one['calls']:>8}")


def main() -> int:
    """Run everything; the exit status tells whether the bars were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=["table", "json"], default="table")
    parser.add_argument("--calls", type=int, default=500, help="calls of Infer")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of health checks, idle and saturated each")
    parser.add_argument("--load", nargs=2, metavar=("ADDRESS", "DEPLOYMENT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(*arguments.load)
    place = Path(tempfile.mkdtemp(prefix="termwise-bench-"))
    try:
        with server(place) as (address, _), grpc.insecure_channel(address) as channel:
            stub = trained_models_pb2_grpc.TrainedModelsStub(channel)
            precision = prepare(stub)
            rows = overhead(stub, place / "data" / "models" / MODEL, precision, arguments.calls)
            rows.append(health(address, "health-idle", arguments.seconds, None))
            with saturated(address):
                rows.append(health(address, "health-saturated", arguments.seconds, HEALTH_BAR_MS))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if arguments.format == "json":
        for one in rows:
            print(json.dumps(one))
    else:
        print_table(rows)
        print(f"precision {precision}, {os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")
    return 0 if all(one["ok"] is not False for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
