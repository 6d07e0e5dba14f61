"""Tables of the search benchmark for people, with the bars."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

BARS = {
    (100_000, "scipy"): 0.5,
    (100_000, "lucene"): 0.4,
    (100_000, "seismic"): 0.7,
    (100_000, "updated"): 1.3,
    (1_000_000, "lucene"): 0.35,
}
"""By number of documents and engine: the most that our p50 may be of theirs, for short queries and k = 10; and of our
own before 20 % of the documents are updated and 10 % deleted."""


def bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give a row for each bar that these rows speak of: {"bench", "metric", "documents", "ratio", "bar", "ok"}."""
    cells = {
        (row["documents"], row["engine"], row["state"]): row
        for row in rows
        if row.get("queries") == "short" and row["k"] == 10
    }
    made = []
    for (documents, engine, state), row in cells.items():
        updated = (engine, state) == ("termwise", "updated")
        bar = BARS.get((documents, "updated" if updated else engine))
        ours = cells.get((documents, "termwise", "fresh"))
        if bar is None or ours is None:
            continue
        above, below = (row, ours) if updated else (ours, row)
        ratio = round(above["p50_ms"] / below["p50_ms"], 3)
        beside = "20 % updated and 10 % deleted / fresh" if updated else f"{engine} (recall {row['recall']:.3f})"
        metric = f"termwise / {beside}".replace("termwise / 20", "termwise, 20")
        made.append(
            {"bench": "search", "metric": f"{metric}, short queries, k = 10, p50", "documents": documents}
            | {"ratio": ratio, "bar": bar, "ok": ratio <= bar}
        )
    return made


def print_tables(rows: list[dict[str, Any]]) -> None:
    """Print a table a kind of query and k, one of sizes, what was skipped, and the bars."""
    console = Console(width=max(Console().width, 140))
    timed = [row for row in rows if "p50_ms" in row]
    for cell in dict.fromkeys((row["documents"], row["queries"], row["k"], row["vectors"]) for row in timed):
        documents, kind, k, label = cell
        table = Table(title=f"{documents:,} documents ({label}), {kind} queries, k = {k}", title_justify="left")
        for name in ("engine", "p50 ms", "p25-p75", "p95", "recall", "ours / theirs", "settings"):
            table.add_column(name, justify="left" if name in {"engine", "settings"} else "right")
        here = [row for row in timed if (row["documents"], row["queries"], row["k"], row["vectors"]) == cell]
        ours = next((row["p50_ms"] for row in here if _is_ours(row)), None)
        for row in sorted(here, key=lambda row: row["p50_ms"]):
            name = row["engine"] + (" (updated)" if row["state"] == "updated" else "")
            ratio = f"{ours / row['p50_ms']:.2f}" if ours else ""
            spread = f"{row['p25_ms']:.3f}-{row['p75_ms']:.3f}"
            cells = (f"{row['p50_ms']:.3f}", spread, f"{row['p95_ms']:.3f}", f"{row['recall']:.4f}", ratio)
            table.add_row(name, *cells, row["settings"])
        console.print(table)
    _print_sizes(console, [row for row in rows if "index_s" in row])
    for row in rows:
        if "skipped" in row:
            console.print(f"skipped {row['engine']}: {row['skipped']}", highlight=False)
    for row in rows:
        if "ok" in row:
            text = f"{row['metric']}, {row['documents']:,} documents: {row['ratio']}, bar {row['bar']}"
            console.print("met    " if row["ok"] else "missed ", text, highlight=False)


def _is_ours(row: dict[str, Any]) -> bool:
    return row["engine"] == "termwise" and row["state"] == "fresh"


def _print_sizes(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title="indices", title_justify="left")
    for name in ("engine", "build s", "disk bytes a posting", "memory bytes a posting", "memory is"):
        table.add_column(name, justify="left" if name in {"engine", "memory is"} else "right")
    for row in rows:
        figures = (row["index_s"], row["disk_bytes_per_posting"], row["memory_bytes_per_posting"])
        table.add_row(
            row["engine"], *("-" if figure is None else str(figure) for figure in figures), row["memory_measured"]
        )
    console.print(table)
