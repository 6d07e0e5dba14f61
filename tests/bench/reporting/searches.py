"""Rows of the search benchmark, looked up by what they measure."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reporting.results import Results, Row

OURS = "termwise"
"""Our engine in process, as its peers are; `termwise grpc` is the service."""
RECALL = 0.98
"""Recall that an approximate engine must reach to be compared."""


def timings(results: Results) -> list[Row]:
    """Give the rows that time queries, of all sizes."""
    return [row for row in _all(results) if "p50_ms" in row and "recall" in row]


def builds(results: Results) -> list[Row]:
    """Give the rows about building an index, of all sizes."""
    return [row for row in _all(results) if "index_s" in row or "disk_bytes_per_posting" in row]


def _all(results: Results) -> list[Row]:
    names = [name for name in results.sections if name.startswith("search-")]
    return sorted(results.rows(*names), key=lambda row: row.get("documents", 0)) if names else []


def missing(rows: list[Row]) -> str:
    """Say which engines and cells that a run of the search benchmark planned it has no row of; empty for none."""
    planned = next((row["planned"] for row in rows if "planned" in row), None)
    if planned is None:
        return ""
    known = {row["engine"] for row in rows if "engine" in row}
    engines = [engine for engine in planned["engines"] if engine not in known]
    measured = {(row["queries"], row["k"]) for row in rows if "p50_ms" in row}
    cells = [
        f"{queries} queries with k = {k}"
        for queries, k in product(planned["queries"], planned["k"])
        if (queries, k) not in measured
    ]
    said = {"engines missing": engines, "not timed": cells}
    return "; ".join(f"{what}: {', '.join(which)}" for what, which in said.items() if which)


def pick(rows: list[Row], **wanted: Any) -> list[Row]:
    """Give the rows with these values; a row without a state is fresh."""
    return [row for row in rows if all(({"state": "fresh"} | row).get(key) == value for key, value in wanted.items())]


def ours(rows: list[Row]) -> Row | None:
    """Give our row among rows of one cell."""
    return next((row for row in rows if row["engine"] == OURS), None)


def fastest(rows: list[Row], engine: str, *, recall: float = 0.0) -> Row | None:
    """Give the fastest row of an engine in any of its settings that reaches a recall; None where there is none."""
    found = [row for row in rows if is_engine(row, engine) and (row["recall"] or 0) >= recall]
    return min(found, key=lambda row: row["p50_ms"], default=None)


def is_engine(row: Row, engine: str) -> bool:
    """Whether a row is of an engine, in any setting: `seismic` fits `seismic cut 8`."""
    return bool(row["engine"].startswith(engine))
