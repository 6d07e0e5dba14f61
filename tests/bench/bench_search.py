"""Sparse search beside what a user would pick instead, on the same vectors and in one interleaved run.

    make bench-search ARGS="[--format json] [--documents 100000] [--engines termwise,scipy,lucene] [--quick]"

With `--format json` an object a line, as soon as it is measured, of five kinds:

- {"bench": "search", "documents", "planned": {"engines", "queries", "k"}}: what is to come, first of all;
- {"engine", "documents", "queries": "short" | "long", "k", "p50_ms", "p25_ms", "p75_ms", "p95_ms", "recall",
  "vectors", "state": "fresh" | "updated", "settings", "calls", "tokens"}: latency of one call, beside the share of
  the exact k best documents that it found;
- {"engine", "documents", "index_s", "disk_bytes_per_posting", "memory_bytes_per_posting"}: what the index takes;
- {"bench": "search", "metric", "documents", "ratio", "bar", "ok"}: a ratio of medians that has a bar;
- {"engine", "documents", "skipped"}: an engine that cannot be had here, or that failed, and why.

Each engine runs at its documented best, with one thread; the docstrings of `peers/` say how. Indices are built in
processes of their own, and those of others kept in the cache. Queries are prepared and answers read outside the timed
part. All engines are warmed up; then they take turns, garbage collection off: each answers 25 queries, in a random
order of engines, before the next 25 are due. Beforehand it answers some others untimed, so that no engine finds the
processor's caches as another left them. A slow engine answers only the first queries. Memory is the engine's own
figure or the growth of this process while it was opened and answered each query once.

Every answer of ours is compared with exact scores in float64; the benchmark exits with 1 where one differs, and, with
`--check`, where a bar is missed: 100,000 documents, short queries, k = 10.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

import vectors
from peers.base import Built, PeerMissingError, Truth, changes
from search_report import bars, print_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peers.base import Lane, Peer
    from vectors import Collection, Kind, Query

PEERS = {
    "termwise": ("peers.termwise_peer", "Termwise", ""),
    "termwise grpc": ("peers.termwise_grpc", "TermwiseGrpc", ""),
    "scipy": ("peers.scipy_peer", "Scipy", "scipy"),
    "lucene": ("peers.lucene", "Lucene", "arcadedb-embedded"),
    "seismic": ("peers.seismic_peer", "Seismic", "pyseismic-lsr"),
    "bmp": ("peers.bmp_peer", "Bmp", "bmp"),
    "splade-index": ("peers.splade_index_peer", "SpladeIndex", "splade-index"),
    "milvus-lite": ("peers.milvus", "Milvus", "milvus-lite"),
}
"""By name: module, class, and the distribution whose version a kept index belongs to."""
AT_A_MILLION = ["termwise", "scipy", "lucene", "seismic", "splade-index"]
"""The others take too long or too much memory: BMP's index takes 8 GB there."""
QUICK = ["termwise", "scipy", "lucene"]
Tell = Callable[[list[dict[str, Any]]], None]
"""What rows are handed to."""
LARGE = 300_000
DEPTHS = (10, 100)
ROUNDS = 3
RUN = 25
"""Queries that an engine answers before another has its turn."""
SETTLING = 8
"""Queries that it answers untimed before those; one where it answers no more than a run in all."""
SECONDS_A_LANE = 3.0
"""What a lane's timed calls may take in a cell; warming it up may take half as much."""


@dataclass(frozen=True)
class Opened:
    """A peer that is open, and the lanes that it gave: what it chose for some queries it need not choose again."""

    peer: Peer
    known: dict[tuple[int, Truth], list[Lane]] = field(default_factory=dict)

    def lanes(self, queries: Sequence[Query], k: int, truth: Truth) -> list[Lane]:
        """Give the lanes of a cell; ours are made anew, since they look at the index as it is by now."""
        if self.peer.name == "termwise" or (k, truth) not in self.known:
            self.known[k, truth] = self.peer.lanes(queries, k, truth)
        return self.known[k, truth]


def main() -> None:
    """Measure and print."""
    options = parse()
    if options.build:
        return build_here(options)
    collection = vectors.load(options.documents, real=not options.synthetic)
    if options.prepare:
        for name in options.engines:
            if PEERS[name][2]:  # ours are built anew each time
                prepare(name, options, collection, vectors.CACHE / "peers")
        return None
    rows: list[dict[str, Any]] = []

    def tell(found: list[dict[str, Any]]) -> None:
        rows.extend(found)
        for row in found if options.format == "json" else ():
            print(json.dumps(row), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        wrong = run(options, collection, options.folder or Path(scratch), tell)
    tell(bars(rows))
    if options.format == "table":
        print_tables(rows)
    if wrong:
        sys.exit("\n".join(wrong))
    if options.check and not all(row.get("ok", True) for row in rows):
        sys.exit("a bar is missed")
    return None


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--engines", help=f"some of {', '.join(PEERS)}; all by default, fewer at 1,000,000 documents")
    parser.add_argument("--queries", type=int, help="how many of each kind; 200 by default")
    parser.add_argument("--k", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--kinds", nargs="+", choices=["short", "long"], default=["short", "long"])
    parser.add_argument("--quick", action="store_true", help=f"20,000 documents, 50 queries, {', '.join(QUICK)}")
    parser.add_argument("--format", choices=["table", "json"], default="table")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    parser.add_argument("--synthetic", action="store_true", help="do not look for the real collection")
    parser.add_argument("--folder", type=Path, help="keep indices of ours there, and use those that are there")
    parser.add_argument("--prepare", action="store_true", help="build the indices that are kept, and measure nothing")
    parser.add_argument("--build-seconds", type=float, help="skip a peer whose index is not built by then")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.queries = options.queries or (50 if options.quick else 200)
    if options.quick:
        options.documents = min(options.documents, 20_000)
    chosen = QUICK if options.quick else AT_A_MILLION if options.documents >= LARGE else list(PEERS)
    options.engines = [name.strip() for name in options.engines.split(",")] if options.engines else chosen
    if unknown := [name for name in options.engines if name not in PEERS]:
        parser.error(f"there is no engine {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return options


def run(options: argparse.Namespace, collection: Collection, scratch: Path, tell: Tell) -> list[str]:
    """Build, open and time all engines; tell the rows as they come, and give what was wrong with answers of ours."""
    planned = {"engines": options.engines, "queries": list(options.kinds), "k": list(options.k)}
    tell([{"bench": "search", "documents": options.documents, "planned": planned}])
    truths = {kind: Truth(collection, collection.of(kind)[: options.queries], options.k) for kind in options.kinds}
    opened: dict[str, Opened] = {}
    wrong: list[str] = []
    try:
        for name in options.engines:
            try:
                folder, built = prepare(name, options, collection, scratch)
                peer = make(name, options)
                before = resident()
                peer.open(collection, folder)
                if name == "termwise" and options.documents < LARGE:
                    for truth in truths.values():
                        truth.update(*changes(options.documents))
                opened[name] = Opened(peer)
                warm(opened[name], collection, truths, options)
                tell([size_row(name, built, peer, resident() - before, collection)])
            except Exception as error:  # noqa: BLE001 - a peer may fail as it likes
                opened.pop(name, None)
                tell([skipped(name, options, error)])
        for kind, k in product(options.kinds, options.k):
            tell(race_all(options, collection, opened, (kind, k, truths[kind]), wrong))
    finally:
        for engine in opened.values():
            engine.peer.close()
    return wrong


def race_all(
    options: argparse.Namespace,
    collection: Collection,
    opened: dict[str, Opened],
    cell: tuple[Kind, int, Truth],
    wrong: list[str],
) -> list[dict[str, Any]]:
    """Time all engines in one cell: a kind of queries and a k; give its rows."""
    kind, k, truth = cell
    queries = collection.of(kind)[: options.queries]
    print(f"timing {kind} queries, k = {k}", file=sys.stderr)
    lanes: list[Lane] = []
    rows = []
    for name, engine in opened.items():
        try:
            made = engine.lanes(queries, k, truth)
            made[0].search(made[0].prepared[0])
            lanes += made
        except Exception as error:  # noqa: BLE001 - a peer may fail as it likes
            rows.append(skipped(name, options, error))
    about = {"documents": options.documents, "queries": kind, "k": k, "vectors": collection.label}
    return rows + [{"engine": row.pop("engine")} | about | row for row in race(lanes, truth, k, wrong)]


def skipped(name: str, options: argparse.Namespace, error: Exception) -> dict[str, Any]:
    """Give the row of a peer that failed; an error of ours is raised again."""
    if name.startswith("termwise"):
        raise error
    return {"engine": name, "documents": options.documents, "skipped": describe(error)}


def describe(error: Exception) -> str:
    """Give the first line of what an error says, and its kind where it was not foreseen."""
    said = (str(error).strip().splitlines() or ["no message"])[0]
    return said if isinstance(error, PeerMissingError) else f"{type(error).__name__}: {said}"


def race(lanes: list[Lane], truth: Truth, k: int, wrong: list[str]) -> list[dict[str, Any]]:
    """Run queries through all lanes in turn; answers of ours that are not exact are added to `wrong`."""
    limits = [limit(lane) for lane in lanes]
    times: list[list[float]] = [[] for _ in lanes]
    recalls: list[list[float]] = [[] for _ in lanes]
    order, rng = list(range(len(lanes))), random.Random(3)
    clock = time.perf_counter
    gc.collect()
    gc.disable()
    for turn, start in product(range(ROUNDS), range(0, max(limits), RUN)):
        rng.shuffle(order)
        for place in order:
            lane, numbers = lanes[place], range(start, min(start + RUN, limits[place]))
            search, answers = lane.search, []
            for number in range(start - (SETTLING if limits[place] > RUN else 1), start) if numbers else ():
                search(lane.prepared[number])  # a number below 0 is one of the last queries
            for number in numbers:
                query = lane.prepared[number]
                began = clock()
                answer = search(query)
                times[place].append(clock() - began)
                answers.append(answer)
            if turn == 0:
                recalls[place] += [judge(lane, truth, n, a, k, wrong) for n, a in zip(numbers, answers, strict=True)]
    gc.enable()
    return [
        {
            "engine": lane.engine,
            **{f"p{part}_ms": round(float(np.percentile(taken, part)) * 1e3, 4) for part in (50, 25, 75, 95)},
            "recall": round(statistics.fmean(recall), 5),
            "state": lane.state,
            "settings": lane.settings,
            "calls": len(taken),
        }
        for lane, taken, recall in zip(lanes, times, recalls, strict=True)
    ]


def judge(lane: Lane, truth: Truth, number: int, answer: Any, k: int, wrong: list[str]) -> float:
    """Give an answer's recall; one of ours must be exact."""
    read = lane.read(answer)
    if lane.exact:
        try:
            truth.check(number, read, k, lane.state)
        except ValueError as error:
            wrong.append(f"{lane.engine} ({lane.state}) is not exact: {error}")
    return truth.recall(number, read[0], k, lane.state)


def limit(lane: Lane) -> int:
    """Warm a lane up with every query, and give how many queries fit its time."""
    began, warmed = time.perf_counter(), 0
    for query in lane.prepared:
        lane.search(query)
        warmed += 1
        if time.perf_counter() - began > SECONDS_A_LANE / 2:
            break
    once = (time.perf_counter() - began) / warmed
    return int(min(len(lane.prepared), max(6, SECONDS_A_LANE / ROUNDS / once)))


def warm(engine: Opened, collection: Collection, truths: dict[Kind, Truth], options: argparse.Namespace) -> None:
    """Run each query once, so that all that is mapped or cached is there; a slow engine only some."""
    for kind, truth in truths.items():
        for lane in engine.lanes(collection.of(kind)[: options.queries], min(options.k), truth):
            began = time.perf_counter()
            for query in lane.prepared:
                lane.search(query)
                if time.perf_counter() - began > SECONDS_A_LANE:
                    break


def make(name: str, options: argparse.Namespace) -> Peer:
    """Make a peer that is not open yet."""
    module, kind, _ = PEERS[name]
    settings = {"updated": options.documents < LARGE} if name == "termwise" else {}
    peer: Peer = getattr(import_module(module), kind)(**settings)
    return peer


def prepare(name: str, options: argparse.Namespace, collection: Collection, scratch: Path) -> tuple[Path, Built]:
    """Have an index built by another process, or take the one that was kept; others' are kept."""
    module, _, distribution = PEERS[name]
    folder = scratch / name.replace(" ", "-")
    if distribution:
        try:
            release = version(distribution)
        except PackageNotFoundError:
            raise PeerMissingError(f"{distribution} is not installed; install requirements/bench.txt") from None
        source = Path(str(import_module(module).__file__)).read_bytes()
        key = f"{collection.label} {options.documents} {release} ".encode() + source
        folder = vectors.CACHE / "peers" / f"{name}-{options.documents}-{sha256(key).hexdigest()[:12]}"
    note = folder / "built.json"
    if not note.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"building {name}", file=sys.stderr)
        command = [sys.executable, __file__, "--build", name, "--folder", str(folder)]
        command += ["--documents", str(options.documents), *(["--synthetic"] if options.synthetic else [])]
        limit_s = options.build_seconds if distribution else None
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
        except subprocess.TimeoutExpired:
            shutil.rmtree(folder, ignore_errors=True)
            raise PeerMissingError(f"building its index took more than {limit_s:.0f} s") from None
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise PeerMissingError(f"building failed: {last[0]}")
    return folder, Built(**json.loads(note.read_text()))


def build_here(options: argparse.Namespace) -> None:
    """Build one index in this process."""
    collection = vectors.load(options.documents, real=not options.synthetic)
    built = make(options.build, options).build(collection, options.folder)
    (options.folder / "built.json").write_text(json.dumps(asdict(built)))


def size_row(name: str, built: Built, peer: Peer, growth: int, collection: Collection) -> dict[str, Any]:
    """Say what an index takes; a state of ours that is updated counts as a second index."""
    postings = collection.documents.nnz
    own = peer.memory_bytes()
    grown = growth / (2 if name == "termwise" and collection.documents.shape[0] < LARGE else 1)
    return {
        "engine": name,
        "documents": collection.documents.shape[0],
        "index_s": built.index_s and round(built.index_s, 2),
        "disk_bytes_per_posting": built.disk_bytes and round(built.disk_bytes / postings, 2),
        "memory_bytes_per_posting": None if own == 0 else round((own or grown) / postings, 2),
        "memory_measured": "own figure" if own else "growth of the process",
        "vectors": collection.label,
    }


def resident() -> int:
    """Give this process's memory, in bytes."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
