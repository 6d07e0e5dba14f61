"""`termwise indices`."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from termwise.cli.connect import connected
from termwise.cli.options import DEFAULT_ADDRESS, JSON_HELP, Address, Format, FormatOption, read_json, read_text
from termwise.cli.output import count_progress, fail, print_done, print_fields, print_json, print_list, print_one
from termwise.client import BulkProgress, BulkReport, Client, Document, InvalidArgumentError, SparseVector, WriteResult
from termwise.v1.indices_pb2 import Index

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

app = typer.Typer(no_args_is_help=True, help="Make indices and write documents.")

IndexName = Annotated[str, typer.Argument(metavar="INDEX", help="The index.")]
DocumentId = Annotated[str, typer.Argument(metavar="ID", help="The document's id.")]
Pipeline = Annotated[str, typer.Option(help='The pipeline; by default the index\'s; "_none": none.')]
SHOWN_FAILURES = 10
"""Failures of a bulk write that are printed; the rest is counted."""


@app.command("create")
def create(
    index: IndexName,
    mapping: Annotated[str | None, typer.Option(help=f"A Mapping: {JSON_HELP}")] = None,
    settings: Annotated[str | None, typer.Option(help=f"IndexSettings: {JSON_HELP}")] = None,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Make an index."""
    body, more = read_json(mapping, "--mapping"), read_json(settings, "--settings")
    with connected(address) as client:
        print_one(client.indices.create(index, mapping=body, settings=more), style)


@app.command("get")
def get(index: IndexName, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """Show one index."""
    with connected(address) as client:
        print_one(client.indices.get(index), style)


@app.command("list")
def list_all(address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """List indices."""
    with connected(address) as client:
        indices = client.indices.list()
    columns = (
        ("INDEX", lambda each: each.name),
        ("STATE", lambda each: Index.State.Name(each.state).removeprefix("STATE_").lower()),
        ("STORAGE", lambda each: each.settings.storage),
        ("PIPELINE", lambda each: each.settings.default_pipeline),
        ("FIELDS", lambda each: ", ".join(f"{n} ({f.WhichOneof('kind')})" for n, f in each.mapping.properties.items())),
    )
    print_list(indices, columns, style)


@app.command("delete")
def delete(index: IndexName, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """Delete an index and its documents."""
    with connected(address) as client:
        client.indices.delete(index)
    print_done(f'Index "{index}" is deleted.', {"index": index, "deleted": True}, style)


@app.command("stats")
def stats(index: IndexName, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """Count an index: documents, bytes, tokens."""
    with connected(address) as client:
        print_one(client.indices.stats(index), style, index=index)


@app.command("put-document")
def put_document(
    index: IndexName,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=f"The body: {JSON_HELP}")],
    identifier: Annotated[str, typer.Option("--id", help="The document's id; by default the server makes one.")] = "",
    pipeline: Pipeline = "",
    *,
    create_only: Annotated[bool, typer.Option("--create", help="The document must not exist.")] = False,
    if_version: Annotated[int | None, typer.Option(help="Write only over this version; 0: over none.")] = None,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Write one document."""
    body = read_text(source, "SOURCE")
    with connected(address) as client:
        result = client.indices.put_document(
            index, body, id=identifier, pipeline=pipeline, create=create_only, if_version=if_version
        )
    _print_write(result, style)


@app.command("get-document")
def get_document(
    index: IndexName,
    identifier: DocumentId,
    sparse_vector: Annotated[list[str] | None, typer.Option(help='A sparse vector field to show; "*": all.')] = None,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Show one document."""
    with connected(address) as client:
        document = client.indices.get_document(index, identifier, include_sparse_vectors=sparse_vector or ())
    fields = document_fields(document)
    if style is Format.JSON:
        print_json(fields)
    else:
        print_fields(fields)


@app.command("delete-document")
def delete_document(
    index: IndexName, identifier: DocumentId, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE
) -> None:
    """Delete one document."""
    with connected(address) as client:
        _print_write(client.indices.delete_document(index, identifier), style)


@app.command("bulk")
def bulk(
    index: IndexName,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A document's body on each line, as JSON; - for stdin.")],
    id_field: Annotated[str, typer.Option(help="Top-level field to take a document's id from, and out of it.")] = "_id",
    pipeline: Pipeline = "",
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Write the documents of a JSON Lines file."""
    started = time.perf_counter()
    with connected(address) as client:
        if file == "-":
            report = bulk_with_bar(client, index, _documents(sys.stdin, "-", id_field), None, pipeline)
        else:
            with Path(file).open(encoding="utf-8") as counted:
                total = sum(1 for line in counted if line.strip())
            with Path(file).open(encoding="utf-8") as lines:
                report = bulk_with_bar(client, index, _documents(lines, file, id_field), total, pipeline)
    fields: dict[str, Any] = {
        "index": index,
        "created": report.created,
        "updated": report.updated,
        "failed": len(report.failures),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if style is Format.JSON:
        failures = [{"position": f.position, "id": f.id, "error": f.error.message} for f in report.failures]
        print_json(fields | {"failures": failures})
    else:
        print_fields(fields)
    if report.failures:
        if style is not Format.JSON:
            for failure in report.failures[:SHOWN_FAILURES]:
                fail(f'document {failure.position + 1} ("{failure.id}"): {failure.error.message}')
        raise typer.Exit(1)


def bulk_with_bar(
    client: Client, index: str, documents: Iterable[Document], total: int | None, pipeline: str = ""
) -> BulkReport:
    """Write documents with a progress bar and their rate. Failures are in the report."""
    with count_progress("documents") as progress:
        task = progress.add_task(f"indexing into {index}", total=total, rate=0.0)
        started = time.perf_counter()

        def show(state: BulkProgress) -> None:
            rate = state.acknowledged / max(time.perf_counter() - started, 1e-9)
            progress.update(task, completed=state.acknowledged, rate=rate)

        return client.indices.bulk(index, documents, pipeline=pipeline, on_progress=show, raise_on_failure=False)


def _documents(lines: TextIO, name: str, id_field: str) -> Iterator[Document]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
        except ValueError as error:
            raise InvalidArgumentError(f"{name}, line {number}: not JSON: {error}") from error
        if not isinstance(body, dict):
            raise InvalidArgumentError(f"{name}, line {number}: expected a JSON object.")
        identifier = body.pop(id_field, "")
        yield Document(body, identifier if isinstance(identifier, str) else json.dumps(identifier))


def document_fields(document: Document) -> dict[str, Any]:
    """Give a document as JSON; its version where it has one."""
    fields: dict[str, Any] = {"id": document.id, "source": document.source}
    if document.version:
        fields["version"] = document.version
    if document.sparse_vectors:
        fields["sparse_vectors"] = {
            field: dataclasses.asdict(SparseVector.of(vector)) for field, vector in document.sparse_vectors.items()
        }
    return fields


def _print_write(result: WriteResult, style: Format) -> None:
    fields = {"id": result.id, "version": result.version, "result": result.result}
    print_done(f'Document "{result.id}" is {result.result}, version {result.version}.', fields, style)
