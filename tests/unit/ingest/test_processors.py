from __future__ import annotations

import json

import pytest

from termwise.server.errors import InvalidArgumentError
from termwise.server.ingest.processors import (
    Action,
    FailProcessor,
    InferenceProcessor,
    IngestPipeline,
    InputOutput,
    LowercaseProcessor,
    Processor,
    RemoveProcessor,
    RenameProcessor,
    SetProcessor,
    check_pipeline,
)

PAIR = InputOutput("text", "expansion")
EVERY = (
    Processor(
        InferenceProcessor("for_ingest", (PAIR, InputOutput("title", "other")), ignore_missing=True),
        tag="expand",
        description="text to tokens",
        ignore_failure=True,
        on_failure=(Processor(SetProcessor("error", "{{_ingest.on_failure_message}}")),),
    ),
    Processor(SetProcessor("a", {"b": ["{{c}}", None, 1.5]}, override=False, ignore_empty_value=True)),
    Processor(SetProcessor("a", copy_from="b")),
    Processor(SetProcessor("nothing", None)),
    Processor(RemoveProcessor(("a", "b.c"), ignore_missing=True)),
    Processor(RenameProcessor("a", "b", override=True)),
    Processor(LowercaseProcessor("a", "b")),
    Processor(FailProcessor("no {{title}}")),
)


def test_a_pipeline_survives_storage() -> None:
    pipeline = IngestPipeline(EVERY, on_failure=(Processor(RemoveProcessor(("a",))),), description="d", version=-7)
    check_pipeline(pipeline)
    assert IngestPipeline.from_json(json.loads(json.dumps(pipeline.to_json()))) == pipeline


def test_deployments_are_found_wherever_they_are_named() -> None:
    inner = IngestPipeline(on_failure=(Processor(FailProcessor("x"), on_failure=EVERY[:1]),))
    assert inner.uses_deployment("for_ingest")
    assert not inner.uses_deployment("for_search")


@pytest.mark.parametrize(
    ("action", "field"),
    [
        (InferenceProcessor("", (PAIR,)), "inference.deployment_id"),
        (InferenceProcessor("No Id", (PAIR,)), "inference.deployment_id"),
        (InferenceProcessor("d", ()), "inference.input_output"),
        (InferenceProcessor("d", (PAIR,) * 65), "inference.input_output"),
        (InferenceProcessor("d", (PAIR, PAIR)), "inference.input_output[1].output_field"),
        (InferenceProcessor("d", (PAIR, InputOutput("", "b"))), "inference.input_output[1].input_field"),
        (InferenceProcessor("d", (InputOutput("a", ".b"),)), "inference.input_output[0].output_field"),
        (SetProcessor(""), "set.field"),
        (SetProcessor("a", copy_from=""), "set.copy_from"),
        (SetProcessor("a", "{{"), "set.value"),
        (SetProcessor("a", {"b": ["{{}}"]}), "set.value"),
        (SetProcessor("a", json.loads("[" * 31 + "]" * 31)), "set.value"),
        (RemoveProcessor(()), "remove.fields"),
        (RemoveProcessor(("a", "")), "remove.fields[1]"),
        (RenameProcessor("", "b"), "rename.field"),
        (RenameProcessor("a", ""), "rename.target_field"),
        (RenameProcessor("a", "a"), "rename.target_field"),
        (LowercaseProcessor(""), "lowercase.field"),
        (LowercaseProcessor("a", "b."), "lowercase.target_field"),
        (FailProcessor(""), "fail.message"),
        (FailProcessor("{{"), "fail.message"),
    ],
)
def test_what_cannot_work_is_named(action: Action, field: str) -> None:
    good, bad = Processor(FailProcessor("x")), Processor(action)
    for pipeline, where in (
        (IngestPipeline((good, bad)), "pipeline.processors[1]"),
        (IngestPipeline(on_failure=(bad,)), "pipeline.on_failure[0]"),
        (
            IngestPipeline((Processor(FailProcessor("x"), on_failure=(good, good, bad)),)),
            "pipeline.processors[0].on_failure[2]",
        ),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            check_pipeline(pipeline)
        assert [violation.field for violation in caught.value.violations] == [f"{where}.{field}"]


def test_a_pipeline_is_bounded() -> None:
    with pytest.raises(InvalidArgumentError):
        check_pipeline(IngestPipeline((Processor(FailProcessor("x")),) * 257))
