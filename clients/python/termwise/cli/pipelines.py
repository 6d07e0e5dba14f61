"""`termwise pipelines`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from termwise.cli.connect import connected
from termwise.cli.indices import document_fields
from termwise.cli.options import DEFAULT_ADDRESS, JSON_HELP, Address, Format, FormatOption, read_json
from termwise.cli.output import make_table, print_done, print_json, print_one, stdout
from termwise.client.parsing import to_plain

if TYPE_CHECKING:
    from termwise.client import Simulation, SimulationStep

app = typer.Typer(no_args_is_help=True, help="Store and try ingest pipelines.")

PipelineId = Annotated[str, typer.Argument(metavar="PIPELINE_ID", help="The pipeline's id.")]


@app.command("put")
def put(
    pipeline_id: PipelineId,
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help=f"An IngestPipeline: {JSON_HELP}")],
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Store a pipeline, or replace one."""
    body = read_json(pipeline, "PIPELINE") or {}
    with connected(address) as client:
        print_one(client.pipelines.put(pipeline_id, body), style, pipeline_id=pipeline_id)


@app.command("get")
def get(pipeline_id: PipelineId, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """Show one pipeline."""
    with connected(address) as client:
        print_one(client.pipelines.get(pipeline_id), style, pipeline_id=pipeline_id)


@app.command("list")
def list_all(address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """List pipelines."""
    with connected(address) as client:
        pipelines = client.pipelines.list()
    if style is Format.JSON:
        for pipeline_id, pipeline in pipelines.items():
            print_json({"pipeline_id": pipeline_id, **to_plain(pipeline)})
        return
    table = make_table("PIPELINE", "PROCESSORS", "DESCRIPTION")
    for pipeline_id, pipeline in pipelines.items():
        kinds = ", ".join(each.WhichOneof("kind") or "?" for each in pipeline.processors)
        table.add_row(pipeline_id, kinds, pipeline.description)
    stdout().print(table)


@app.command("delete")
def delete(pipeline_id: PipelineId, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """Delete a pipeline."""
    with connected(address) as client:
        client.pipelines.delete(pipeline_id)
    print_done(f'Pipeline "{pipeline_id}" is deleted.', {"pipeline_id": pipeline_id, "deleted": True}, style)


@app.command("simulate")
def simulate(
    pipeline: Annotated[
        str, typer.Argument(metavar="PIPELINE", help=f"The id of a stored pipeline, or an IngestPipeline: {JSON_HELP}")
    ],
    documents: Annotated[
        list[str], typer.Argument(metavar="DOCUMENT...", help=f"A document's body, a JSON object each: {JSON_HELP}")
    ],
    *,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the document after each step too.")] = False,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Run documents through a pipeline; nothing is indexed."""
    bodies = [{"source": read_json(each, "DOCUMENT")} for each in documents]
    given = pipeline if pipeline[:1] not in {"{", "@", "-"} else read_json(pipeline, "PIPELINE") or {}
    with connected(address) as client:
        results = client.pipelines.simulate(given, bodies, verbose=verbose)
    if style is Format.JSON:
        for result in results:
            print_json(_fields(result) | {"steps": [_step(step) for step in result.steps]})
        return
    table = make_table("DOCUMENT", "STEPS", "ERROR")
    for result in results:
        document = json.dumps(document_fields(result.document), ensure_ascii=False) if result.document else ""
        steps = "\n".join(f"{step.processor_type} {step.tag}: {step.status}" for step in result.steps)
        table.add_row(Text(document), Text(steps), Text(result.error.message if result.error else ""))
    stdout().print(table)


def _step(step: SimulationStep) -> dict[str, Any]:
    return {"processor_type": step.processor_type, "tag": step.tag, "status": step.status, **_fields(step)}


def _fields(owner: Simulation | SimulationStep) -> dict[str, Any]:
    """Give the document or the error, whichever there is."""
    fields: dict[str, Any] = {}
    if owner.document is not None:
        fields["document"] = document_fields(owner.document)
    if owner.error is not None:
        error = owner.error
        fields["error"] = {"code": error.code.name, "message": error.message, "processor_type": error.processor_type}
    return fields
