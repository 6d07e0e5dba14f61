"""Every request body under fixtures/requests, sent by grpcurl and by the stubs, in an order that makes sense."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass

from termwise.v1 import indices_pb2, pipeline_pb2, search_pb2, trained_models_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

BODIES = Path(__file__).parent.parent / "fixtures" / "requests"
GRPCURL = Path(sys.executable).parent / "grpcurl"
SERVICES = {
    service.name: service
    for module in (trained_models_pb2, pipeline_pb2, indices_pb2, search_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}


def _ids(answer: dict[str, Any]) -> list[str]:
    return [hit["id"] for hit in answer.get("hits", [])]


# What to send, and what to expect of it: the answer's last message, or the name of a status.
STEPS: list[tuple[str, str | Callable[[dict[str, Any]], bool]]] = [
    ("TrainedModels.PutTrainedModel", lambda a: a["trained_model"]["model_id"] == ".splade_tiny"),
    ("TrainedModels.DownloadTrainedModel", lambda a: a["progress"]["state"] == "STATE_READY"),
    ("TrainedModels.PutTrainedModel", "ALREADY_EXISTS"),
    ("TrainedModels.PutTrainedModel.from_source", lambda a: a["trained_model"]["state"] == "STATE_READY"),
    ("TrainedModels.PutTrainedModel.unknown_package", "NOT_FOUND"),
    ("TrainedModels.GetTrainedModel", lambda a: a["trained_model"]["architecture"] == "BertForMaskedLM"),
    (
        "TrainedModels.ListTrainedModels",
        lambda a: len({model["fingerprint"] for model in a["trained_models"]}) == 1 and len(a["trained_models"]) == 2,
    ),
    ("TrainedModels.CancelDownload", "FAILED_PRECONDITION"),
    ("TrainedModels.PutTrainedModel.to_upload", lambda a: a["trained_model"]["state"] == "STATE_DEFINED"),
    ("TrainedModels.UploadTrainedModel", lambda a: a["trained_model"]["uploads"][0]["bytes_held"] == "2"),
    ("TrainedModels.UploadTrainedModel.incomplete", "FAILED_PRECONDITION"),
    (
        "TrainedModels.ListTrainedModels.by_pattern_and_tag",
        lambda a: [model["model_id"] for model in a["trained_models"]] == ["mine", "splade-tiny"],
    ),
    ("TrainedModels.DeleteTrainedModel.to_upload", lambda a: a == {}),
    ("TrainedModels.PutModelAlias", lambda a: a["trained_model"]["aliases"] == ["best"]),
    ("TrainedModels.PutModelAlias.taken", "ALREADY_EXISTS"),
    ("TrainedModels.PutModelAlias.reassign", lambda a: a["trained_model"]["model_id"] == "splade-tiny"),
    ("TrainedModels.StartDeployment.dry_run", lambda a: int(a["deployment"]["memory"]["total_bytes"]) > 16_777_216),
    ("TrainedModels.StartDeployment.low_priority", "INVALID_ARGUMENT"),
    ("TrainedModels.StartDeployment.adaptive", lambda a: a["deployment"]["model_id"] == "splade-tiny"),
    ("TrainedModels.StopDeployment.adaptive", lambda a: a == {}),
    ("TrainedModels.DeleteModelAlias", lambda a: a == {}),
    ("TrainedModels.StartDeployment.for_search", lambda a: a["deployment"]["state"] == "STATE_STARTED"),
    ("TrainedModels.StartDeployment.for_ingest", lambda a: a["deployment"]["deployment_id"] == "for_ingest"),
    ("TrainedModels.GetDeployment", lambda a: a["deployment"]["allocation_count"] == 1),
    ("TrainedModels.ListDeployments", lambda a: len(a["deployments"]) == 2),
    ("TrainedModels.UpdateDeployment", lambda a: a["deployment"]["target_allocation_count"] == 2),
    (
        "TrainedModels.UpdateDeployment.adaptive",
        lambda a: a["deployment"]["adaptive_allocations"]["max_number_of_allocations"] == 2,
    ),
    ("TrainedModels.Infer", lambda a: "pluto" in a["results"][0]["vector"]["tokens"]),
    (
        "TrainedModels.StreamInfer",
        lambda a: (a["request_id"], len(a["results"])) == ("3", 1) and "baker" in a["results"][0]["vector"]["tokens"],
    ),
    ("TrainedModels.ClearDeploymentCache", lambda a: a == {}),
    (
        "TrainedModels.GetTrainedModelStats",
        lambda a: a["trained_model_stats"][0]["deployment_stats"][1]["inference_count"] == "4",
    ),
    ("Pipeline.PutPipeline", lambda a: a["pipeline_id"] == "expand"),
    ("Pipeline.GetPipeline", lambda a: a["pipeline"]["processors"][0]["tag"] == "expand-text"),
    ("Pipeline.ListPipelines", lambda a: len(a["pipelines"]) == 1),
    ("Pipeline.SimulatePipeline", lambda a: "text_expansion" in a["results"][0]["document"]["sparse_vectors"]),
    (
        "Pipeline.SimulatePipeline.not_stored",
        lambda a: (
            a["results"][0]["document"]["source"] == {"text": "Salmon.", "lang": "en"}
            and a["results"][1]["error"]["processor_type"] == "rename"
        ),
    ),
    ("Indices.CreateIndex", lambda a: a["index"]["state"] == "STATE_READY"),
    ("Indices.GetIndex", lambda a: a["index"]["settings"]["default_pipeline"] == "expand"),
    ("Indices.GetIndex.misspelt", "NOT_FOUND"),
    ("Indices.ListIndices", lambda a: [index["name"] for index in a["indices"]] == ["docs"]),
    ("Indices.PutDocument", lambda a: a["result"] == "RESULT_CREATED"),
    ("Indices.PutDocument.only_if_new", "ABORTED"),
    ("Indices.BatchIndex", lambda a: a["failed_count"] == 1 and a["results"][2]["error"]["code"] == 5),
    ("Indices.BulkIndex", lambda a: (a["operation_id"], a["result"]) == ("a9", "RESULT_DELETED")),
    (
        "Indices.GetDocument",
        lambda a: (
            "9007199254740993" in a["document"]["source_json"] and "text_expansion" in a["document"]["sparse_vectors"]
        ),
    ),
    ("Indices.DeleteDocument", lambda a: a["result"] == "RESULT_DELETED"),
    ("Indices.GetIndexStats", lambda a: a["stats"]["document_count"] == "3"),
    ("Search.Search.hybrid_in_short", lambda a: set(_ids(a)[:2]) == {"1", "5"}),
    ("Search.Search.query", lambda a: _ids(a)[0] == "1" and a["hits"][0]["source"] == {"title": "Fish farms"}),
    ("Search.Search.linear", lambda a: set(_ids(a)[:2]) == {"1", "5"}),
    ("Search.Search.rrf", lambda a: set(_ids(a)[:2]) == {"1", "5"}),
    ("Search.Search.sparse_vector", lambda a: _ids(a)[0] == "3" and a["scoring"]["exactness"] == "EXACTNESS_EXACT"),
    ("Search.Search.terms_and_ids", lambda a: sorted(_ids(a)) == ["3", "5"]),
    ("Search.Search.count", lambda a: a["total"]["value"] == "3" and not _ids(a)),
    ("Search.Search.no_such_index", "NOT_FOUND"),
    ("Pipeline.DeletePipeline.in_use", "FAILED_PRECONDITION"),
    ("TrainedModels.StopDeployment.in_use", "FAILED_PRECONDITION"),
    ("TrainedModels.DeleteTrainedModel", "FAILED_PRECONDITION"),
    ("Indices.DeleteIndex", lambda a: a == {}),
    ("TrainedModels.StopDeployment.for_ingest", lambda a: a == {}),
    ("Pipeline.DeletePipeline", lambda a: a == {}),
    ("TrainedModels.StopDeployment.for_search", lambda a: a == {}),
    ("TrainedModels.DeleteTrainedModel", lambda a: a == {}),
    ("TrainedModels.DeleteTrainedModel.from_source", lambda a: a == {}),
]


def _messages(text: str) -> list[dict[str, Any]]:
    """Read JSON objects that stand one after another."""
    found, decoder, text = [], json.JSONDecoder(), text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].lstrip()
    return found


def _by_grpcurl(address: str, name: str) -> dict[str, Any] | str:
    service, method, *_ = name.split(".")
    with (BODIES / f"{name}.json").open() as body:
        done = subprocess.run(
            [GRPCURL, "-plaintext", "-max-time", "120", "-d", "@", address, f"termwise.v1.{service}/{method}"],
            stdin=body,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        return _messages(done.stdout)[-1]
    code = re.search(r"Code: (\w+)", done.stderr)
    assert code, done.stderr
    assert "google.rpc.ErrorInfo" in done.stderr, "grpcurl shows details only where reflection knows their types"
    return re.sub(r"(?<!^)(?=[A-Z])", "_", code[1]).upper()


def _by_stubs(address: str, name: str) -> dict[str, Any] | str:
    service, method, *_ = name.split(".")
    rpc = SERVICES[service].methods_by_name[method]
    request, response = GetMessageClass(rpc.input_type), GetMessageClass(rpc.output_type)
    messages = [json_format.ParseDict(each, request()) for each in _messages((BODIES / f"{name}.json").read_text())]
    with grpc.insecure_channel(address) as channel:
        kind = f"{'stream' if rpc.client_streaming else 'unary'}_{'stream' if rpc.server_streaming else 'unary'}"
        call = getattr(channel, kind)(
            f"/{SERVICES[service].full_name}/{method}", request.SerializeToString, response.FromString
        )
        try:
            answer = call(iter(messages) if rpc.client_streaming else messages[0], timeout=120)
            last = list(answer)[-1] if rpc.server_streaming else answer
        except grpc.RpcError as error:
            return str(error.code().name)
    plain: dict[str, Any] = json_format.MessageToDict(last, preserving_proto_field_name=True)
    return plain


def test_no_body_is_left_out() -> None:
    assert {name for name, _ in STEPS} == {path.stem for path in BODIES.glob("*.json")}
    services = {f"{service.name}.{method}" for service in SERVICES.values() for method in service.methods_by_name}
    assert {".".join(name.split(".")[:2]) for name, _ in STEPS} == services, "every method has a body"


@pytest.mark.parametrize("send", [_by_grpcurl, _by_stubs], ids=["grpcurl", "stubs"])
def test_every_body_does_what_it_says(launch: Any, blank: Path, send: Callable[..., Any]) -> None:
    server = launch(blank)
    for name, expected in STEPS:
        answer = send(server.address, name)
        assert answer == expected if isinstance(expected, str) else expected(answer), f"{name}: {answer}"
    assert server.stop() == 0
