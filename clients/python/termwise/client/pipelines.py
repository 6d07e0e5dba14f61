"""Calls of the Pipeline service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from termwise.client.calls import Paged, Unary
from termwise.client.errors import status_code
from termwise.client.messages import document_from, document_message
from termwise.client.parsing import invalid, parse
from termwise.client.types import Document, ProcessorError, Simulation, SimulationStep
from termwise.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from termwise.client.types import JsonObject, MessageLike


def put_pipeline(pipeline_id: str, pipeline: MessageLike, *, timeout: float | None = None) -> Unary[pb.IngestPipeline]:
    """Store a pipeline, or replace the one of that id, and give it as stored.

    Args:
        pipeline_id: Its id.
        pipeline: An IngestPipeline, such as `{"processors": [{"inference": {"deployment_id": "for_ingest",
            "input_output": [{"input_field": "text", "output_field": "text_expansion"}]}}]}`.
        timeout: Seconds; by default the client's.
    """
    return Unary(
        "Pipeline/PutPipeline",
        pb.PutPipelineRequest(pipeline_id=pipeline_id, pipeline=parse(pipeline, pb.IngestPipeline, "pipeline")),
        lambda answer: answer.pipeline,
        idempotent=True,
        timeout=timeout,
    )


def get_pipeline(pipeline_id: str, *, timeout: float | None = None) -> Unary[pb.IngestPipeline]:
    """Give one pipeline. Raises NotFoundError."""
    return Unary(
        "Pipeline/GetPipeline",
        pb.GetPipelineRequest(pipeline_id=pipeline_id),
        lambda answer: answer.pipeline,
        idempotent=True,
        timeout=timeout,
    )


def list_pipelines(*, page_size: int = 0, timeout: float | None = None) -> Paged[dict[str, pb.IngestPipeline]]:
    """Give all pipelines by id, fetched page by page (`page_size` 0: the server's default)."""
    return Paged(
        "Pipeline/ListPipelines",
        pb.ListPipelinesRequest(page_size=page_size),
        lambda pages: {entry.pipeline_id: entry.pipeline for page in pages for entry in page.pipelines},
        timeout=timeout,
    )


def delete_pipeline(pipeline_id: str, *, timeout: float | None = None) -> Unary[None]:
    """Delete a pipeline. Raises FailedPreconditionError while it is an index's default. Never retried."""
    return Unary(
        "Pipeline/DeletePipeline",
        pb.DeletePipelineRequest(pipeline_id=pipeline_id),
        lambda _: None,
        idempotent=False,
        timeout=timeout,
    )


def simulate_pipeline(
    pipeline: str | MessageLike,
    documents: Iterable[Document | JsonObject],
    *,
    verbose: bool = False,
    timeout: float | None = None,
) -> Unary[list[Simulation]]:
    """Run documents through a pipeline and give what comes out, one result a document; nothing is indexed.

    Args:
        pipeline: The id of a stored pipeline, or an IngestPipeline.
        documents: 1 to 1,000 documents.
        verbose: Give the document after each step too.
        timeout: Seconds; by default the client's.
    """
    if isinstance(documents, dict | str):
        raise invalid("documents", "expected a list of documents")
    messages = [document_message(document, f"documents[{place}]") for place, document in enumerate(documents)]
    request = pb.SimulatePipelineRequest(documents=messages, verbose=verbose)
    if isinstance(pipeline, str):
        request.pipeline_id = pipeline
    else:
        request.pipeline.CopyFrom(parse(pipeline, pb.IngestPipeline, "pipeline"))
    return Unary(
        "Pipeline/SimulatePipeline",
        request,
        lambda answer: [_simulation(each) for each in answer.results],
        idempotent=True,
        timeout=timeout,
    )


def _simulation(result: pb.SimulatePipelineResponse.Result) -> Simulation:
    steps = (
        SimulationStep(
            processor_type=step.processor_type,
            tag=step.tag,
            status=pb.SimulatePipelineResponse.Step.Status.Name(step.status).removeprefix("STATUS_").lower(),
            document=_document(step),
            error=_error(step),
        )
        for step in result.steps
    )
    return Simulation(document=_document(result), error=_error(result), steps=tuple(steps))


def _document(owner: pb.SimulatePipelineResponse.Result | pb.SimulatePipelineResponse.Step) -> Document | None:
    return document_from(owner.document) if owner.HasField("document") else None


def _error(owner: pb.SimulatePipelineResponse.Result | pb.SimulatePipelineResponse.Step) -> ProcessorError | None:
    if not owner.HasField("error"):
        return None
    error = owner.error
    return ProcessorError(status_code(error.code), error.message, error.processor_type, error.processor_tag)
