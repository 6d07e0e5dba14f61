"""Plots of the page. What is drawn is decided without matplotlib, so that the page can be checked without drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reporting import bars, searches
from reporting.text import name, number, size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reporting.results import Results, Row

COLOURS = {
    "termwise": "#c8551b",
    "sentence-transformers": "#8a8f98",
    "onnxruntime": "#4c78a8",
    "openvino": "#3a9d8f",
    "scipy": "#8a8f98",
    "lucene": "#4c78a8",
    "seismic": "#3a9d8f",
    "bmp": "#7d5ba6",
    "splade": "#b5a33c",
    "milvus": "#5fa8d3",
}
"""One colour an engine on every plot; ours stands out."""
SHADES = {"float32": 0.55, "bfloat16": 1.0, "int8": 0.8}
MARKS = {"termwise": "o", "scipy": "s", "lucene": "^", "seismic": "D", "bmp": "v", "splade": "P", "milvus": "X"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "termwise",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Figure:
    """A plot: the section that it stands in, its file, its text for who does not see it, and what draws it."""

    section: str
    file: str
    alt: str
    draw: Callable[[Any], None]


def plan(results: Results) -> list[Figure]:
    """Give the plots for which there are rows."""
    found = []
    encoded = results.rows("encode")
    if encoded:
        found.append(Figure("encode", "encoder.svg", _encoder_alt(encoded), lambda figure: _encoder(figure, encoded)))
    timed = [row for row in searches.timings(results) if row.get("state", "fresh") == "fresh"]
    sizes = list(dict.fromkeys(row["documents"] for row in timed))
    if len(sizes) > 1:
        shown = ", ".join(map(size, sizes))
        alt = f"Milliseconds a query against documents, {shown}, both scales logarithmic, an engine a line"
        found.append(Figure("search", "latency.svg", alt, lambda figure: _latency(figure, timed)))
    if timed:
        middle = 100_000 if 100_000 in sizes else sizes[-1]
        here = searches.pick(timed, documents=middle, k=10)
        alt = f"Recall against milliseconds a query at {size(middle)} documents, k = 10, a mark an engine and setting"
        found.append(Figure("search", "recall.svg", alt, lambda figure: _recall(figure, here)))
    built = [
        row
        for row in searches.builds(results)
        if row.get("memory_bytes_per_posting") or row.get("disk_bytes_per_posting")
    ]
    if built:
        most = max(row["documents"] for row in built)
        rows = [row for row in built if row["documents"] == most]
        alt = f"Bytes of memory and of disk a posting at {size(most)} documents, a pair of bars an engine"
        found.append(Figure("search", "bytes.svg", alt, lambda figure: _bytes(figure, rows)))
    ingest = [row for row in results.rows("ingest") if isinstance(row.get("documents_per_s"), int | float)]
    if ingest:
        told = ", ".join(f"{_label(row)} {number(row['documents_per_s'])}" for row in ingest)
        alt = f"Documents a second: {told}"
        found.append(Figure("ingest", "ingest.svg", alt, lambda figure: _ingest(figure, ingest)))
    return found


def draw(results: Results, folder: Path) -> None:
    """Draw every plot into a folder; plots that are no longer wanted go."""
    import matplotlib as mpl  # noqa: PLC0415 - needed to draw only
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415 - without pyplot nothing asks for a display

    wanted = plan(results)
    for old in folder.glob("*.svg"):
        if old.name not in {figure.file for figure in wanted}:
            old.unlink()
    with mpl.rc_context(STYLE):
        for each in wanted:
            canvas = Canvas(layout="constrained")
            each.draw(canvas)
            canvas.savefig(folder / each.file, metadata={"Date": None, "Creator": None}, transparent=False)
            text = (folder / each.file).read_text(encoding="utf-8")
            (folder / each.file).write_text(
                "".join(f"{line.rstrip()}\n" for line in text.splitlines()), encoding="utf-8"
            )


def _encoder_alt(rows: list[Row]) -> str:
    best = {}
    for row in rows:
        if row["engine"] == "termwise" and row["precision"] == "bfloat16":
            best[bars.MODELS[row["model"]], bars.CELLS[row["cell"]]] = row["ratio"]
    told = "; ".join(f"{model}, {cell} {number(ratio)}" for (model, cell), ratio in best.items())
    return (
        f"Times sentence-transformers' speed by engine and precision, a panel a kind of text. Ours in bfloat16: {told}"
    )


def _encoder(figure: Any, rows: list[Row]) -> None:
    """Bars: how many times faster than sentence-transformers; a panel a cell, a group a model."""
    models = [model for model in bars.MODELS if any(row["model"] == model for row in rows)]
    engines = [each for each in dict.fromkeys(name(row) for row in rows) if not each.startswith("sentence")]
    found = {(row["model"], row["cell"], name(row)): row["ratio"] for row in rows}
    figure.set_size_inches(9.5, 3.1)
    panels = figure.subplots(1, len(bars.CELLS))
    width = 0.84 / len(engines)
    for axes, (cell, title) in zip(panels, bars.CELLS.items(), strict=True):
        for place, engine in enumerate(engines):
            maker, precision = engine.split()
            x = [group + (place - (len(engines) - 1) / 2) * width for group in range(len(models))]
            y = [found.get((model, cell, engine), 0.0) for model in models]
            colour = _shade(COLOURS[maker], SHADES[precision])
            drawn = axes.bar(x, y, width * 0.92, color=colour, label=engine)
            if maker == "termwise":
                axes.bar_label(drawn, [f"{value:.1f}" if value else "" for value in y], fontsize=6, padding=1)
        for group, model in enumerate(models):
            bar = bars.ENCODER[cell][list(bars.MODELS).index(model)]
            axes.hlines(bar, group - 0.45, group + 0.45, color="#333333", linewidth=0.9, linestyle=":")
        axes.axhline(1, color="#8a8f98", linewidth=0.9)
        axes.set_title(title)
        axes.set_xticks(range(len(models)), [bars.MODELS[model].removesuffix(" shape") for model in models])
        axes.grid(visible=False, axis="x")
    panels[0].set_ylabel("times sentence-transformers' speed")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)


def _latency(figure: Any, rows: list[Row]) -> None:
    """Lines: milliseconds against documents, k = 10; an engine in its fastest setting of enough recall."""

    def draw_engine(axes: Any, engine: str, here: list[Row]) -> None:
        points = []
        for documents in sorted({row["documents"] for row in here}):
            cell = searches.pick(here, documents=documents)
            row = searches.ours(cell) if engine == searches.OURS else None
            row = row or searches.fastest(cell, engine, recall=searches.RECALL) or searches.fastest(cell, engine)
            if row:
                points.append((documents, row["p50_ms"]))
        axes.plot(*zip(*points, strict=True), label=engine, **_line(engine))

    panels = _panels(figure, searches.pick(rows, k=10), draw_engine)
    for kind, axes in panels.items():
        axes.set_yscale("log")
        axes.set_title(f"{kind} queries, k = 10")
        axes.set_xlabel("documents")
    next(iter(panels.values())).set_ylabel("ms a query (median)")


def _recall(figure: Any, rows: list[Row]) -> None:
    """Marks: recall against milliseconds, every engine in every setting."""

    def draw_engine(axes: Any, engine: str, here: list[Row]) -> None:
        own = [row for row in here if _family(row["engine"]) == engine]
        style = _line(engine) | {"linestyle": "none"}
        axes.plot([row["p50_ms"] for row in own], [row["recall"] for row in own], label=engine, **style)

    panels = _panels(figure, rows, draw_engine)
    for kind, axes in panels.items():
        axes.set_title(f"{kind} queries")
        axes.set_xlabel("ms a query (median)")
    next(iter(panels.values())).set_ylabel("recall")


def _panels(figure: Any, rows: list[Row], draw_engine: Callable[[Any, str, list[Row]], None]) -> dict[str, Any]:
    """Draw every engine of rows on a panel a kind of query, one legend beside them; give the panels by kind."""
    kinds = list(dict.fromkeys(row["queries"] for row in rows))
    figure.set_size_inches(8.5, 3.4)
    panels = dict(zip(kinds, figure.subplots(1, len(kinds), squeeze=False)[0], strict=True))
    for kind, axes in panels.items():
        here = searches.pick(rows, queries=kind)
        for engine in _families(here):
            draw_engine(axes, engine, here)
        axes.set_xscale("log")
    handles, labels = panels[kinds[0]].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return panels


def _bytes(figure: Any, rows: list[Row]) -> None:
    """Bars: bytes a posting in memory and on disk."""
    axes = _lying_axes(figure, 0.9 + 0.38 * len(rows), [row["engine"] for row in rows], "bytes a posting")
    for place, (key, title) in enumerate((("memory_bytes_per_posting", "memory"), ("disk_bytes_per_posting", "disk"))):
        y = [number_ + (place - 0.5) * 0.38 for number_ in range(len(rows))]
        values = [row.get(key) or 0.0 for row in rows]
        drawn = axes.barh(y, values, 0.34, label=title, color="#4c78a8" if place else "#c8551b")
        axes.bar_label(drawn, [f"{value:.1f}" if value else "" for value in values], fontsize=7, padding=2)
    axes.legend()


def _ingest(figure: Any, rows: list[Row]) -> None:
    """Bars: documents a second."""
    axes = _lying_axes(figure, 0.8 + 0.32 * len(rows), [_label(row) for row in rows], "documents a second")
    values = [row["documents_per_s"] for row in rows]
    drawn = axes.barh(range(len(rows)), values, 0.6, color=COLOURS["termwise"])
    axes.bar_label(drawn, [f"{value:,.0f}" for value in values], fontsize=7, padding=2)


def _lying_axes(figure: Any, height: float, names: list[str], unit: str) -> Any:
    """Make axes for bars that lie, the first name on top."""
    figure.set_size_inches(7, height)
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.grid(visible=False, axis="y")
    return axes


def _label(row: Row) -> str:
    return str(row.get("cell") or row.get("metric") or row.get("engine") or row.get("bench"))


def _family(engine: str) -> str:
    """Give the engine without its setting; the service is not the engine in process."""
    return engine if engine.startswith("termwise") else engine.split(maxsplit=1)[0].split("-", maxsplit=1)[0]


def _families(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(_family(row["engine"]) for row in rows))


def _line(engine: str) -> dict[str, Any]:
    key = next((each for each in COLOURS if engine.startswith(each)), "")
    own = engine.startswith("termwise")
    return {
        "color": COLOURS.get(key, "#444444"),
        "marker": MARKS.get(key, "*"),
        "markersize": 5,
        "linewidth": 2 if own else 1.2,
        "linestyle": "--" if engine == "termwise grpc" else "-",
        "zorder": 3 if own else 2,
    }


def _shade(colour: str, share: float) -> str:
    """Mix a colour with white."""
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - part) * share):02x}" for part in parts)
