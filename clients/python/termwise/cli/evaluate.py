"""`termwise eval`: how well a collection's queries are answered, lexically, semantically and fused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import TYPE_CHECKING, Annotated, Any

import typer

from termwise.cli.beir import Collection, read_collection
from termwise.cli.connect import connected
from termwise.cli.indices import bulk_with_bar
from termwise.cli.local_server import local_server
from termwise.cli.options import Format, FormatOption
from termwise.cli.output import count_progress, make_table, markdown_table, print_json, stdout
from termwise.cli.plots import check_plot, plot_quality
from termwise.cli.precision import Precision
from termwise.cli.workspace import TEXT_FIELD, VECTOR_FIELD, workspace
from termwise.client import Client, Document, FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Callable

DEPTH = 100
"""Hits a query: what Recall@100 needs."""
WINDOW = 1_000
"""Hits that each list gives to a fusion."""
CONCURRENT_QUERIES = 4
"""Queries under way at once: two processors stay busy."""


Run = dict[str, list[str]]
"""Ids of the hits, best first, by query id."""


def _lexical(text: str) -> dict[str, Any]:
    return {"match": {"field": TEXT_FIELD, "text": text}}


def _semantic(text: str) -> dict[str, Any]:
    return {"text_expansion": {"field": VECTOR_FIELD, "text": text}}


def _lists(text: str) -> list[dict[str, Any]]:
    return [{"retriever": {"standard": {"query": query}}} for query in (_lexical(text), _semantic(text))]


def _rrf(text: str) -> dict[str, Any]:
    return {"rrf": {"retrievers": _lists(text), "rank_constant": 60, "rank_window_size": WINDOW}}


def _linear(text: str) -> dict[str, Any]:
    lists = [each | {"weight": 0.5} for each in _lists(text)]
    return {"linear": {"retrievers": lists, "normalizer": "NORMALIZER_MAX", "rank_window_size": WINDOW}}


SYSTEMS: dict[str, Callable[[str], dict[str, Any]]] = {
    "bm25": lambda text: {"query": _lexical(text)},
    "sparse": lambda text: {"query": _semantic(text)},
    "rrf": lambda text: {"retriever": _rrf(text)},
    "linear": lambda text: {"retriever": _linear(text)},
}
"""What is compared, and how each searches. `linear` is the mean of both lists, each divided by its best score."""


def evaluate(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="A folder in BEIR's layout.")],
    address: Annotated[
        str | None,
        typer.Option("--address", envvar="TERMWISE_ADDRESS", help="Address of a server; by default one is started."),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(help="Arithmetic of the server that is started; float32 gives the same on any processor."),
    ] = Precision.FLOAT32,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw NDCG@10 by collection into an SVG, PNG or PDF.")
    ] = None,
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print NDCG@10 by collection as Markdown.")] = False,
    style: FormatOption = Format.TABLE,
) -> None:
    """Measure retrieval on collections: BM25, sparse, and both fused by rank (rrf) and by score (linear).

    The documents go into an index of their own, which is removed afterwards.
    """
    measure = _measures()
    if plot is not None:
        check_plot(plot)
    collections = [read_collection(folder) for folder in folders]
    server = nullcontext(address) if address else local_server("--precision", precision.value)
    measured: list[dict[str, Any]] = []
    with server as at, connected(at) as client:
        for collection in collections:
            rows = [row | measure(collection, run) | _size(collection) for row, run in runs(client, collection)]
            measured += rows
            if not markdown or style is Format.JSON:
                _print(collection, rows, style)
    if markdown and style is not Format.JSON:
        print(quality_table(measured))
    if plot is not None:
        plot_quality(measured, plot)


def runs(client: Client, collection: Collection) -> list[tuple[dict[str, Any], Run]]:
    """Index a collection and run every system over its queries: for each its name and its hits."""
    with workspace(client, "eval") as place:
        documents = (Document({TEXT_FIELD: text}, key) for key, text in collection.documents.items())
        report = bulk_with_bar(client, place.index, documents, len(collection.documents))
        if report.failures:
            first = report.failures[0]
            raise FailedPreconditionError(
                f'{len(report.failures)} documents could not be indexed; "{first.id}": {first.error.message}'
            )
        found = []
        with count_progress("queries") as progress, ThreadPoolExecutor(CONCURRENT_QUERIES) as pool:
            for system, build in SYSTEMS.items():
                task = progress.add_task(f"{collection.name} {system}", total=len(collection.queries), rate=0.0)

                def ask(text: str, build: Callable[[str], dict[str, Any]] = build) -> list[str]:
                    return [hit.id for hit in client.search(place.index, **build(text), size=DEPTH, source=False)]

                run: Run = {}
                for key, hits in zip(collection.queries, pool.map(ask, collection.queries.values()), strict=True):
                    run[key] = hits
                    progress.update(task, advance=1, rate=progress.tasks[task].speed or 0.0)
                found.append(({"collection": collection.name, "system": system}, run))
        return found


def _measures() -> Callable[[Collection, Run], dict[str, float]]:
    """Give what measures a run. Raises FailedPreconditionError where ir-measures is not installed."""
    try:
        import ir_measures  # noqa: PLC0415 - an extra
        from ir_measures import RR, R, nDCG  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise FailedPreconditionError("termwise eval needs ir-measures; run: pip install 'termwise[eval]'") from error
    names = {nDCG @ 10: "ndcg@10", R @ 100: "recall@100", RR @ 10: "mrr@10"}

    def measure(collection: Collection, run: Run) -> dict[str, float]:
        # Tools sort by score and break ties in their own ways; scores that fall by rank keep the order of the answer.
        scored = {key: {hit: float(len(hits) - rank) for rank, hit in enumerate(hits)} for key, hits in run.items()}
        sums = dict.fromkeys(names.values(), 0.0)
        for metric in ir_measures.iter_calc(list(names), collection.judgements, scored):
            sums[names[metric.measure]] += metric.value
        return {name: round(total / len(collection.judgements), 6) for name, total in sums.items()}

    return measure


def _size(collection: Collection) -> dict[str, int]:
    return {"queries": len(collection.queries), "documents": len(collection.documents)}


def quality_table(rows: list[dict[str, Any]]) -> str:
    """Give NDCG@10 in Markdown: a line a collection, a column a system, the best of a line in bold; and their means."""
    systems = list(dict.fromkeys(row["system"] for row in rows))
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        scores.setdefault(row["collection"], {})[row["system"]] = row["ndcg@10"]
    if len(scores) > 1:
        complete = list(scores.values())
        scores["mean"] = {system: sum(each[system] for each in complete) / len(complete) for system in systems}
    lines = []
    for name, found in scores.items():
        best = max(round(value, 3) for value in found.values())
        shown = (f"{found[system]:.3f}".removeprefix("0") for system in systems)
        lines.append([name, *(f"**{text}**" if float(text) == best else text for text in shown)])
    return markdown_table(["NDCG@10", *systems], lines)


def _print(collection: Collection, rows: list[dict[str, Any]], style: Format) -> None:
    if style is Format.JSON:
        for row in rows:
            print_json(row)
        return
    title = f"{collection.name}: {len(collection.documents):,} documents, {len(collection.queries):,} queries"
    table = make_table("SYSTEM", "NDCG@10", "RECALL@100", "MRR@10", title=title)
    for row in rows:
        table.add_row(row["system"], *(f"{row[name]:.4f}" for name in ("ndcg@10", "recall@100", "mrr@10")))
    stdout().print(table)
