"""Text in, model deployed, semantic search out; and all of it again after a restart."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2

from termwise.v1 import indices_pb2, pipeline_pb2, search_pb2, trained_models_pb2

if TYPE_CHECKING:
    from pathlib import Path

PASSAGES = {
    "zip": "Compress a file with gzip so that it takes less space on disk.",
    "mail": "Send an electronic message to several recipients through an SMTP server.",
    "planets": "Pluto is a dwarf planet in the Kuiper belt, beyond the orbit of Neptune.",
    "fish": "Salmon are raised in floating net pens off the coast of Norway.",
    "clock": "The clock on the wall shows the local time in hours and minutes.",
    "random": "Draw a number by chance, such as the throw of a die.",
    "bread": "Knead flour, water, salt and yeast, let the dough rise, then bake it.",
    "law": "The court ruled that the contract was void.",
}
QUESTIONS = {
    "squeeze a document so it needs less room": "zip",
    "aquaculture of fish": "fish",
    "is pluto a planet?": "planets",
    "how do bakers make a loaf": "bread",
}
"""Each and the passage that answers it; few share a word with it."""


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [(name, {"title": name, "text": text, "lang": "en", "year": 2000 + n})
            for n, (name, text) in enumerate(PASSAGES.items())]  # fmt: skip


def search(server: Any, body: dict[str, Any]) -> search_pb2.SearchResponse:
    request = json_format.ParseDict({"indices": ["docs"]} | body, search_pb2.SearchRequest())
    return server.search.Search(request, timeout=30)


def expansion(text: str) -> dict[str, Any]:
    return {"query": {"text_expansion": {"field": "text_expansion", "text": text}}}


def match(text: str) -> dict[str, Any]:
    return {"query": {"match": {"field": "text", "text": text}}}


def hybrid(text: str) -> dict[str, Any]:
    return {"retriever": {"linear": {"text": text, "fields": ["text", "text_expansion^2"]}}}


@pytest.fixture(scope="module")
def filled(server: Any) -> Any:
    server.create_index("docs", pipeline="expand")
    acknowledged = list(server.bulk("docs", documents()))
    assert [one.operation_id for one in acknowledged] == list(PASSAGES)
    assert not [one for one in acknowledged if one.HasField("error")]
    assert [one.version for one in acknowledged] == sorted({one.version for one in acknowledged})
    return server


@pytest.mark.parametrize(("question", "answer"), QUESTIONS.items())
def test_semantic_search_finds_what_shares_few_words(filled: Any, question: str, answer: str) -> None:
    found = search(filled, expansion(question))
    assert found.hits[0].id == answer
    assert found.scoring.exactness == search_pb2.Scoring.EXACTNESS_EXACT
    assert found.expansions[0].deployment_id == "for_search"
    assert found.expansions[0].query_token_count > 0
    assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)


def test_lexical_search_finds_words(filled: Any) -> None:
    found = search(filled, match("dwarf planets"))
    assert [hit.id for hit in found.hits] == ["planets"]
    assert found.total.value == 1
    assert not search(filled, match("aquaculture")).hits


@pytest.mark.parametrize(("question", "answer"), QUESTIONS.items())
def test_hybrid_search_fuses_both(filled: Any, question: str, answer: str) -> None:
    assert search(filled, hybrid(question)).hits[0].id == answer


def test_a_filter_narrows(filled: Any) -> None:
    body = {"query": {"boolean": {
        "must": [expansion("is pluto a planet?")["query"]],
        "filter": [{"range": {"field": "year", "gt": 2002}}, {"term": {"field": "lang", "value": "en"}}],
    }}}  # fmt: skip
    found = search(filled, body)
    assert found.hits
    assert "planets" not in {hit.id for hit in found.hits}


def test_a_document_comes_back_with_its_vector(filled: Any) -> None:
    request = indices_pb2.GetDocumentRequest(
        index="docs", id="zip", source_format="SOURCE_FORMAT_JSON", include_sparse_vectors=["*"]
    )
    found = filled.indices.GetDocument(request, timeout=30)
    assert PASSAGES["zip"] in found.document.source_json
    infer = trained_models_pb2.InferRequest(
        deployment_id="for_ingest", texts=[PASSAGES["zip"]], input_type="INPUT_TYPE_DOCUMENT"
    )
    (result,) = filled.models.Infer(infer, timeout=30).results
    vector = found.document.sparse_vectors["text_expansion"]
    assert list(vector.tokens) == list(result.vector.tokens)
    assert list(vector.weights) == pytest.approx(list(result.vector.weights), rel=0.02)


def test_a_write_is_visible_at_once_and_gone_after_its_deletion(filled: Any) -> None:
    put = indices_pb2.PutDocumentRequest(index="docs")
    put.document.id = "violin"
    put.document.source.update({"text": "A violin has four strings and is played with a bow."})
    filled.indices.PutDocument(put, timeout=30)
    assert search(filled, expansion("musical instrument")).hits[0].id == "violin"
    filled.indices.DeleteDocument(indices_pb2.DeleteDocumentRequest(index="docs", id="violin"), timeout=30)
    assert "violin" not in {hit.id for hit in search(filled, expansion("musical instrument")).hits}


def test_health_of_deployments_and_indices(filled: Any) -> None:
    assert filled.check("deployment/for_search") == "SERVING"
    assert filled.check("index/docs") == "SERVING"
    assert filled.check("index/other") == "NOT_FOUND"


def test_a_deployment_in_use_is_not_stopped(filled: Any, details_of: Any) -> None:
    for name, user in (("for_ingest", 'pipeline "expand"'), ("for_search", 'index "docs"')):
        with pytest.raises(grpc.RpcError) as caught:
            filled.models.StopDeployment(trained_models_pb2.StopDeploymentRequest(deployment_id=name), timeout=30)
        found = details_of(caught.value)
        assert found["code"] == grpc.StatusCode.FAILED_PRECONDITION
        assert user in found["message"]


def snapshot(server: Any) -> Any:
    """Everything that callers can see and that must outlive a restart."""
    return (
        [(m.model_id, m.state, m.fingerprint) for m in
         server.models.ListTrainedModels(trained_models_pb2.ListTrainedModelsRequest()).trained_models],
        [(d.deployment_id, d.model_id, d.state, d.queue_capacity) for d in
         server.models.ListDeployments(trained_models_pb2.ListDeploymentsRequest()).deployments],
        server.pipelines.ListPipelines(pipeline_pb2.ListPipelinesRequest()),
        server.indices.ListIndices(indices_pb2.ListIndicesRequest()),
        [(hit.id, hit.version, hit.score) for hit in search(server, expansion("is pluto a planet?")).hits],
        [(hit.id, hit.score) for hit in search(server, match("the")).hits],
    )  # fmt: skip


def test_a_restart_brings_everything_back(launch: Any, fresh: Path) -> None:
    server = launch(fresh)
    server.deploy("for_search", "for_ingest", queue_capacity=77)
    server.put_pipeline()
    server.create_index("docs", pipeline="expand")
    assert all(not one.HasField("error") for one in server.bulk("docs", documents()))
    for ending in ("stop", "kill"):
        before = snapshot(server)
        server.kill() if ending == "kill" else server.stop()
        server = launch(fresh)
        server.wait_ready()
        assert snapshot(server) == before
        assert server.check("deployment/for_ingest") == "SERVING"
        later = list(server.bulk("docs", [("new", {"text": f"A new one after a {ending}."})]))
        assert later[0].version > max(version for _, version, _ in before[4])
    server.stop()


def test_a_graceful_stop_finishes_what_runs(launch: Any, fresh: Path, details_of: Any) -> None:
    server = launch(fresh)
    server.deploy("for_ingest")
    server.put_pipeline()
    server.create_index("docs", pipeline="expand")
    gate, midway = threading.Event(), threading.Event()

    def slowly() -> Any:
        for number in range(200):
            if number == 100:
                midway.set()
                gate.wait(30)
            yield f"d{number}", {"text": f"Document number {number} of a stream that the stop finds half done."}

    acknowledged: list[Any] = []
    stream = threading.Thread(target=lambda: acknowledged.extend(server.bulk("docs", slowly())))
    watch = server.health.Watch(health_pb2.HealthCheckRequest(service="readiness"))
    states = iter(watch)
    next(states)
    stream.start()
    assert midway.wait(30)
    server.process.terminate()
    told = [state.status for state in states]
    assert told[-1] == health_pb2.HealthCheckResponse.NOT_SERVING
    assert server.check("liveness") == "SERVING"
    assert server.check("termwise.v1.Search") == "NOT_SERVING"
    with pytest.raises(grpc.RpcError) as caught:
        server.indices.ListIndices(indices_pb2.ListIndicesRequest())
    found = details_of(caught.value)
    assert (found["code"], found["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
    gate.set()
    stream.join(60)
    assert server.process.wait(60) == 0
    assert [one.operation_id for one in acknowledged] == [f"d{n}" for n in range(200)]
    assert not [one for one in acknowledged if one.HasField("error")]
    again = launch(fresh)
    stats = again.indices.GetIndexStats(indices_pb2.GetIndexStatsRequest(index="docs"), timeout=30).stats
    assert stats.document_count == 200
    again.stop()


def test_a_call_that_outlives_the_grace_is_cut_off(launch: Any, fresh: Path) -> None:
    server = launch(fresh, "--grace-seconds", "0.5")
    server.create_index("docs")
    gate, midway = threading.Event(), threading.Event()

    def endless() -> Any:
        yield "d0", {"text": "One."}
        midway.set()
        gate.wait(60)

    stream = server.bulk("docs", endless())
    assert next(stream).id == "d0"
    assert midway.wait(30)
    assert server.stop(30) == 0
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    gate.set()
