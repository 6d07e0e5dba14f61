"""Cost against documents: a model fitted to what was measured, and what it says of collections nobody measured here.

docs/scaling.md is written by hand around blocks, `<!-- name -->` to `<!-- /name -->`; `fill` writes those.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reporting import searches
from reporting.text import MISSING, number, size, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reporting.results import Results, Row

TARGETS = (100_000_000, 10_000_000_000)
"""Collections to reason about."""
NODE_GIB = 256
"""Memory of the machine that the reasoning is in."""
USABLE = 0.75
"""Share of it for postings; the rest is the system, the encoder and the page cache."""
NODE_CORES = 32
BUDGETS_MS = (20, 100)
"""Medians that a fan-out may take, shard time alone."""
REPLICAS = 2
LEAST_POINTS = 2
SYNTHETIC = "synthetic"
"""Vectors that resemble no real ones; those resampled from real ones count."""


@dataclass(frozen=True)
class Fit:
    """Cost of N documents: `constant + slope * N ** exponent`, and the largest relative residual of its points."""

    constant: float
    slope: float
    exponent: float
    residual: float
    points: int

    def __call__(self, documents: float) -> float:
        """Give the cost of a number of documents."""
        return self.constant + self.slope * documents**self.exponent

    def inverse(self, cost: float) -> float:
        """Give the number of documents that has a cost; 0 where even none has more."""
        return max(0.0, (cost - self.constant) / self.slope) ** (1 / self.exponent) if self.slope > 0 else 0.0

    def formula(self, unit: str) -> str:
        """Give the formula with its numbers; N in millions of documents."""
        slope = self.slope * 1e6**self.exponent
        power = "N" if self.exponent == 1 else f"N^{self.exponent:.2f}"
        start = f"{number(self.constant)} + " if self.constant else ""
        return f"{start}{number(slope)} · {power} {unit}"


def power_law(documents: Sequence[float], costs: Sequence[float]) -> Fit:
    """Fit `slope * N ** exponent` by least squares of the logarithms: every point counts alike, whatever its size."""
    x, y = np.log(np.asarray(documents, float)), np.log(np.asarray(costs, float))
    exponent, start = np.polyfit(x, y, 1)
    return _fit(0.0, math.exp(start), float(exponent), documents, costs)


def straight(documents: Sequence[float], costs: Sequence[float]) -> Fit:
    """Fit `constant + slope * N` by least squares of relative errors; neither is negative."""
    x, y = np.asarray(documents, float), np.asarray(costs, float)
    candidates = [_solve(x, y, columns) for columns in ((True, True), (False, True), (True, False))]
    allowed = [each for each in candidates if min(each) >= 0]
    constant, slope = min(allowed, key=lambda each: float((((each[0] + each[1] * x) / y - 1) ** 2).sum()))
    return _fit(constant, slope, 1.0, documents, costs)


def _solve(x: Any, y: Any, columns: tuple[bool, bool]) -> tuple[float, float]:
    design = np.stack([np.ones_like(x), x], 1)[:, list(columns)] / y[:, None]
    solved = iter(np.linalg.lstsq(design, np.ones_like(y), rcond=None)[0].tolist())
    constant, slope = (next(solved) if used else 0.0 for used in columns)
    return constant, slope


def _fit(constant: float, slope: float, exponent: float, documents: Sequence[float], costs: Sequence[float]) -> Fit:
    guessed = [constant + slope * each**exponent for each in documents]
    residual = max(abs(guess / cost - 1) for guess, cost in zip(guessed, costs, strict=True))
    return Fit(constant, slope, exponent, residual, len(documents))


@dataclass(frozen=True)
class Cost:
    """Something that was measured at several sizes."""

    name: str
    unit: str
    points: dict[int, float]
    latency: bool = False

    @property
    def fits(self) -> dict[str, Fit]:
        """The models that are fitted: a straight line, and for latency a power law too."""
        if len(self.points) < LEAST_POINTS:
            return {}
        documents, costs = list(self.points), list(self.points.values())
        found = {"straight line": straight(documents, costs)}
        return found | ({"power law": power_law(documents, costs)} if self.latency else {})


def costs(results: Results) -> list[Cost]:
    """Collect what was measured of ours at each size: latency, building, disk, memory and restart."""
    found = []
    timed = [row for row in searches.timings(results) if row["engine"] == searches.OURS]
    for queries, k in (("short", 10), ("short", 100), ("long", 10)):
        here = searches.pick(timed, queries=queries, k=k, state="fresh")
        for each in (50, 95) if (queries, k) == ("short", 10) else (50,):
            label = f"query, {queries}, k = {k}, {'median' if each == 50 else '95th percentile'}"
            points = {row["documents"]: row[f"p{each}_ms"] for row in here}
            found.append(Cost(label, "ms", points, latency=True))
    build = [row for row in searches.builds(results) if row["engine"] == searches.OURS]
    storage = [row for row in results.rows("storage") if row.get("vectors") != SYNTHETIC]
    for name, unit, rows, value in (
        ("index", "s", [*build, *storage], _index_seconds),
        ("disk", "GB", [*build, *storage], lambda row: _gigabytes(row, "disk")),
        ("memory", "GB", [*build, *storage], lambda row: _gigabytes(row, "memory")),
        ("restart", "s", storage, lambda row: row.get("restart_s")),
    ):
        points = {row["documents"]: value(row) for row in rows if value(row) is not None}
        found.append(Cost(name, unit, dict(sorted(points.items()))))
    return [cost for cost in found if cost.points]


def _index_seconds(row: Row) -> float | None:
    if row.get("index_s") is not None:
        return float(row["index_s"])
    rate = row.get("write_documents_per_s")
    return row["documents"] / rate if rate else None


def _gigabytes(row: Row, kind: str) -> float | None:
    if row.get(f"{kind}_bytes") is not None:
        return float(row[f"{kind}_bytes"]) / 1e9
    each, tokens = row.get(f"{kind}_bytes_per_posting"), row.get("tokens_per_document")
    if each is None or tokens is None:
        return None
    return float(each) * float(tokens) * float(row["documents"]) / 1e9


def tail(median: float, p95: float, shards: int, quantile: float) -> float:
    """Give a quantile of the slowest of `shards` answers, each lognormal with this median and 95th percentile."""
    spread = math.log(max(p95 / median, 1.0001)) / 1.6448536
    return float(median * math.exp(spread * _normal_quantile(quantile ** (1 / shards))))


def _normal_quantile(share: float) -> float:
    """Invert the normal distribution by bisection."""
    low, high = -10.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        if 0.5 * math.erfc(-middle / math.sqrt(2)) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def fill(text: str, results: Results) -> str:
    """Write the blocks of figures of docs/scaling.md. Raises KeyError for a block that nothing writes."""

    def write(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- {name} -->\n{BLOCKS[name](results)}\n<!-- /{name} -->"

    return re.sub(r"<!-- (?P<name>[a-z]+) -->\n.*?<!-- /(?P=name) -->", write, text, flags=re.DOTALL)


def _measured(results: Results) -> str:
    found = costs(results)
    sizes = sorted({documents for cost in found for documents in cost.points})
    if not sizes:
        return NOTHING
    lines = [
        [cost.name, *(f"{number(cost.points[each])} {cost.unit}" if each in cost.points else MISSING for each in sizes)]
        for cost in found
    ]
    return table(["Cost", *(f"{size(each)} documents" for each in sizes)], lines)


def _models(results: Results) -> str:
    lines = []
    for cost in costs(results):
        for kind, fit in cost.fits.items():
            residual = "exact: as many points as parameters" if fit.points <= LEAST_POINTS else f"{fit.residual:.0%}"
            lines.append([cost.name, kind, fit.formula(cost.unit), residual])
    if not lines:
        return NOTHING
    return table(["Cost", "Model", "N in millions of documents", "Largest residual"], lines)


def _predicted(results: Results) -> str:
    lines = []
    for cost in costs(results):
        fits = cost.fits
        if fits:
            lines.append([cost.name, *(_range(cost, [fit(each) for fit in fits.values()]) for each in TARGETS)])
    headings = ["Cost, on one node of endless memory", *(f"{each // 1_000_000:,} M documents" for each in TARGETS)]
    return table(headings, lines) if lines else NOTHING


def _range(cost: Cost, values: list[float]) -> str:
    low, high = (_unit(each, cost.unit) for each in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _unit(value: float, unit: str) -> str:
    """Give a figure in the unit that reads best."""
    steps = {"ms": (("ms", 1.0), ("s", 1e3)), "s": (("s", 1.0), ("h", 3600.0)), "GB": (("GB", 1.0), ("TB", 1e3))}[unit]
    name, divisor = steps[1] if abs(value) >= 2 * steps[1][1] else steps[0]
    return f"{number(value / divisor)} {name}"


def _nodes(results: Results) -> str:
    found = {cost.name: cost for cost in costs(results)}
    memory, latency = found.get("memory"), found.get("query, short, k = 10, median")
    high = found.get("query, short, k = 10, 95th percentile")
    if not (memory and memory.fits and latency and latency.fits and high):
        return NOTHING
    fit = memory.fits["straight line"]
    a_node = int(fit.inverse(NODE_GIB * USABLE * 2**30 / 1e9))
    speed = max(latency.fits.values(), key=lambda each: each(a_node))
    largest = max(latency.points)
    spread = high.points[largest] / latency.points[largest]
    lines = []
    for target in TARGETS:
        nodes = max(1, math.ceil(target / max(a_node, 1)))
        for budget in BUDGETS_MS:
            shard = max(1.0, speed.inverse(budget))
            shards = max(nodes, math.ceil(target / shard))
            median = speed(target / shards)
            lines.append(
                [
                    f"{target // 1_000_000:,} M",
                    f"{budget} ms",
                    f"{number(nodes)}, with replicas {number(nodes * REPLICAS)}",
                    number(shards),
                    number(math.ceil(shards / nodes)),
                    f"{number(tail(median, median * spread, shards, 0.5))} ms",
                    f"{number(tail(median, median * spread, shards, 0.99))} ms",
                    number(nodes * NODE_CORES / (shards * speed(target / shards) / 1e3)),
                ]
            )
    headings = [
        "Documents",
        "A shard's median",
        f"Nodes of {NODE_GIB} GiB",
        "Shards",
        "Shards a node",
        "Slowest shard, median",
        "Slowest shard, 99 %",
        f"Queries a second at {NODE_CORES} cores a node",
    ]
    said = (
        f"A node of {NODE_GIB} GiB, {USABLE:.0%} of it for postings, holds {number(round(a_node / 1e6))} M documents. "
        f"The 95th percentile of a shard is taken as {spread:.1f} times its median, as at {size(largest)}."
    )
    return f"{said}\n\n{table(headings, lines)}"


NOTHING = "*Not measured yet.*"
BLOCKS: dict[str, Callable[[Results], str]] = {
    "measured": _measured,
    "models": _models,
    "predicted": _predicted,
    "nodes": _nodes,
}
"""What writes each block."""
