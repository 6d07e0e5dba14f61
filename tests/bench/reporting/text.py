"""Figures and tables as a page shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MISSING = "-"
"""What stands where nothing was measured."""


def number(value: Any) -> str:
    """Give a figure with three digits that mean something, thousands apart; MISSING for none."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{decimals}f}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Give a table in Markdown; the first column is aligned left, the others right."""
    lines = [headings, ["---", *("---:" for _ in headings[1:])], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def plain_table(rows: Sequence[dict[str, Any]], *, without: Iterable[str] = ()) -> str:
    """Give a table of rows as they are: a column a key, in the order in which keys appear."""
    left_out = {"bench", *without}
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in left_out))
    keys = [key for key in keys if any(row.get(key) is not None for row in rows)]
    return table([key.replace("_", " ") for key in keys], [[_cell(key, row.get(key)) for key in keys] for row in rows])


def _cell(key: str, value: Any) -> str:
    """Give a figure; shares and cosines, whose differences are small, with four decimals."""
    if isinstance(value, float) and key.startswith(("ndcg", "loss", "worst_cosine")):
        return f"{value + 0.0:.4f}"
    return number(value)


def size(documents: int) -> str:
    """Name a number of documents: 10k, 100k, 1M."""
    return f"{documents // 1_000_000}M" if documents % 1_000_000 == 0 else f"{documents // 1000}k"


def name(row: dict[str, Any]) -> str:
    """Name an encoder: engine and precision."""
    return f"{row['engine']} {row['precision']}"
