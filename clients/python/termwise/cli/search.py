"""`termwise search` and `termwise expand`."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from typing import Annotated

import typer
from rich.text import Text

from termwise.cli.connect import connected
from termwise.cli.options import DEFAULT_ADDRESS, JSON_HELP, Address, Format, FormatOption, read_json
from termwise.cli.output import bar, make_table, print_json, stdout
from termwise.client import Client, FailedPreconditionError, Hit, SearchResult, SparseVector
from termwise.v1.trained_models_pb2 import Deployment

EXCERPT = 100
"""Characters of a hit's body in a table."""
PREFERRED_DEPLOYMENT = "for_search"
"""Expands texts where the command names no deployment and several run."""


class InputType(StrEnum):
    """Which side of the model reads a text."""

    QUERY = "query"
    DOCUMENT = "document"


def search(  # noqa: PLR0913 - one option a setting
    index: Annotated[str, typer.Argument(metavar="INDEX", help="The index.")],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Words to look for, over all fields.")] = None,
    query: Annotated[str | None, typer.Option(help=f"A Query instead: {JSON_HELP}")] = None,
    retriever: Annotated[str | None, typer.Option(help=f"A Retriever instead: {JSON_HELP}")] = None,
    field: Annotated[
        list[str] | None, typer.Option(help='With TEXT: a field to search, "field^2" for a weight.')
    ] = None,
    size: Annotated[int, typer.Option(help="Most hits.")] = 10,
    offset: Annotated[int, typer.Option(help="Hits to leave out at the start.")] = 0,
    min_score: Annotated[float | None, typer.Option(help="Drop hits with a lower score.")] = None,
    source_include: Annotated[list[str] | None, typer.Option(help="Part of the body to show.")] = None,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Search an index: TEXT lexically and semantically at once, or a query or a retriever in JSON."""
    if sum(each is not None for each in (text, query, retriever)) > 1:
        raise typer.BadParameter("give one of TEXT, --query and --retriever")
    if field and text is None:
        raise typer.BadParameter("goes with TEXT; a query names its own fields", param_hint="--field")
    queried, retrieved = read_json(query, "--query"), read_json(retriever, "--retriever")
    with connected(address) as client:
        result = client.search(
            index,
            text,
            query=queried,
            retriever=retrieved,
            fields=field or (),
            size=size,
            offset=offset,
            min_score=min_score,
            source_includes=source_include or (),
        )
    if style is Format.JSON:
        print_json(dataclasses.asdict(result))
    else:
        _print_hits(result, offset)


def expand(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text.")],
    deployment: Annotated[
        str, typer.Option(help=f"The deployment; by default {PREFERRED_DEPLOYMENT} or the only one.")
    ] = "",
    input_type: Annotated[InputType, typer.Option(help="Which side of the model reads it.")] = InputType.QUERY,
    top: Annotated[int, typer.Option(min=1, help="Heaviest tokens to show.")] = 20,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Show the weighted tokens that a model makes of a text."""
    with connected(address) as client:
        chosen = deployment or _only_deployment(client)
        vector = client.expand(chosen, text, input_type=input_type.value)
    if style is Format.JSON:
        shown = vector.top(top)
        fields = {"text": text, "deployment_id": chosen, "input_type": input_type.value, "token_count": len(vector)}
        print_json(fields | {"tokens": shown.tokens, "weights": shown.weights})
        return
    print_expansion(vector, top)


def print_expansion(vector: SparseVector, top: int) -> None:
    """Print the heaviest tokens with bars."""
    table = make_table("TOKEN", "WEIGHT", "")
    shown = vector.top(top)
    for token, weight in zip(shown.tokens, shown.weights, strict=True):
        table.add_row(Text(token), f"{weight:.3f}", Text(bar(weight / shown.weights[0]), style="cyan"))
    console = stdout()
    console.print(table)
    console.print(Text(f"{len(shown)} of {len(vector)} tokens", style="dim"))


def _only_deployment(client: Client) -> str:
    started = [each.deployment_id for each in client.deployments.list() if each.state == Deployment.STATE_STARTED]
    if PREFERRED_DEPLOYMENT in started:
        return PREFERRED_DEPLOYMENT
    if len(started) == 1:
        return started[0]
    if not started:
        raise FailedPreconditionError("no deployment is started; run: termwise deployments start MODEL_ID")
    raise FailedPreconditionError(
        f"several deployments are started; choose one with --deployment: {', '.join(started)}"
    )


def _print_hits(result: SearchResult, offset: int) -> None:
    table = make_table("RANK", "SCORE", "ID", "SOURCE")
    for rank, hit in enumerate(result, offset + 1):
        table.add_row(str(rank), f"{hit.score:.4f}", Text(hit.id), Text(excerpt(hit)))
    console = stdout()
    console.print(table)
    found = f"{'' if result.total_is_exact else 'at least '}{result.total:,} found"
    exact = "exact" if result.is_exact else f"scores within {result.max_score_error:.4g}"
    console.print(Text(f"{found}, {exact}, {result.timings.total * 1000:.1f} ms", style="dim"))


def excerpt(hit: Hit) -> str:
    """Give the start of a hit's texts, or of its body where it has none."""
    texts = [value for value in hit.source.values() if isinstance(value, str)]
    whole = " ".join(" · ".join(texts).split()) or json.dumps(hit.source, ensure_ascii=False)
    return whole if len(whole) <= EXCERPT else f"{whole[: EXCERPT - 1]}…"
