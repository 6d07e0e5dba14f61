"""Plots of `termwise eval`. matplotlib is an extra, imported only where a plot is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from termwise.client import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = {"bm25": "#9aa5b1", "sparse": "#2f6f9f", "rrf": "#7fb069", "linear": "#d1793a"}
"""Colours of systems; told apart in print and by most eyes."""
FORMATS = frozenset({".svg", ".png", ".pdf"})


def check_plot(file: Path) -> None:
    """Raise InvalidArgumentError for a file of another kind, FailedPreconditionError where matplotlib is missing."""
    if file.suffix.lower() not in FORMATS:
        raise InvalidArgumentError(f'--plot: "{file.name}" must end in {", ".join(sorted(FORMATS))}')
    try:
        import matplotlib as _  # noqa: F401, ICN001, PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise FailedPreconditionError("--plot needs matplotlib; run: pip install 'termwise[plot]'") from error


def plot_quality(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw NDCG@10 as bars, a group a collection and a bar a system, with the figure above. Raises as `check_plot`."""
    check_plot(file)
    import matplotlib as mpl  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415 - without pyplot nothing asks for a display

    collections = list(dict.fromkeys(row["collection"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    scores = {(row["collection"], row["system"]): row["ndcg@10"] for row in rows}
    width = 0.8 / len(systems)
    # Text stays text, and ids do not change between runs.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "termwise", "font.size": 9}):
        figure = Figure(figsize=(1.6 + 1.7 * len(collections), 3.2), layout="constrained")
        axes = figure.subplots()
        for number, system in enumerate(systems):
            places = [group + (number - (len(systems) - 1) / 2) * width for group in range(len(collections))]
            values = [scores.get((collection, system), 0.0) for collection in collections]
            bars = axes.bar(places, values, width * 0.92, label=system, color=COLOURS.get(system, "#777777"))
            axes.bar_label(bars, [f"{value:.3f}".removeprefix("0") for value in values], fontsize=7, padding=1)
        axes.set_xticks(range(len(collections)), collections)
        axes.set_ylabel("NDCG@10")
        axes.set_ylim(0, min(1.0, max(scores.values(), default=1.0) * 1.2 + 0.01))
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=len(systems), frameon=False)
        figure.savefig(file, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)
