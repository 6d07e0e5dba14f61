"""What the commands print: tables and JSON on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from termwise.cli.options import Format
from termwise.client.parsing import to_plain

if TYPE_CHECKING:
    from google.protobuf.message import Message

PIPE_WIDTH = 160
"""Columns of a table where the output is no terminal and COLUMNS is not set."""

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Any], str]]
"""A heading, and what stands under it."""


def stdout() -> Console:
    """Give the console of standard output, as it is now (tests replace it)."""
    return _console(Console(file=sys.stdout, highlight=False))


def stderr() -> Console:
    """Give the console of standard error."""
    return _console(Console(file=sys.stderr, highlight=False))


def _console(console: Console) -> Console:
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    return console


def print_json(value: Row) -> None:
    """Print one JSON object on a line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def print_list(messages: Iterable[Message], columns: Sequence[Column], style: Format) -> None:
    """Print messages: as a table, or one JSON object a line."""
    if style is Format.JSON:
        for message in messages:
            print_json(to_plain(message))
        return
    table = make_table(*(heading for heading, _ in columns))
    for message in messages:
        table.add_row(*(Text(cell(message)) for _, cell in columns))
    stdout().print(table)


def print_one(message: Message, style: Format, **more: Any) -> None:
    """Print one message: as a table of its fields, or one JSON object. `more` goes before its own fields."""
    plain = {**more, **to_plain(message)}
    if style is Format.JSON:
        print_json(plain)
        return
    print_fields(plain)


def print_fields(fields: Row) -> None:
    """Print a table of names and values; objects are indented JSON."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in fields.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
        table.add_row(Text(name, style="bold"), Text(shown))
    stdout().print(table)


def print_done(sentence: str, fields: Row, style: Format) -> None:
    """Print what a command did that has nothing to show."""
    if style is Format.JSON:
        print_json(fields)
    else:
        stdout().print(Text(sentence))


def make_table(*headings: str, title: str | None = None) -> Table:
    """Make an empty table with headings."""
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    return table


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Give a table in Markdown; the first column is aligned left, the others right."""
    lines = [headings, ["---", *("---:" for _ in headings[1:])], *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def bar(share: float, width: int = 40) -> str:
    """Give a bar of `width` characters for 1, in steps of an eighth of a character."""
    eighths = max(1, round(share * width * 8))
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def bytes_progress() -> Progress:
    """Make a progress bar for bytes, on standard error."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(), console=stderr()
    )


def count_progress(unit: str) -> Progress:
    """Make a progress bar for things that are counted, with their rate, on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]:,.0f}} {unit}/s"),
        TimeElapsedColumn(),
        console=stderr(),
    )


def step_progress() -> Progress:
    """Make a progress bar for steps that take about as long as one another, on standard error."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=stderr()
    )


def fail(message: str) -> None:
    """Print one line on standard error."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
