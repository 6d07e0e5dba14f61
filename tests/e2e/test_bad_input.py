"""What callers get wrong: each answered with the right code and details, never INTERNAL, never UNKNOWN."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format

from termwise.v1 import indices_pb2, pipeline_pb2, search_pb2, trained_models_pb2

if TYPE_CHECKING:
    from pathlib import Path

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
UNMET = grpc.StatusCode.FAILED_PRECONDITION

REQUESTS = {
    "Search": (search_pb2, "Search", search_pb2.SearchRequest),
    **{
        name: (indices_pb2, "Indices", getattr(indices_pb2, f"{name}Request"))
        for name in ("CreateIndex", "GetIndex", "ListIndices", "DeleteIndex", "PutDocument", "GetDocument",
                     "DeleteDocument", "BatchIndex", "GetIndexStats")
    },
    **{
        name: (pipeline_pb2, "Pipeline", getattr(pipeline_pb2, f"{name}Request"))
        for name in ("PutPipeline", "GetPipeline", "DeletePipeline", "SimulatePipeline", "ListPipelines")
    },
    **{
        name: (trained_models_pb2, "TrainedModels", getattr(trained_models_pb2, f"{name}Request"))
        for name in ("PutTrainedModel", "GetTrainedModel", "DeleteTrainedModel", "StartDeployment", "StopDeployment",
                     "GetDeployment", "Infer", "ListTrainedModels", "ListDeployments", "CancelDownload",
                     "DownloadTrainedModel", "UploadTrainedModel", "PutModelAlias", "DeleteModelAlias",
                     "UpdateDeployment", "ClearDeploymentCache", "GetTrainedModelStats", "StreamInfer")
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A request by the name of its RPC, and what must come of it. `field` begins the path of the first violation."""

    name: str
    rpc: str
    body: dict[str, Any]
    code: grpc.StatusCode
    field: str = ""


def vector(*pairs: tuple[str, float]) -> dict[str, Any]:
    return {"tokens": [token for token, _ in pairs], "weights": [weight for _, weight in pairs]}


def put(**document: Any) -> dict[str, Any]:
    return {"index": "docs", "document": {"id": "x"} | document, "pipeline": "_none"}


def put_vector(value: dict[str, Any]) -> dict[str, Any]:
    return put(sparseVectors={"text_expansion": value})


def query(**kinds: Any) -> dict[str, Any]:
    return {"indices": ["docs"], "query": kinds}


def query_vector(value: dict[str, Any]) -> dict[str, Any]:
    return query(sparse_vector={"field": "text_expansion", "vector": value})


def nested_json(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


def nested_query(levels: int) -> dict[str, Any]:
    body: dict[str, Any] = {"match_all": {}}
    for _ in range(levels):
        body = {"boolean": {"must": [body]}}
    return {"indices": ["docs"], "query": body}


WEIGHTS: dict[str, dict[str, Any]] = {
    "NaN": {"tokens": ["a", "b"], "weights": [1.0, "NaN"]},
    "infinite": {"tokens": ["a"], "weights": ["Infinity"]},
    "zero": vector(("a", 0.0)),
    "negative": vector(("a", -1.0)),
    "denormal": vector(("a", 1e-40)),
    "mismatched": {"tokens": ["a", "b"], "weights": [1.0]},
    "duplicate": vector(("a", 1.0), ("a", 2.0)),
    "token of 70 kB": vector(("t" * 70_000, 1.0)),
    "empty token": vector(("", 1.0)),
}

CASES = [
    Case("unknown model", "StartDeployment", {"modelId": "nothing", "deploymentId": "d"}, NOT_FOUND, "model_id"),
    Case("unknown model to get", "GetTrainedModel", {"modelId": "nothing"}, NOT_FOUND, "model_id"),
    Case("unknown packaged model", "PutTrainedModel", {"modelId": ".nothing"}, NOT_FOUND, "model_id"),
    Case("model that exists", "PutTrainedModel", {"modelId": ".splade_tiny"}, EXISTS),
    Case("model id", "PutTrainedModel", {"modelId": "Big Model", "sourceUri": "file:///x"}, INVALID, "model_id"),
    Case("source", "PutTrainedModel", {"modelId": "m", "sourceUri": "ftp://x"}, INVALID, "source_uri"),
    Case("deployment that exists", "StartDeployment",
         {"modelId": ".splade_tiny", "deploymentId": "for_search"}, EXISTS),
    Case("allocations", "StartDeployment",
         {"modelId": ".splade_tiny", "deploymentId": "d", "numberOfAllocations": 0}, INVALID, "number_of_allocations"),
    Case("threads", "StartDeployment",
         {"modelId": ".splade_tiny", "deploymentId": "d", "threadsPerAllocation": 3}, INVALID,
         "threads_per_allocation"),
    Case("queue", "StartDeployment",
         {"modelId": ".splade_tiny", "deploymentId": "d", "queueCapacity": 100_000}, INVALID, "queue_capacity"),
    Case("both kinds of allocations", "StartDeployment",
         {"modelId": ".splade_tiny", "deploymentId": "d", "numberOfAllocations": 1, "adaptiveAllocations": {}}, INVALID,
         "number_of_allocations"),
    Case("fewest allocations", "StartDeployment",
         {"modelId": ".splade_tiny", "deploymentId": "d",
          "adaptiveAllocations": {"minNumberOfAllocations": -1}}, INVALID, "adaptive_allocations"),
    Case("most allocations", "StartDeployment",
         {"modelId": ".splade_tiny", "deploymentId": "d",
          "adaptiveAllocations": {"minNumberOfAllocations": 3, "maxNumberOfAllocations": 2}}, INVALID,
         "adaptive_allocations"),
    Case("low priority with two threads", "StartDeployment",
         {"modelId": ".splade_tiny", "deploymentId": "d", "priority": "PRIORITY_LOW", "threadsPerAllocation": 2},
         INVALID, "threads_per_allocation"),
    Case("low priority with two allocations", "StartDeployment",
         {"modelId": ".splade_tiny", "deploymentId": "d", "priority": "PRIORITY_LOW", "numberOfAllocations": 2},
         INVALID, "number_of_allocations"),
    Case("unknown priority", "StartDeployment",
         {"modelId": ".splade_tiny", "deploymentId": "d", "priority": 9}, INVALID, "priority"),
    Case("bad dry run", "StartDeployment",
         {"modelId": ".splade_tiny", "threadsPerAllocation": 3, "validateOnly": True}, INVALID,
         "threads_per_allocation"),
    Case("dry run of an unknown model", "StartDeployment", {"modelId": "nothing", "validateOnly": True}, NOT_FOUND,
         "model_id"),
    Case("update of nothing", "UpdateDeployment", {"deploymentId": "for_search"}, INVALID, "number_of_allocations"),
    Case("update to no allocations", "UpdateDeployment", {"deploymentId": "for_search", "numberOfAllocations": 0},
         INVALID, "number_of_allocations"),
    Case("update to both kinds", "UpdateDeployment",
         {"deploymentId": "for_search", "numberOfAllocations": 1, "adaptiveAllocations": {}}, INVALID,
         "number_of_allocations"),
    Case("unknown deployment to update", "UpdateDeployment", {"deploymentId": "nothing", "numberOfAllocations": 1},
         NOT_FOUND, "deployment_id"),
    Case("deployment without a name to update", "UpdateDeployment", {"numberOfAllocations": 1}, INVALID,
         "deployment_id"),
    Case("unknown cache to clear", "ClearDeploymentCache", {"deploymentId": "nothing"}, NOT_FOUND, "deployment_id"),
    Case("cache without a name to clear", "ClearDeploymentCache", {}, INVALID, "deployment_id"),
    Case("download that does not run", "CancelDownload", {"modelId": ".splade_tiny"}, UNMET),
    Case("unknown download", "CancelDownload", {"modelId": "nothing"}, NOT_FOUND, "model_id"),
    Case("download without a name", "CancelDownload", {}, INVALID, "model_id"),
    Case("unknown model to download", "DownloadTrainedModel", {"modelId": "nothing"}, NOT_FOUND, "model_id"),
    Case("model without a name to download", "DownloadTrainedModel", {}, INVALID, "model_id"),
    Case("alias without a name", "PutModelAlias", {"modelId": ".splade_tiny"}, INVALID, "alias"),
    Case("alias of nothing", "PutModelAlias", {"alias": "best"}, INVALID, "model_id"),
    Case("alias that ends in a digit", "PutModelAlias", {"alias": "best1", "modelId": ".splade_tiny"}, INVALID,
         "alias"),
    Case("alias that is no id", "PutModelAlias", {"alias": "The Best", "modelId": ".splade_tiny"}, INVALID, "alias"),
    Case("alias that is a model", "PutModelAlias", {"alias": ".splade_tiny", "modelId": ".splade_tiny"}, INVALID,
         "alias"),
    Case("alias that is a deployment", "PutModelAlias", {"alias": "for_search", "modelId": ".splade_tiny"}, INVALID,
         "alias"),
    Case("alias of an unknown model", "PutModelAlias", {"alias": "best", "modelId": "nothing"}, NOT_FOUND, "model_id"),
    Case("unknown alias", "DeleteModelAlias", {"alias": "nothing"}, NOT_FOUND, "alias"),
    Case("alias without a name to delete", "DeleteModelAlias", {}, INVALID, "alias"),
    Case("figures of nothing", "GetTrainedModelStats", {"modelIds": [".splade_tiny", "nothing"]}, NOT_FOUND,
         "model_ids[1]"),
    Case("empty name", "ListTrainedModels", {"modelIds": ["a", ""]}, INVALID, "model_ids[1]"),
    Case("name of 10 kB", "ListTrainedModels", {"modelIds": ["a" * 10_000]}, INVALID, "model_ids[0]"),
    Case("empty label", "ListTrainedModels", {"tags": [""]}, INVALID, "tags[0]"),
    Case("1,001 names", "GetTrainedModelStats", {"modelIds": ["a*"] * 1_001}, INVALID, "model_ids"),
    Case("page of figures", "GetTrainedModelStats", {"pageSize": -1}, INVALID, "page_size"),
    Case("forged page of figures", "GetTrainedModelStats", {"pageToken": "forged"}, INVALID, "page_token"),
    Case("upload of nothing", "UploadTrainedModel", {}, INVALID, "header"),
    Case("upload that begins with data", "UploadTrainedModel", {"data": "e30="}, INVALID, "header"),
    Case("upload to no model", "UploadTrainedModel", {"header": {}}, INVALID, "header.model_id"),
    Case("upload to an unknown model", "UploadTrainedModel",
         {"header": {"modelId": "nothing", "fileName": "config.json"}}, NOT_FOUND, "header.model_id"),
    Case("upload to a model with a source", "UploadTrainedModel",
         {"header": {"modelId": ".splade_tiny", "fileName": "config.json"}}, UNMET),
    Case("stream without options", "StreamInfer", {"texts": {"texts": ["a"]}}, INVALID, "options"),
    Case("stream of nothing", "StreamInfer", {}, INVALID, "options"),
    Case("stream to no deployment", "StreamInfer", {"options": {}}, INVALID, "options.deployment_id"),
    Case("stream of an unknown kind", "StreamInfer", {"options": {"deploymentId": "for_search", "inputType": 9}},
         INVALID, "options.input_type"),
    Case("unknown deployment", "Infer", {"deploymentId": "nothing", "texts": ["a"]}, NOT_FOUND, "deployment_id"),
    Case("unknown deployment to stop", "StopDeployment", {"deploymentId": "nothing"}, NOT_FOUND, "deployment_id"),
    Case("pipeline whose deployment is unknown", "PutDocument",
         put(source={"text": "a"}) | {"pipeline": "undeployed"}, NOT_FOUND),
    Case("model without a name", "GetTrainedModel", {}, INVALID, "model_id"),
    Case("model without a name to delete", "DeleteTrainedModel", {}, INVALID, "model_id"),
    Case("deployment without a name", "Infer", {"texts": ["a"]}, INVALID, "deployment_id"),
    Case("deployment without a name to get", "GetDeployment", {}, INVALID, "deployment_id"),
    Case("deployment without a name to stop", "StopDeployment", {}, INVALID, "deployment_id"),
    Case("no texts", "Infer", {"deploymentId": "for_search"}, INVALID, "texts"),
    Case("too many texts", "Infer", {"deploymentId": "for_search", "texts": ["a"] * 1_025}, INVALID, "texts"),
    Case("unknown index", "Search", {"indices": ["docz"]}, NOT_FOUND, "indices[0]"),
    Case("no index", "Search", {}, INVALID, "indices"),
    Case("two indices", "Search", {"indices": ["docs", "docs"]}, INVALID, "indices"),
    Case("unknown index to write", "PutDocument", {"index": "docz", "document": {"id": "x"}}, NOT_FOUND, "index"),
    Case("unknown index to get", "GetIndex", {"index": "docz"}, NOT_FOUND, "index"),
    Case("unknown index to delete", "DeleteIndex", {"index": "docz"}, NOT_FOUND, "index"),
    Case("unknown index to count", "GetIndexStats", {"index": "docz"}, NOT_FOUND, "index"),
    Case("index that exists", "CreateIndex", {"index": "docs"}, EXISTS),
    Case("index name", "CreateIndex", {"index": "../docs"}, INVALID, "index"),
    Case("index with an unknown analyzer", "CreateIndex",
         {"index": "new", "mapping": {"properties": {"a": {"text": {"analyzer": "klingon"}}}}}, INVALID, "mapping"),
    Case("index with a field of no kind", "CreateIndex",
         {"index": "new", "mapping": {"properties": {"a": {}}}}, INVALID, "mapping"),
    Case("index with an unknown pipeline", "CreateIndex",
         {"index": "new", "settings": {"defaultPipeline": "nothing"}}, NOT_FOUND, "settings.default_pipeline"),
    Case("index with an unknown storage", "CreateIndex",
         {"index": "new", "settings": {"storage": "papyrus"}}, INVALID, "settings.storage"),
    Case("unknown document", "GetDocument", {"index": "docs", "id": "nothing"}, NOT_FOUND),
    Case("unknown document to delete", "DeleteDocument", {"index": "docs", "id": "nothing"}, NOT_FOUND),
    Case("unknown field", "Search", query(match={"field": "nothing", "text": "a"}), INVALID, "query.match.field"),
    Case("unknown sparse field", "Search", query(text_expansion={"field": "nothing", "text": "a"}), INVALID,
         "query.text_expansion.field"),
    Case("field of another kind", "Search", query(match={"field": "year", "text": "a"}), INVALID, "query.match.field"),
    Case("expansion of a text field", "Search", query(text_expansion={"field": "text", "text": "a"}), INVALID,
         "query.text_expansion.field"),
    Case("unknown deployment in a query", "Search",
         query(text_expansion={"field": "text_expansion", "text": "a", "deploymentId": "nothing"}), NOT_FOUND,
         "query.text_expansion.deployment_id"),
    Case("unknown pipeline", "PutDocument", put(source={"text": "a"}) | {"pipeline": "nothing"}, NOT_FOUND, "pipeline"),
    Case("unknown pipeline to get", "GetPipeline", {"pipelineId": "nothing"}, NOT_FOUND, "pipeline_id"),
    Case("pipeline of nothing", "PutPipeline",
         {"pipelineId": "p", "pipeline": {"processors": [{}]}}, INVALID, "pipeline.processors[0]"),
    Case("pipeline in use", "DeletePipeline", {"pipelineId": "expand"}, UNMET),
    Case("mapping conflict", "PutDocument", put(source={"year": "long ago"}), INVALID, "document"),
    Case("mapping conflict of an object", "PutDocument", put(source={"text": {"deeper": 1}}), INVALID, "document"),
    *[Case(f"document with {name} weights", "PutDocument", put_vector(value), INVALID, "document.sparse_vectors")
      for name, value in WEIGHTS.items()],
    *[Case(f"query with {name} weights", "Search", query_vector(value), INVALID, "query.sparse_vector.vector")
      for name, value in WEIGHTS.items()],
    Case("weights in a body", "PutDocument", put(source={"text_expansion": {"a": -1}}), INVALID, "document"),
    Case("vector of an unknown field", "PutDocument", put(sparseVectors={"nothing": vector(("a", 1))}), INVALID,
         "document.sparse_vectors"),
    Case("query without weights", "Search", query_vector({}), INVALID, "query.sparse_vector.vector"),
    Case("empty query text", "Search", query(text_expansion={"field": "text_expansion", "text": ""}), INVALID,
         "query.text_expansion.text"),
    Case("query of no kind", "Search", query(), INVALID, "query"),
    Case("negative boost", "Search", query(match={"field": "text", "text": "a", "boost": -1}), INVALID,
         "query.match.boost"),
    Case("NaN boost", "Search", query(match={"field": "text", "text": "a", "boost": "NaN"}), INVALID,
         "query.match.boost"),
    Case("size -1", "Search", {"indices": ["docs"], "size": -1}, INVALID, "size"),
    Case("size of a million", "Search", {"indices": ["docs"], "size": 1_000_000}, INVALID, "size"),
    Case("offset -1", "Search", {"indices": ["docs"], "offset": -1}, INVALID, "offset"),
    Case("offset of a million", "Search", {"indices": ["docs"], "offset": 1_000_000}, INVALID, "offset"),
    Case("NaN min_score", "Search", {"indices": ["docs"], "minScore": "NaN"}, INVALID, "min_score"),
    Case("empty retriever", "Search", {"indices": ["docs"], "retriever": {}}, INVALID, "retriever"),
    Case("rank window", "Search",
         {"indices": ["docs"], "retriever": {"rrf": {"text": "a", "rankWindowSize": 10**6}}}, INVALID,
         "retriever.rrf.rank_window_size"),
    Case("field weight", "Search",
         {"indices": ["docs"], "retriever": {"linear": {"text": "a", "fields": ["text^x"]}}}, INVALID,
         "retriever.linear.fields[0]"),
    Case("term of another type", "Search", query(term={"field": "year", "value": "long ago"}), INVALID,
         "query.term.value"),
    Case("no values", "Search", query(terms={"field": "year", "values": []}), INVALID, "query.terms.values"),
    Case("query of 45 levels", "Search", nested_query(45), INVALID),
    Case("1,000 levels of JSON", "PutDocument", put(sourceJson=nested_json(1_000)), INVALID, "document.source_json"),
    Case("100,000 levels of JSON", "PutDocument", put(sourceJson=nested_json(100_000)), INVALID,
         "document.source_json"),
    Case("JSON that is none", "PutDocument", put(sourceJson="{"), INVALID, "document.source_json"),
    Case("JSON that is no object", "PutDocument", put(sourceJson="[1]"), INVALID, "document.source_json"),
    Case("JSON with NaN", "PutDocument", put(sourceJson='{"year": NaN}'), INVALID, "document.source_json"),
    Case("JSON with half a character", "PutDocument", put(sourceJson='{"text": "\\ud800"}'), INVALID, "document"),
    Case("integer beyond 64 bits", "PutDocument", put(sourceJson='{"year": 99999999999999999999}'), INVALID,
         "document"),
    Case("document id of 10 kB", "PutDocument", put(id="i" * 10_000), INVALID, "document.id"),
    Case("document id of 10 kB to get", "GetDocument", {"index": "docs", "id": "i" * 10_000}, INVALID, "id"),
    Case("keyword of 40 kB", "PutDocument", put(source={"lang": "x" * 40_000}), INVALID, "document"),
    Case("page size", "ListIndices", {"pageSize": -1}, INVALID, "page_size"),
    Case("page size of a million", "ListPipelines", {"pageSize": 10**6}, INVALID, "page_size"),
    Case("page token", "ListTrainedModels", {"pageToken": "forged"}, INVALID, "page_token"),
    Case("forged page of deployments", "ListDeployments", {"pageToken": "forged"}, INVALID, "page_token"),
    Case("unknown pipeline to simulate", "SimulatePipeline",
         {"pipelineId": "nothing", "documents": [{"id": "1", "source": {}}]}, NOT_FOUND, "pipeline_id"),
    Case("empty batch", "BatchIndex", {"index": "docs"}, INVALID, "operations"),
    Case("batch of 1,001", "BatchIndex",
         {"index": "docs", "operations": [{"delete": {"id": "x"}}] * 1_001}, INVALID, "operations"),
    Case("version that does not match", "PutDocument", put(source={}) | {"ifVersion": "999"},
         grpc.StatusCode.ABORTED),
]  # fmt: skip


def test_no_method_is_left_out() -> None:
    # Streams of writes have tests of their own.
    left_out = {"BulkIndex"}
    assert {case.rpc for case in CASES} | left_out >= {
        method.name
        for module in (trained_models_pb2, pipeline_pb2, indices_pb2, search_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


@pytest.fixture(scope="module")
def bad(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    server = serve("--model-folder", str(tmp_path_factory.getbasetemp()))
    server.create_index("docs", pipeline="expand")
    server.put_pipeline("undeployed", deployment="nothing")
    return server


def send(server: Any, rpc: str, request: Any) -> Any:
    module, service, _ = REQUESTS[rpc]
    method = module.DESCRIPTOR.services_by_name[service].methods_by_name[rpc]
    answer = getattr(module, f"{rpc}Response")
    data = request if isinstance(request, bytes) else request.SerializeToString()
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(server.channel_once, shape)(f"/{method.containing_service.full_name}/{rpc}", None, answer.FromString)
    given = call(iter([data]) if method.client_streaming else data, timeout=60)
    return list(given) if method.server_streaming else given


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_has_its_code_and_details(bad: Any, details_of: Any, case: Case) -> None:
    request = json_format.ParseDict(case.body, REQUESTS[case.rpc][2]())
    with pytest.raises(grpc.RpcError) as caught:
        send(bad, case.rpc, request)
    found = details_of(caught.value)
    assert found["code"] == case.code, found["message"]
    assert found["ErrorInfo"].domain == "termwise"
    assert found["ErrorInfo"].reason
    if case.field:
        first = found["BadRequest"].field_violations[0]
        assert first.field.startswith(case.field), first.field
    for violation in found["BadRequest"].field_violations if "BadRequest" in found else ():
        assert re.split(r"[.\[]", violation.field)[0] in request.DESCRIPTOR.fields_by_name, violation.field
    if case.code is NOT_FOUND:
        assert found["ResourceInfo"].resource_name
    assert len(found["message"]) < 600
    assert found["message"].endswith((".", "?")), found["message"]


BROKEN_UTF8 = b"\x0a\x02\xff\xfe"
"""Field 1 as a string that is no UTF-8."""


def nested_struct(levels: int) -> bytes:
    """Encode PutDocumentRequest{document{source}} nested so deeply that protobuf itself would not write it."""

    def field(number: int, data: bytes) -> bytes:
        size, length = len(data), b""
        while size > 0x7F:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + data

    struct = b""
    for _ in range(levels):
        struct = field(1, field(1, b"a") + field(2, field(5, struct)))
    return field(1, b"docs") + field(2, field(1, b"x") + field(2, struct)) + field(3, b"_none")


RAW = {
    "broken UTF-8 in an id": ("GetIndex", BROKEN_UTF8),
    "broken UTF-8 in a search": ("Search", BROKEN_UTF8),
    "a document of 1,000 levels": ("PutDocument", nested_struct(1_000)),
    "a document of 10,000 levels": ("PutDocument", nested_struct(10_000)),
    "no message at all": ("Infer", b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("name", RAW)
def test_what_is_no_message_is_an_invalid_argument(bad: Any, details_of: Any, name: str) -> None:
    rpc, data = RAW[name]
    with pytest.raises(grpc.RpcError) as caught:
        send(bad, rpc, data)
    found = details_of(caught.value)
    assert found["code"] == INVALID
    assert found["ErrorInfo"].reason == "REQUEST_UNDECODABLE"


def test_broken_utf8_in_a_stream_is_an_invalid_argument(bad: Any, details_of: Any) -> None:
    call = bad.channel_once.stream_stream("/termwise.v1.Indices/BulkIndex", None, None)
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter([b"\x12\x04\x22\x02\xff\xfe"]), timeout=30))
    assert details_of(caught.value)["code"] == INVALID


def test_a_document_of_thirty_levels_is_fine(bad: Any) -> None:
    assert send(bad, "PutDocument", nested_struct(25)).id == "x"
    request = json_format.ParseDict(put(sourceJson=nested_json(30)), indices_pb2.PutDocumentRequest())
    assert send(bad, "PutDocument", request).id == "x"


def test_an_empty_text_has_an_empty_vector(bad: Any) -> None:
    request = trained_models_pb2.InferRequest(deployment_id="for_ingest", texts=["", "   "])
    request.input_type = trained_models_pb2.InferRequest.INPUT_TYPE_DOCUMENT
    for result in bad.models.Infer(request, timeout=30).results:
        assert not result.vector.tokens
        assert not result.vector.weights
    written = json_format.ParseDict(put(id="empty", source={"text": ""}), indices_pb2.PutDocumentRequest())
    written.pipeline = "expand"
    bad.indices.PutDocument(written, timeout=30)
    got = indices_pb2.GetDocumentRequest(index="docs", id="empty", include_sparse_vectors=["*"])
    found = bad.indices.GetDocument(got, timeout=30).document
    assert not found.sparse_vectors["text_expansion"].tokens


def test_a_text_of_ten_megabytes_is_cut_and_says_so(bad: Any) -> None:
    text = "salmon farms in norway " * (10 * 1024 * 1024 // 23)
    request = trained_models_pb2.InferRequest(deployment_id="for_ingest", texts=[text])
    request.input_type = trained_models_pb2.InferRequest.INPUT_TYPE_DOCUMENT
    (result,) = bad.models.Infer(request, timeout=60).results
    assert result.truncated
    assert result.token_count == 512
    assert "salmon" in result.vector.tokens
    request = indices_pb2.PutDocumentRequest(index="docs")
    request.document.id = "long"
    request.document.source_json = json.dumps({"text": text})
    assert bad.indices.PutDocument(request, timeout=60).id == "long"


def test_a_request_over_the_message_limit_is_refused(bad: Any) -> None:
    request = trained_models_pb2.InferRequest(deployment_id="for_ingest", texts=["x" * (33 * 1024 * 1024)])
    with pytest.raises(grpc.RpcError) as caught:
        bad.models.Infer(request, timeout=60)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def folder(bad: Any, tmp_path: Path) -> Path:
    """Copy the model's own files, to be spoilt."""
    return shutil.copytree(bad.data / "models" / ".splade_tiny", tmp_path / "model")


def put_model(server: Any, name: str, folder: Path, **more: Any) -> str:
    """Put a model from a folder, see it fail, and give the reason."""
    request = trained_models_pb2.PutTrainedModelRequest(
        model_id=name,
        source_uri=folder.as_uri(),
        wait_for=trained_models_pb2.PutTrainedModelRequest.WAIT_FOR_READY,
        **more,
    )
    model = server.models.PutTrainedModel(request, timeout=60).trained_model
    assert model.state == trained_models_pb2.TrainedModel.STATE_FAILED
    return str(model.error)


def refused(server: Any, name: str) -> Any:
    """Download the model again, and give the error."""
    with pytest.raises(grpc.RpcError) as caught:
        list(server.models.DownloadTrainedModel(trained_models_pb2.DownloadTrainedModelRequest(model_id=name)))
    return caught.value


def test_a_model_without_its_tokenizer(bad: Any, details_of: Any, folder: Path) -> None:
    for file in ("tokenizer.json", "vocab.txt"):
        (folder / file).unlink(missing_ok=True)
    assert "tokenizer" in put_model(bad, "no-tokenizer", folder)
    assert details_of(refused(bad, "no-tokenizer"))["code"] == UNMET
    start = trained_models_pb2.StartDeploymentRequest(model_id="no-tokenizer")
    with pytest.raises(grpc.RpcError) as caught:
        bad.models.StartDeployment(start, timeout=60)
    assert details_of(caught.value)["code"] == UNMET


def test_a_model_that_is_a_pickle(bad: Any, details_of: Any, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickle" in put_model(bad, "pickle", folder)
    assert details_of(refused(bad, "pickle"))["code"] == UNMET


def test_a_model_with_a_wrong_checksum(bad: Any, details_of: Any, folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    digest = "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a"
    assert digest in put_model(bad, "altered", folder, sha256=digest)
    found = details_of(refused(bad, "altered"))
    assert found["code"] == UNMET
    assert found["ErrorInfo"].reason == "CHECKSUM_MISMATCH"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 100, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"])
def test_a_model_whose_weights_are_broken(bad: Any, details_of: Any, folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    name = f"broken-{len(content)}"
    put_model(bad, name, folder)
    assert details_of(refused(bad, name))["code"] == UNMET


def test_a_model_folder_that_is_not_there(bad: Any, details_of: Any, tmp_path: Path) -> None:
    put_model(bad, "nowhere", tmp_path / "nowhere")
    assert details_of(refused(bad, "nowhere"))["code"] == UNMET


def test_nothing_of_it_was_a_bug(bad: Any) -> None:
    """Runs last: the log of this module's server has no internal error."""
    assert not [event for event in bad.events() if event["event"] == "internal_error"]
    assert not [event for event in bad.events() if event.get("code") in {"INTERNAL", "UNKNOWN", "DATA_LOSS"}]
