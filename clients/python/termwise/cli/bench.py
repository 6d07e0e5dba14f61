"""`termwise bench`: measurements that an operator makes on a machine of their own."""

from __future__ import annotations

import re
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from termwise.cli.connect import connected
from termwise.cli.hardware import CELLS, Combination, default_combinations, measure
from termwise.cli.local_server import local_server
from termwise.cli.models import download_with_bar, upload_with_bar
from termwise.cli.options import Format, FormatOption
from termwise.cli.output import make_table, markdown_table, print_json, stdout, step_progress
from termwise.cli.precision import Precision
from termwise.cli.stand_in import SHAPES, make_stand_in, make_vocabulary
from termwise.cli.stdlib_docs import entries
from termwise.client import Client, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(no_args_is_help=True, help="Measure this machine.")


@app.callback()
def group() -> None:
    """Measure this machine."""


@app.command("hardware")
def hardware(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model's id (.splade_tiny), a folder, or a stand-in with random weights: bert-base, minilm.",
        ),
    ] = "bert-base",
    combination: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AxT", help="Allocations x threads, such as 2x1; may be repeated. By default by processors."
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the model.")] = Precision.AUTO,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time of each of the four cells of a combination.")] = 5.0,
    address: Annotated[
        str | None,
        typer.Option("--address", envvar="TERMWISE_ADDRESS", help="Address of a server; by default one is started."),
    ] = None,
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    style: FormatOption = Format.TABLE,
) -> None:
    """Measure a model by allocations and threads: ELSER's hardware table for this machine.

    512-token documents: milliseconds a call of one, documents a second with all allocations busy. Queries of about 9
    and about 200 tokens: milliseconds a query, one at a time. Everything goes through a server, over loopback.
    """
    combinations = [_combination(text) for text in combination] if combination else default_combinations()
    with ExitStack() as stack:
        at = address or stack.enter_context(local_server())
        client = stack.enter_context(connected(at))
        model_id = stack.enter_context(_model(client, model))
        progress = stack.enter_context(step_progress())
        steps = len(combinations) * (len(CELLS) + 1)
        task = progress.add_task("starting", total=steps, completed=-1)

        def step(name: str) -> None:
            progress.update(task, description=name, advance=1)

        labels = {"model": _shown(model), "random_weights": model in SHAPES}
        rows = []
        for measured in measure(
            client, model_id, combinations, precision=precision.value, seconds=seconds, on_cell=step
        ):
            rows.append(measured | labels)
            if style is Format.JSON:
                print_json(rows[-1])  # now: who waits for the last one may run out of time
        progress.update(task, description="done", completed=steps)
    if style is Format.JSON:
        return
    if markdown:
        print(markdown_table(HEADINGS, [_cells(row) for row in rows]))
    else:
        table = make_table(*HEADINGS, title=_title(rows[0]))
        for row in rows:
            table.add_row(*_cells(row))
        stdout().print(table)


HEADINGS = (
    "ALLOCATIONS x THREADS",
    "MS/CALL (512 TOKENS)",
    "DOCUMENTS/S",
    "MS/QUERY (SHORT)",
    "MS/QUERY (200 TOKENS)",
)


def _title(row: dict[str, Any]) -> str:
    random = ", random weights" if row["random_weights"] else ""
    return f"{row['model']}{random}, {row['precision']}, {row['processors']} processors; medians and quartiles"


def _cells(row: dict[str, Any]) -> list[str]:
    def latency(name: str) -> str:
        p50, p25, p75 = (row[f"{name}_p{each}_ms"] for each in (50, 25, 75))
        return f"{p50:,.1f} ({p25:,.1f} to {p75:,.1f})"

    return [
        f"{row['allocations']} x {row['threads']}",
        latency("call"),
        f"{row['documents_per_s']:,.1f}",
        latency("short_query"),
        latency("long_query"),
    ]


def _shown(model: str) -> str:
    """Name a model without the place of its folder."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _combination(text: str) -> Combination:
    match = re.fullmatch(r"(\d{1,2})\s*[x*]\s*(\d{1,2})", text)
    if not match:
        raise typer.BadParameter(f'"{text}" is no combination; write allocations x threads, such as 2x1')
    return Combination(int(match[1]), int(match[2]))


@contextmanager
def _model(client: Client, model: str) -> Iterator[str]:
    """Give the id of a model on the server: one that it has, a packaged one, a folder's, or a stand-in made for it."""
    if model not in SHAPES and not Path(model).is_dir():
        try:
            client.models.get(model)
        except NotFoundError:
            client.models.put(model)
        download_with_bar(client, model)
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="termwise-") as scratch:
        folder = Path(model).resolve()
        if model in SHAPES:
            vocabulary = make_vocabulary(entry.text for entry in entries())
            folder = make_stand_in(Path(scratch) / "model", SHAPES[model], vocabulary)
        identifier = f"bench-hardware-{Path(scratch).name.lower()}"
        # The server may be on another machine, or see no folder of this one.
        client.models.put(identifier)
        try:
            upload_with_bar(client, identifier, folder)
            yield identifier
        finally:
            client.models.delete(identifier)
