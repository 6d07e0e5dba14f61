from __future__ import annotations

import inspect
from typing import Any

import grpc
import pytest

from termwise.client import AsyncClient, Client, Document, InvalidArgumentError, SparseVector
from termwise.client.aio import AsyncDeployments, AsyncIndices, AsyncModels, AsyncPipelines
from termwise.client.sync import Deployments, Indices, Models, Pipelines
from termwise.v1 import document_pb2, indices_pb2, pipeline_pb2, search_pb2, sparse_vector_pb2, trained_models_pb2

VECTOR = sparse_vector_pb2.SparseVector(tokens=["b", "a"], weights=[2.0, 1.0])


def _answer(message: Any) -> Any:
    return lambda *_: message


def test_a_search_by_text_is_the_short_hybrid_form(server: Any, call: Any) -> None:
    server.script("Search/Search", _answer(search_pb2.SearchResponse()))

    call(lambda client: client.search("docs", "salmon farm", fields=["text", "text_expansion^2"], size=0))

    sent = server.calls["Search/Search"][0]
    assert list(sent.indices) == ["docs"]
    assert sent.retriever.linear.text == "salmon farm"
    assert list(sent.retriever.linear.fields) == ["text", "text_expansion^2"]
    assert sent.HasField("size"), "0 is a size: no hits"
    assert sent.size == 0
    assert sent.source_format == document_pb2.SOURCE_FORMAT_JSON


def test_what_is_left_out_is_left_to_the_server(server: Any, call: Any) -> None:
    server.script("Search/Search", _answer(search_pb2.SearchResponse()))

    call(lambda client: client.search("docs", source=False))

    expected = search_pb2.SearchRequest(indices=["docs"], source_format=document_pb2.SOURCE_FORMAT_NONE)
    assert server.calls["Search/Search"] == [expected]


def test_hits_are_plain_values(server: Any, call: Any) -> None:
    hit = search_pb2.Hit(index="docs", id="1", version=7, score=1.5, source_json='{"n": 9007199254740993}')
    hit.sparse_vectors["v"].CopyFrom(VECTOR)
    answer = search_pb2.SearchResponse(
        total={"value": 10_000, "relation": search_pb2.TotalHits.RELATION_AT_LEAST},
        max_score=1.5,
        hits=[hit],
        scoring={"exactness": search_pb2.Scoring.EXACTNESS_BOUNDED, "max_score_error": 0.25},
        expansions=[{"field": "v", "deployment_id": "for_search", "query_token_count": 2, "vector": VECTOR}],
        timings={"total": {"seconds": 1, "nanos": 500_000_000}},
    )
    server.script("Search/Search", _answer(answer))

    result = call(lambda client: client.search("docs", query={"match_all": {}}))

    assert len(result) == 1
    only = next(iter(result))
    assert (only.id, only.index, only.version, only.score) == ("1", "docs", 7, 1.5)
    assert only.source == {"n": 9007199254740993}
    assert only.sparse_vectors["v"].as_dict() == {"b": 2.0, "a": 1.0}
    assert (result.total, result.total_is_exact) == (10_000, False)
    assert (result.is_exact, result.max_score_error) == (False, 0.25)
    assert result.expansions[0].vector == SparseVector(("b", "a"), (2.0, 1.0))
    assert result.timings.total == 1.5


@pytest.mark.parametrize(
    ("use", "path"),
    [
        (lambda c: c.search("d", "x", query={}), "query"),
        (lambda c: c.search("d", fields=["a"]), "fields"),
        (lambda c: c.search("d", "x", fields="a"), "fields"),
        (lambda c: c.search("d", source_includes="a"), "source_includes"),
        (lambda c: c.infer("d", "x"), "texts"),
        (lambda c: c.infer("d", ["x"], input_type="passage"), "input_type"),
        (lambda c: c.models.put("m", wait_for="done"), "wait_for"),
        (lambda c: c.indices.bulk("i", {"id": "1"}), "documents"),
        (lambda c: c.pipelines.simulate("p", {"id": "1"}), "documents"),
    ],
)
def test_mistakes_are_found_before_sending(server: Any, call: Any, use: Any, path: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        call(use)

    assert caught.value.field_violations[0].field == path
    assert not server.calls


def test_listings_fetch_every_page(server: Any, call: Any) -> None:
    pages = {
        "": indices_pb2.ListIndicesResponse(indices=[{"name": "a"}, {"name": "b"}], next_page_token="t1"),  # noqa: S106
        "t1": indices_pb2.ListIndicesResponse(indices=[{"name": "c"}], next_page_token="t2"),  # noqa: S106
        "t2": indices_pb2.ListIndicesResponse(indices=[{"name": "d"}]),
    }
    server.script("Indices/ListIndices", lambda request, _: pages[request.page_token])

    found = call(lambda client: client.indices.list(page_size=2))

    assert [each.name for each in found] == ["a", "b", "c", "d"]
    assert [each.page_size for each in server.calls["Indices/ListIndices"]] == [2, 2, 2]


def test_pipelines_are_listed_by_id(server: Any, call: Any) -> None:
    entry = pipeline_pb2.ListPipelinesResponse.Entry(pipeline_id="p", pipeline={"description": "d"})
    server.script("Pipeline/ListPipelines", _answer(pipeline_pb2.ListPipelinesResponse(pipelines=[entry])))

    assert call(lambda client: client.pipelines.list())["p"].description == "d"


def test_a_simulation_gives_documents_or_errors(server: Any, call: Any) -> None:
    document = {"id": "1", "source_json": '{"n": 9007199254740993}'}
    error = {"code": 3, "message": "no text", "processor_type": "inference", "processor_tag": "t"}
    step = {"processor_type": "set", "tag": "s", "status": "STATUS_ERROR_IGNORED", "error": error}
    results = [{"document": document, "steps": [step]}, {"error": error}]
    server.script("Pipeline/SimulatePipeline", _answer(pipeline_pb2.SimulatePipelineResponse(results=results)))

    came_through, failed = call(lambda client: client.pipelines.simulate("p", [{"source": {}}, {"source": {}}]))
    call(lambda client: client.pipelines.simulate({"processors": []}, [{"source": {}}], verbose=True))

    assert came_through.document.source == {"n": 9007199254740993}
    assert came_through.error is None
    assert (came_through.steps[0].status, came_through.steps[0].document) == ("error_ignored", None)
    assert failed.document is None
    assert (failed.error.code, failed.error.message) == (grpc.StatusCode.INVALID_ARGUMENT, "no text")
    by_id, by_body = server.calls["Pipeline/SimulatePipeline"]
    assert by_id.pipeline_id == "p"
    assert by_body.HasField("pipeline")


def test_a_download_is_a_stream_of_progress(server: Any, call: Any) -> None:
    steps = [
        trained_models_pb2.DownloadTrainedModelResponse(progress={"bytes_done": n, "bytes_total": 3}) for n in (1, 2, 3)
    ]
    server.script("TrainedModels/DownloadTrainedModel", lambda *_: iter(steps))

    found = call(lambda client: client.models.download("m"))

    assert [each.bytes_done for each in found] == [1, 2, 3]


def test_one_text_expands_to_one_vector(server: Any, call: Any) -> None:
    answer = trained_models_pb2.InferResponse(
        results=[{"vector": VECTOR, "token_count": 4, "truncated": True, "token_ids": [9, 8]}],
        model_id="m",
        fingerprint="sha256:x",
        timings={"queue": {"nanos": 1_000_000}},
    )
    server.script("TrainedModels/Infer", _answer(answer))

    vector = call(lambda client: client.expand("d", "x"))
    inference = call(lambda client: client.infer("d", ["x"], input_type="document", include_token_ids=True))

    assert vector == SparseVector(("b", "a"), (2.0, 1.0))
    assert inference.results[0].vector == vector
    assert (inference.results[0].token_count, inference.results[0].truncated) == (4, True)
    assert inference.results[0].token_ids == (9, 8)
    assert inference.timings.queue == 0.001
    query, document = server.calls["TrainedModels/Infer"]
    assert query.input_type == trained_models_pb2.InferRequest.INPUT_TYPE_QUERY
    assert document.input_type == trained_models_pb2.InferRequest.INPUT_TYPE_DOCUMENT


def test_a_document_comes_back_as_it_was_put(server: Any, call: Any) -> None:
    put = indices_pb2.PutDocumentResponse(id="1", version=4, result=indices_pb2.RESULT_UPDATED)
    server.script("Indices/PutDocument", _answer(put))

    written = call(
        lambda client: client.indices.put_document(
            "docs", {"n": 9007199254740993}, id="1", sparse_vectors={"v": {"a": 1.0}}, if_version=0
        )
    )
    sent = server.calls["Indices/PutDocument"][0]
    server.script("Indices/GetDocument", _answer(indices_pb2.GetDocumentResponse(document=sent.document, version=4)))
    document = call(lambda client: client.indices.get_document("docs", "1"))

    assert (written.id, written.version, written.result, written.ok) == ("1", 4, "updated", True)
    assert sent.HasField("if_version")
    assert document == Document({"n": 9007199254740993}, "1", {"v": SparseVector(("a",), (1.0,))}, 4)


def test_a_batch_gives_one_result_an_operation(server: Any, call: Any) -> None:
    answer = indices_pb2.BatchIndexResponse(
        results=[
            {"id": "1", "version": 1, "result": indices_pb2.RESULT_CREATED},
            {"id": "2", "error": {"code": 5, "message": "not there"}},
        ],
        failed_count=1,
    )
    server.script("Indices/BatchIndex", _answer(answer))

    first, second = call(lambda client: client.indices.batch("docs", [{"id": "1"}, {"id": "2"}]))

    assert first.ok
    assert not second.ok
    assert second.error.message == "not there"
    assert second.error.__class__.__name__ == "NotFoundError"


def test_metadata_goes_with_every_call(server: Any, call: Any) -> None:
    seen = []

    def answer(_: Any, context: Any) -> Any:
        seen.append(dict(context.invocation_metadata())["authorization"])
        return indices_pb2.GetIndexResponse()

    server.script("Indices/GetIndex", answer)

    call(lambda client: client.indices.get("i"), metadata=[("authorization", "key")])

    assert seen == ["key"]


def test_a_vector_gives_its_heaviest_tokens() -> None:
    vector = SparseVector(("a", "b", "c", "d"), (1.0, 3.0, 2.0, 3.0))

    assert vector.top(3) == SparseVector(("b", "d", "c"), (3.0, 3.0, 2.0))
    assert len(vector.top(9)) == len(vector) == 4


@pytest.mark.parametrize(
    ("synchronous", "asynchronous"),
    [
        (Client, AsyncClient),
        (Models, AsyncModels),
        (Deployments, AsyncDeployments),
        (Pipelines, AsyncPipelines),
        (Indices, AsyncIndices),
    ],
)
def test_both_clients_have_the_same_calls(synchronous: type, asynchronous: type) -> None:
    def public(kind: type) -> dict[str, list[str]]:
        calls = {name: value for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}
        return {name: list(inspect.signature(value).parameters) for name, value in calls.items()}

    assert public(synchronous) == public(asynchronous)
    assert all(vars(synchronous)[name].__doc__ for name in public(synchronous))
