"""How long a server takes to be ready after a restart, beside what importing torch and transformers alone takes.

`make bench-start` (ARGS="--format json"). One object a line: {"bench": "start", "cell", "p50_ms", "p25_ms", "p75_ms",
"runs", "bar", "ok"}. Each cell is a new process a round, in turns with the others, files in the system's memory.

- `ready`: from `python -m termwise.server` on a data folder with the default model deployed and an index of passages,
  until health's `readiness` is SERVING: metadata restored, index open, the model loaded and its verdict found.
- `answered`: until the first text of that deployment and the first search of that index were answered too, so that
  nothing is only put off.
- `imports`: `python -c "import torch, transformers"`; `imports-model`: the same and what loads a masked-token model.
- `ready-over-imports`: the difference of the medians of `ready` and `imports`; its bar is 1,500 ms.
- `ready-unchecked`: `ready` where the verdict of the check against transformers is not kept, as on the first start.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import serving
from grpc_health.v1 import health_pb2, health_pb2_grpc

from termwise.v1 import (
    pipeline_pb2,
    pipeline_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    trained_models_pb2,
    trained_models_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Callable

BAR_MS = 1_500
DEPLOYMENT = "for_search"
INDEX = "passages"
QUERY = "is pluto a planet?"
IMPORTS = {
    "imports": "import torch, transformers",
    "imports-model": "import torch, transformers; from transformers import AutoModelForMaskedLM",
}


def prepare(place: Path, documents: int) -> None:
    """Make the data folder that every start finds: the default model, deployed, and an index of expanded passages."""
    with serving.server(place) as (address, _), grpc.insecure_channel(address, serving.OPTIONS) as channel:
        serving.deploy(channel, DEPLOYMENT)
        put = pipeline_pb2.PutPipelineRequest(pipeline_id="expand")
        inference = put.pipeline.processors.add().inference
        inference.deployment_id = DEPLOYMENT
        inference.input_output.add(input_field="text", output_field="vector")
        pipeline_pb2_grpc.PipelineStub(channel).PutPipeline(put)
        serving.create(channel, INDEX, DEPLOYMENT, "expand")
        serving.bulk(channel, INDEX, (serving.document(n, body) for n, body in enumerate(serving.passages(documents))))


def start(place: Path) -> dict[str, float]:
    """Start a server on the prepared folder; give the seconds until it is ready, and until it has answered."""
    began = time.perf_counter()
    with serving.server(place) as (address, _), grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service="readiness")
        watch = health_pb2_grpc.HealthStub(channel).Watch(request)
        next(answer for answer in watch if answer.status == health_pb2.HealthCheckResponse.SERVING)
        ready = time.perf_counter() - began
        watch.cancel()
        infer = trained_models_pb2.InferRequest(deployment_id=DEPLOYMENT, texts=[QUERY], input_type="INPUT_TYPE_QUERY")
        trained_models_pb2_grpc.TrainedModelsStub(channel).Infer(infer)
        search = search_pb2.SearchRequest(indices=[INDEX])
        search.query.text_expansion.field = "vector"
        search.query.text_expansion.text = QUERY
        if not search_pb2_grpc.SearchStub(channel).Search(search).hits:
            sys.exit("the search found nothing")
        return {"ready": ready, "answered": time.perf_counter() - began}


def start_unchecked(place: Path) -> dict[str, float]:
    """Start a server as `start` does, without the verdicts that it keeps."""
    shutil.rmtree(place / "data" / "cache" / "parity")
    return {"ready-unchecked": start(place)["ready"]}


def run_python(cell: str) -> dict[str, float]:
    """Run a line of Python in a process of its own, and give the seconds from its start to its end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS[cell]], check=True)
    return {cell: time.perf_counter() - began}


def measure(place: Path, rounds: int) -> dict[str, list[float]]:
    """Take turns; give the milliseconds of each cell."""
    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        taken: dict[str, float] = {}
        for run in turns(place):
            taken |= run()
        if number:  # the first round fills the system's memory with files
            for cell, seconds in taken.items():
                times.setdefault(cell, []).append(seconds * 1e3)
    return times


def turns(place: Path) -> list[Callable[[], dict[str, float]]]:
    """Give what a round runs, in its order."""
    return [
        lambda: start(place),
        lambda: run_python("imports"),
        lambda: run_python("imports-model"),
        lambda: start_unchecked(place),
    ]


def row(cell: str, times: list[float], bar: float | None = None) -> dict[str, Any]:
    """Sum up."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {
        "bench": "start",
        "cell": cell,
        "p50_ms": round(middle),
        "p25_ms": round(low),
        "p75_ms": round(high),
        "runs": len(times),
        "bar": bar,
        "ok": None if bar is None else middle <= bar,
    }


def rows_of(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Give all rows."""
    over = statistics.median(times["ready"]) - statistics.median(times["imports"])
    rows = [row(cell, values) for cell, values in times.items()]
    difference = row("ready-over-imports", [over], BAR_MS) | {"p25_ms": None, "p75_ms": None, "runs": rows[0]["runs"]}
    return [*rows, difference]


def main() -> int:
    """Run everything; the exit status tells whether the bar was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=["table", "json"], default="table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=2_000, help="passages in the index")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.documents = 2, 200
    with tempfile.TemporaryDirectory(prefix="termwise-bench-") as name:
        prepare(Path(name), arguments.documents)
        rows = rows_of(measure(Path(name), arguments.rounds))
    if arguments.format == "json":
        for one in rows:
            print(json.dumps(one))
    else:
        found = {one["cell"]: one for one in rows}
        for one in rows:
            quartiles = "" if one["p25_ms"] is None else f"  ({one['p25_ms']} to {one['p75_ms']})"
            verdict = {None: "", True: "  ok", False: "  MISS"}[one["ok"]]
            print(f"{one['cell']:<20}{one['p50_ms']:>7} ms{quartiles}{verdict}")
        ratio = found["ready"]["p50_ms"] / found["imports"]["p50_ms"]
        print(f"ready takes {ratio:.2f} times what the imports take")
        print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")
    return 0 if all(one["ok"] is not False for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
