"""What was promised, and whether the rows keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reporting import searches
from reporting.text import MISSING, name, number, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reporting.results import Results, Row

CELLS = {"query-b1": "a query", "passages-b32": "32 passages", "doc512-b1": "a 512-token document"}
MODELS = {"default": "default model", "minilm": "MiniLM shape", "bert-base": "BERT-base shape"}
ENCODER = {"query-b1": (4, 4, 4), "passages-b32": (10, 8, 7), "doc512-b1": (8, 5, 5)}
"""Times faster than sentence-transformers, bfloat16, one thread; in the order of MODELS."""
LOSS = 0.003
"""NDCG@10 that a precision may lose against float32 on any collection."""
SEARCH = (
    (100_000, "scipy", 0.5, 0.0),
    (100_000, "lucene", 0.4, 0.0),
    (100_000, "seismic", 0.7, searches.RECALL),
    (1_000_000, "lucene", 0.35, 0.0),
)
"""Documents, peer, most of the peer's median that ours may take, and the peer's least recall: short queries, k = 10."""
UPDATED = 1.3
"""Times the fresh median that queries may take after 20 % of documents were updated and 10 % deleted."""


@dataclass(frozen=True)
class Bar:
    """A promise: what, how much was promised, what was measured; `met` is None where it was not measured."""

    what: str
    promised: str
    measured: str
    met: bool | None


def all_bars(results: Results) -> list[Bar]:
    """Give every bar in the page's order."""
    return [
        *encoder(results.rows("encode")),
        *drift(results.rows("drift")),
        *search(searches.timings(results)),
        *stated(results),
    ]


def encoder(rows: list[Row]) -> Iterator[Bar]:
    """Ours in bfloat16 against sentence-transformers, and against OpenVINO's bfloat16 with the default model."""
    found = {(row["model"], row["cell"], name(row)): row for row in rows}
    for cell, bars in ENCODER.items():
        for (model, shown), least in zip(MODELS.items(), bars, strict=True):
            row = found.get((model, cell, "termwise bfloat16"))
            what = f"encode {CELLS[cell]}, {shown}: times sentence-transformers' speed"
            ratio = row["ratio"] if row else None
            yield Bar(what, f"≥ {least}", number(ratio), ratio >= least if ratio is not None else None)
    for cell, shown in CELLS.items():
        own, rival = (found.get(("default", cell, f"{each} bfloat16")) for each in ("termwise", "openvino"))
        share = own["p50_ms"] / rival["p50_ms"] if own and rival else None
        what = f"encode {shown}, default model: time over OpenVINO bfloat16's"
        yield Bar(what, "≤ 1", number(share), share <= 1 if share is not None else None)


def drift(rows: list[Row]) -> Iterator[Bar]:
    """What faster arithmetic costs in quality."""
    losses = {row["precision"]: 0.0 for row in rows if isinstance(row.get("loss"), int | float)} or {"bfloat16": None}
    for precision in losses:
        worst = max((row["loss"] for row in rows if row.get("precision") == precision and "loss" in row), default=None)
        what = f"worst loss of NDCG@10 over collections, {precision}"
        shown = MISSING if worst is None else f"{worst + 0.0:.4f}"
        yield Bar(what, f"≤ {LOSS}", shown, worst <= LOSS if worst is not None else None)


def search(rows: list[Row]) -> Iterator[Bar]:
    """Ours against the peers, and after updates."""
    for documents, peer, most, recall in SEARCH:
        cell = searches.pick(rows, documents=documents, queries="short", k=10, state="fresh")
        own, rival = searches.ours(cell), searches.fastest(cell, peer, recall=recall)
        share = own["p50_ms"] / rival["p50_ms"] if own and rival else None
        at = f" at recall ≥ {recall:g}" if recall else ""
        what = f"search {size(documents)}, short, k = 10: time over {peer}'s{at}"
        yield Bar(what, f"≤ {most}", number(share), share <= most if share is not None else None)
    fresh, updated = (
        searches.ours(searches.pick(rows, documents=100_000, queries="short", k=10, state=state))
        for state in ("fresh", "updated")
    )
    share = updated["p50_ms"] / fresh["p50_ms"] if fresh and updated else None
    what = "search 100k after 20 % updated and 10 % deleted: times the fresh median"
    yield Bar(what, f"≤ {UPDATED}", number(share), share <= UPDATED if share is not None else None)


def stated(results: Results) -> Iterator[Bar]:
    """Bars that a benchmark states itself: rows with `bar` and `ok`. Search's are worked out here."""
    for section in results.sections.values():
        if section.name.startswith("search-"):
            continue
        for row in section.rows:
            bar = row.get("bar")
            if isinstance(row.get("ok"), bool) and bar is not None:
                what = row.get("metric") or row.get("cell") or row.get("bench") or section.name
                yield Bar(f"{section.name}: {what}", _promise(row, bar), _measured(row, str(what)), row["ok"])


FIGURES = (
    ("write", "write_documents_per_s"),
    ("restart", "restart_after_kill_s"),
    ("ingest", "share"),
    ("callers", "ratio"),
    ("health", "p99_ms"),
    ("", "value"),
    ("", "p50_ms"),
    ("", "documents_per_s"),
)
"""Which figure of a row its bar is about, by a word of its name; the first that the row has."""


def _promise(row: Row, bar: object) -> str:
    if not _is_figure(bar):
        return str(bar)
    return f"≤ {number(bar)} ms" if "p50_ms" in row else f"≥ {number(bar)}"


def _measured(row: Row, what: str) -> str:
    """Give the figure that a bar is about."""
    key = next((key for word, key in FIGURES if word in what and _is_figure(row.get(key))), "")
    unit = " ms" if key.endswith("_ms") else " s" if key.endswith("restart_after_kill_s") else ""
    return f"{number(row[key])}{unit}" if key else MISSING


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def losses(results: Results) -> list[str]:
    """Give every cell in which a peer was faster than us, as sentences."""
    return [*_encoder_losses(results.rows("encode")), *_search_losses(searches.timings(results))]


def _encoder_losses(rows: list[Row]) -> Iterator[str]:
    for model, shown in MODELS.items():
        for cell, work in CELLS.items():
            here = [row for row in rows if (row["model"], row["cell"]) == (model, cell)]
            best = min(
                (row for row in here if row["engine"] == "termwise"), key=lambda row: row["p50_ms"], default=None
            )
            for row in here:
                if best and row["engine"] != "termwise" and row["p50_ms"] < best["p50_ms"]:
                    yield (
                        f"{shown}, {work}: {name(row)} takes {number(row['p50_ms'])} ms, "
                        f"ours {number(best['p50_ms'])} ms ({best['precision']})"
                    )


def _search_losses(rows: list[Row]) -> Iterator[str]:
    cells = dict.fromkeys((row["documents"], row["queries"], row["k"], row.get("state", "fresh")) for row in rows)
    for documents, queries, k, state in cells:
        here = searches.pick(rows, documents=documents, queries=queries, k=k, state=state)
        own = searches.ours(here)
        for row in here:
            if own and not row["engine"].startswith(searches.OURS) and row["p50_ms"] < own["p50_ms"]:
                yield (
                    f"{size(documents)} documents, {queries} queries, k = {k}"
                    f"{', after updates' if state == 'updated' else ''}: {row['engine']} takes "
                    f"{number(row['p50_ms'])} ms at recall {row['recall']:.3f}, ours {number(own['p50_ms'])} ms, exact"
                )
