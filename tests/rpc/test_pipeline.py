"""The Pipeline service, over a real channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format
from google.rpc import code_pb2

from termwise.server.indices.catalog import IndexSettings, Indices
from termwise.server.indices.mapping import Mapping
from termwise.server.inference.fake import FakeExpander, word_weight
from termwise.server.ingest.pipelines import Pipelines
from termwise.server.metadata.store import MetadataStore
from termwise.server.rpc.pipeline import PipelineServicer
from termwise.storage.memory import MemoryStore
from termwise.v1 import pipeline_pb2 as pb
from termwise.v1 import pipeline_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

INFERENCE = {
    "inference": {"deploymentId": "for_ingest", "inputOutput": [{"inputField": "text", "outputField": "expansion"}]}
}
EVERY = {
    "description": "every kind",
    "version": "7",
    "processors": [
        INFERENCE
        | {
            "tag": "expand",
            "description": "text to tokens",
            "ignoreFailure": True,
            "onFailure": [{"set": {"field": "error", "value": "{{_ingest.on_failure_message}}", "override": True}}],
        },
        {"set": {"field": "a.b", "value": {"x": [1, 2.5, None, "{{text}}"]}, "override": False}},
        {"set": {"field": "copy", "copyFrom": "text", "override": True, "ignoreEmptyValue": True}},
        {"set": {"field": "nothing", "value": None, "override": True}},
        {"remove": {"fields": ["x", "y.z"], "ignoreMissing": True}},
        {"rename": {"field": "text", "targetField": "body", "ignoreMissing": True, "override": True}},
        {"lowercase": {"field": "body", "targetField": "lower", "ignoreMissing": True}},
    ],
    "onFailure": [{"fail": {"message": "no"}}],
}

Call = Any


@pytest.fixture
async def indices(tmp_path: Path) -> AsyncIterator[Indices]:
    """Give indices over the memory store."""
    metadata = MetadataStore(tmp_path / "metadata.sqlite")
    store = MemoryStore()
    made = Indices(metadata, lambda _: store, default_backend="memory")
    yield made
    await made.close()
    metadata.close()


@pytest.fixture
async def stub(serve: Callable[..., Awaitable[grpc.aio.Channel]], indices: Indices) -> Call:
    """Serve pipelines with fake models."""
    pipelines = Pipelines(indices._metadata, FakeExpander(), indices)
    channel = await serve(
        lambda server: pipeline_pb2_grpc.add_PipelineServicer_to_server(PipelineServicer(pipelines), server)
    )
    return pipeline_pb2_grpc.PipelineStub(channel)


@pytest.fixture
def refused(details_of: Callable[..., dict[str, Any]]) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Await a call that must fail, and give its details, with the first violation's field as "field"."""

    async def wait(call: Awaitable[Any]) -> dict[str, Any]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        details = details_of(caught.value)
        bad = details.get("BadRequest")
        details["field"] = bad.field_violations[0].field if bad else ""
        return details

    return wait


def put(pipeline_id: str, pipeline: dict[str, Any]) -> pb.PutPipelineRequest:
    return json_format.ParseDict({"pipelineId": pipeline_id, "pipeline": pipeline}, pb.PutPipelineRequest())


def simulate(**request: Any) -> pb.SimulatePipelineRequest:
    return json_format.ParseDict(request, pb.SimulatePipelineRequest())


async def test_a_pipeline_is_stored_as_it_is(stub: Call) -> None:
    request = put("every", EVERY)
    stored = (await stub.PutPipeline(request)).pipeline
    assert stored.create_time.seconds > 1_700_000_000
    assert stored.update_time == stored.create_time
    found = (await stub.GetPipeline(pb.GetPipelineRequest(pipeline_id="every"))).pipeline
    assert found == stored
    found.ClearField("create_time")
    found.ClearField("update_time")
    # `override` is shown even where it was left to the default.
    assert json_format.MessageToDict(found) == EVERY
    again = (await stub.PutPipeline(put("every", {}))).pipeline
    assert again.create_time == stored.create_time
    assert not again.processors


async def test_pipelines_are_listed_and_deleted(stub: Call, indices: Indices, refused: Callable[..., Any]) -> None:
    for name in ("c", "a", "b"):
        await stub.PutPipeline(put(name, {"description": name}))
    page = await stub.ListPipelines(pb.ListPipelinesRequest(page_size=2))
    assert [(entry.pipeline_id, entry.pipeline.description) for entry in page.pipelines] == [("a", "a"), ("b", "b")]
    page = await stub.ListPipelines(pb.ListPipelinesRequest(page_token=page.next_page_token))
    assert ([entry.pipeline_id for entry in page.pipelines], page.next_page_token) == (["c"], "")
    bad = await refused(stub.ListPipelines(pb.ListPipelinesRequest(page_token="c")))  # noqa: S106
    assert bad["field"] == "page_token"

    await indices.create("docs", Mapping(), IndexSettings(default_pipeline="a"))
    in_use = await refused(stub.DeletePipeline(pb.DeletePipelineRequest(pipeline_id="a")))
    assert in_use["code"] is grpc.StatusCode.FAILED_PRECONDITION
    await stub.DeletePipeline(pb.DeletePipelineRequest(pipeline_id="b"))
    for call in (
        stub.GetPipeline(pb.GetPipelineRequest(pipeline_id="b")),
        stub.DeletePipeline(pb.DeletePipelineRequest(pipeline_id="b")),
        stub.SimulatePipeline(simulate(pipelineId="b", documents=[{}])),
    ):
        missing = await refused(call)
        assert missing["code"] is grpc.StatusCode.NOT_FOUND
        assert missing["ErrorInfo"].reason == "PIPELINE_NOT_FOUND"
        assert missing["field"] == "pipeline_id"


@pytest.mark.parametrize(
    ("pipeline", "field"),
    [
        ({"processors": [INFERENCE, {}]}, "pipeline.processors[1]"),
        ({"processors": [INFERENCE, {"rename": {"field": "a"}}]}, "pipeline.processors[1].rename.target_field"),
        ({"processors": [{"set": {"field": "a"}}]}, "pipeline.processors[0].set"),
        ({"processors": [{"set": {"value": 1}}]}, "pipeline.processors[0].set.field"),
        ({"processors": [{"set": {"field": "a", "value": "{{"}}]}, "pipeline.processors[0].set.value"),
        ({"processors": [{"inference": {}}]}, "pipeline.processors[0].inference.deployment_id"),
        ({"processors": [{"inference": {"deploymentId": "d"}}]}, "pipeline.processors[0].inference.input_output"),
        ({"processors": [{"remove": {}}]}, "pipeline.processors[0].remove.fields"),
        ({"processors": [{"fail": {}}]}, "pipeline.processors[0].fail.message"),
        ({"onFailure": [{"lowercase": {}}]}, "pipeline.on_failure[0].lowercase.field"),
        (
            {"processors": [{"fail": {"message": "x"}, "onFailure": [{}]}]},
            "pipeline.processors[0].on_failure[0]",
        ),
    ],
)
async def test_a_pipeline_that_cannot_work_is_refused_by_name(
    stub: Call, refused: Callable[..., Any], pipeline: dict[str, Any], field: str
) -> None:
    for call in (
        stub.PutPipeline(put("p", pipeline)),
        stub.SimulatePipeline(simulate(pipeline=pipeline, documents=[{}])),
    ):
        details = await refused(call)
        assert (details["code"], details["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, field)


def nested(levels: int) -> dict[str, Any]:
    """Give a processor under so many `on_failure`, with a value to set that is as deep as it may be."""
    value: Any = "x"
    for _ in range(30):
        value = {"a": value}
    processor: dict[str, Any] = {"set": {"field": "f", "value": value}}
    for _ in range(levels):
        processor = {"fail": {"message": "no"}, "onFailure": [processor]}
    return processor


@pytest.mark.parametrize("name", ["processors", "onFailure"])
async def test_what_is_stored_can_be_listed(stub: Call, refused: Callable[..., Any], name: str) -> None:
    stored = (await stub.PutPipeline(put("deep", {name: [nested(5)]}))).pipeline
    (entry,) = (await stub.ListPipelines(pb.ListPipelinesRequest())).pipelines
    assert entry.pipeline == stored
    bad = await refused(stub.PutPipeline(put("deeper", {name: [nested(6)]})))
    where = "processors" if name == "processors" else "on_failure"
    assert bad["code"] is grpc.StatusCode.INVALID_ARGUMENT
    assert bad["field"] == f"pipeline.{where}[0]" + ".on_failure[0]" * 5 + ".on_failure"


async def test_bad_simulations_are_refused(stub: Call, refused: Callable[..., Any]) -> None:
    await stub.PutPipeline(put("p", {}))
    for request, field in (
        (simulate(documents=[{}]), "pipeline"),
        (simulate(pipelineId="p", pipeline={}, documents=[{}]), "pipeline"),
        (simulate(pipelineId="p"), "documents"),
        (simulate(pipelineId="p", documents=[{}] * 1001), "documents"),
        (simulate(pipelineId="p", documents=[{}, {"sourceJson": "["}]), "documents[1].source_json"),
        (
            simulate(pipelineId="p", documents=[{"sparseVectors": {"v": {"tokens": ["a"]}}}]),
            'documents[0].sparse_vectors["v"]',
        ),
    ):
        details = await refused(stub.SimulatePipeline(request))
        assert (details["code"], details["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, field)


async def test_a_simulation_gives_what_comes_out(stub: Call) -> None:
    await stub.PutPipeline(put("expand", {"processors": [INFERENCE | {"tag": "t"}]}))
    answer = await stub.SimulatePipeline(
        simulate(pipelineId="expand", documents=[{"id": "1", "source": {"text": "pluto"}}, {"id": "2"}])
    )
    good, bad = answer.results
    assert good.document.id == "1"
    assert good.document.source["text"] == "pluto"
    assert good.document.sparse_vectors["expansion"].tokens == ["pluto"]
    assert good.document.sparse_vectors["expansion"].weights == [word_weight("pluto")]
    assert not good.HasField("error")
    assert not good.steps
    assert not bad.HasField("document")
    assert (code_pb2.Code.Name(bad.error.code), bad.error.processor_type, bad.error.processor_tag) == (
        "INVALID_ARGUMENT",
        "inference",
        "t",
    )
    assert bad.error.message == 'Field "text" does not exist in the document.'


async def test_a_body_goes_back_in_the_form_in_which_it_came(stub: Call) -> None:
    text = '{ "n": 9007199254740993, "x": 1.50 }'
    pipeline = {"processors": [{"set": {"field": "n", "value": 1, "override": False}}]}
    answer = await stub.SimulatePipeline(simulate(pipeline=pipeline, documents=[{"sourceJson": text}]))
    assert answer.results[0].document.source_json == text


async def test_a_verbose_simulation_shows_each_step(stub: Call) -> None:
    pipeline = {
        "processors": [
            INFERENCE
            | {"tag": "t", "onFailure": [{"set": {"field": "error", "value": "{{_ingest.on_failure_message}}"}}]},
            {"remove": {"fields": ["absent"], "ignoreMissing": True}},
            {"fail": {"message": "no {{error}}"}},
        ]
    }
    answer = await stub.SimulatePipeline(simulate(pipeline=pipeline, documents=[{"source": {"text": 5}}], verbose=True))
    (result,) = answer.results
    statuses = [
        (step.processor_type, pb.SimulatePipelineResponse.Step.Status.Name(step.status)) for step in result.steps
    ]
    assert statuses == [
        ("inference", "STATUS_ERROR_IGNORED"),
        ("set", "STATUS_SUCCESS"),
        ("remove", "STATUS_SKIPPED"),
        ("fail", "STATUS_ERROR"),
    ]
    message = 'Field "text" is neither a string nor a list of strings.'
    assert result.steps[0].error.message == message
    assert result.steps[0].tag == "t"
    assert result.steps[1].document.source["error"] == message
    assert result.error.message == f"no {message}"
