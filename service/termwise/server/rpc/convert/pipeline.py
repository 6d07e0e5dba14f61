"""Ingest pipelines between protobuf and the domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from termwise.server.errors import invalid_field
from termwise.server.ingest.draft import Draft, Failure, Snapshot, Step, StepStatus
from termwise.server.ingest.processors import (
    FailProcessor,
    InferenceProcessor,
    IngestPipeline,
    InputOutput,
    LowercaseProcessor,
    Processor,
    RemoveProcessor,
    RenameProcessor,
    SetProcessor,
)
from termwise.server.rpc.convert.document import (
    document_from_proto,
    fill_body,
    fill_value,
    fill_vectors,
    value_from_proto,
)
from termwise.server.rpc.status import to_status
from termwise.v1 import document_pb2
from termwise.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from termwise.server.indices.documents import InputDocument
    from termwise.server.ingest.processors import Action

MAX_DOCUMENTS: Final = 1_000
"""Most documents of a simulation."""

_STATUSES: Final = {
    StepStatus.SUCCESS: pb.SimulatePipelineResponse.Step.STATUS_SUCCESS,
    StepStatus.ERROR_IGNORED: pb.SimulatePipelineResponse.Step.STATUS_ERROR_IGNORED,
    StepStatus.ERROR: pb.SimulatePipelineResponse.Step.STATUS_ERROR,
    StepStatus.SKIPPED: pb.SimulatePipelineResponse.Step.STATUS_SKIPPED,
}


def pipeline_from_proto(message: pb.IngestPipeline, field: str = "pipeline") -> IngestPipeline:
    """Read a pipeline; whether it can work is checked where it is stored or run.

    Raises:
        InvalidArgumentError: a processor that says nothing; the violation names it.

    """
    return IngestPipeline(
        processors=_processors(message.processors, f"{field}.processors"),
        on_failure=_processors(message.on_failure, f"{field}.on_failure"),
        description=message.description,
        version=message.version,
    )


def _processors(messages: Iterable[pb.Processor], field: str) -> tuple[Processor, ...]:
    return tuple(_processor(message, f"{field}[{place}]") for place, message in enumerate(messages))


def _processor(message: pb.Processor, field: str) -> Processor:
    return Processor(
        action=_action(message, field),
        tag=message.tag,
        description=message.description,
        ignore_failure=message.ignore_failure,
        on_failure=_processors(message.on_failure, f"{field}.on_failure"),
    )


def _action(message: pb.Processor, field: str) -> Action:
    match message.WhichOneof("kind"):
        case "inference":
            inference = message.inference
            pairs = tuple(InputOutput(pair.input_field, pair.output_field) for pair in inference.input_output)
            return InferenceProcessor(inference.deployment_id, pairs, inference.ignore_missing)
        case "set":
            return _set(message.set, f"{field}.set")
        case "remove":
            return RemoveProcessor(tuple(message.remove.fields), message.remove.ignore_missing)
        case "rename":
            rename = message.rename
            return RenameProcessor(rename.field, rename.target_field, rename.ignore_missing, rename.override)
        case "lowercase":
            lowercase = message.lowercase
            return LowercaseProcessor(lowercase.field, lowercase.target_field, lowercase.ignore_missing)
        case "fail":
            return FailProcessor(message.fail.message)
        case _:
            raise invalid_field(field, "It does nothing; give one kind, such as inference or set.")


def _set(message: pb.SetProcessor, field: str) -> SetProcessor:
    source = message.WhichOneof("input")
    if source is None:
        raise invalid_field(field, "It has neither value nor copy_from; give one of them.")
    return SetProcessor(
        field=message.field,
        value=value_from_proto(message.value, f"{field}.value") if source == "value" else None,
        copy_from=message.copy_from if source == "copy_from" else None,
        override=message.override if message.HasField("override") else True,
        ignore_empty_value=message.ignore_empty_value,
    )


def pipeline_to_proto(pipeline: IngestPipeline) -> pb.IngestPipeline:
    """Write a pipeline."""
    message = pb.IngestPipeline(
        description=pipeline.description,
        version=pipeline.version,
        processors=[_processor_to_proto(each) for each in pipeline.processors],
        on_failure=[_processor_to_proto(each) for each in pipeline.on_failure],
    )
    if pipeline.create_time is not None:
        message.create_time.FromDatetime(pipeline.create_time)
    if pipeline.update_time is not None:
        message.update_time.FromDatetime(pipeline.update_time)
    return message


def _processor_to_proto(processor: Processor) -> pb.Processor:
    message = pb.Processor(
        tag=processor.tag,
        description=processor.description,
        ignore_failure=processor.ignore_failure,
        on_failure=[_processor_to_proto(each) for each in processor.on_failure],
    )
    _fill_action(message, processor.action)
    return message


def _fill_action(message: pb.Processor, action: Action) -> None:
    match action:
        case InferenceProcessor():
            pairs = [
                pb.InferenceProcessor.InputOutput(input_field=pair.input_field, output_field=pair.output_field)
                for pair in action.input_output
            ]
            message.inference.CopyFrom(
                pb.InferenceProcessor(
                    deployment_id=action.deployment_id, input_output=pairs, ignore_missing=action.ignore_missing
                )
            )
        case SetProcessor():
            message.set.field = action.field
            message.set.override = action.override
            message.set.ignore_empty_value = action.ignore_empty_value
            if action.copy_from is None:
                fill_value(message.set.value, action.value)
            else:
                message.set.copy_from = action.copy_from
        case RemoveProcessor():
            message.remove.CopyFrom(pb.RemoveProcessor(fields=action.fields, ignore_missing=action.ignore_missing))
        case RenameProcessor():
            message.rename.CopyFrom(
                pb.RenameProcessor(
                    field=action.field,
                    target_field=action.target_field,
                    ignore_missing=action.ignore_missing,
                    override=action.override,
                )
            )
        case LowercaseProcessor():
            message.lowercase.CopyFrom(
                pb.LowercaseProcessor(
                    field=action.field, target_field=action.target_field, ignore_missing=action.ignore_missing
                )
            )
        case FailProcessor():
            message.fail.message = action.message


def documents_from_proto(messages: Sequence[document_pb2.Document]) -> list[InputDocument]:
    """Read the documents of a simulation.

    Raises:
        InvalidArgumentError: there are none or too many, or one cannot be used.

    """
    if not 1 <= len(messages) <= MAX_DOCUMENTS:
        raise invalid_field("documents", f"There are {len(messages):,}; give 1 to {MAX_DOCUMENTS:,}.")
    return [document_from_proto(message, f"documents[{place}]") for place, message in enumerate(messages)]


def simulation_to_proto(drafts: Iterable[Draft]) -> pb.SimulatePipelineResponse:
    """Write what became of documents."""
    response = pb.SimulatePipelineResponse()
    for draft in drafts:
        result = response.results.add()
        # A body goes back in the form in which it came.
        is_json = draft.paths.body.endswith("source_json")
        source_format = document_pb2.SOURCE_FORMAT_JSON if is_json else document_pb2.SOURCE_FORMAT_STRUCT
        result.steps.extend(_step_to_proto(step, source_format) for step in draft.steps)
        if draft.failure is None:
            _fill_document(result.document, draft.snapshot(), source_format)
        else:
            result.error.CopyFrom(_error_to_proto(draft.failure))
    return response


def _step_to_proto(step: Step, source_format: document_pb2.SourceFormat.ValueType) -> pb.SimulatePipelineResponse.Step:
    message = pb.SimulatePipelineResponse.Step(
        processor_type=step.processor_type, tag=step.tag, status=_STATUSES[step.status]
    )
    _fill_document(message.document, step.document, source_format)
    if step.failure is not None:
        message.error.CopyFrom(_error_to_proto(step.failure))
    return message


def _fill_document(
    message: document_pb2.Document, snapshot: Snapshot, source_format: document_pb2.SourceFormat.ValueType
) -> None:
    message.id = snapshot.id
    fill_body(message, snapshot.source, source_format)
    fill_vectors(message, snapshot.sparse)


def _error_to_proto(failure: Failure) -> pb.ProcessorError:
    status = to_status(failure.error)
    return pb.ProcessorError(
        code=status.code,
        message=status.message,
        processor_type=failure.processor_type,
        processor_tag=failure.processor_tag,
    )
