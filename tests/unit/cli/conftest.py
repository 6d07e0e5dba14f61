"""The command, run in this process, and a small server for it to talk to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from typer.testing import CliRunner

from termwise.cli.commands import app
from termwise.v1 import (
    indices_pb2,
    indices_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    trained_models_pb2,
    trained_models_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Models(trained_models_pb2_grpc.TrainedModelsServicer):
    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.stored: set[str] = set()

    def GetTrainedModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model_id in self.stored:
            return trained_models_pb2.GetTrainedModelResponse(trained_model={"model_id": request.model_id})
        context.abort(grpc.StatusCode.NOT_FOUND, f'Model "{request.model_id}" does not exist.')
        return None

    def PutTrainedModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self.requests.append(request)
        self.stored.add(request.model_id)
        return trained_models_pb2.PutTrainedModelResponse(trained_model={"model_id": request.model_id})

    def UploadTrainedModel(self, request_iterator: Any, context: Any) -> Any:  # noqa: ARG002, N802
        parts = [each.WhichOneof("part") for each in request_iterator]
        model = {"model_id": "mine", "state": "STATE_READY", "description": " ".join(parts)}
        return trained_models_pb2.UploadTrainedModelResponse(trained_model=model)

    def CancelDownload(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        return trained_models_pb2.CancelDownloadResponse(trained_model={"model_id": request.model_id})

    def PutModelAlias(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self.requests.append(request)
        return trained_models_pb2.PutModelAliasResponse(trained_model={"model_id": request.model_id})

    def DeleteModelAlias(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self.requests.append(request)
        return trained_models_pb2.DeleteModelAliasResponse()

    def DeleteTrainedModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self.requests.append(request)
        return trained_models_pb2.DeleteTrainedModelResponse()

    def StartDeployment(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self.requests.append(request)
        memory = {"total_bytes": 1_000_000}
        return trained_models_pb2.StartDeploymentResponse(deployment={"model_id": request.model_id, "memory": memory})

    def UpdateDeployment(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self.requests.append(request)
        return trained_models_pb2.UpdateDeploymentResponse(deployment={"deployment_id": request.deployment_id})

    def ClearDeploymentCache(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self.requests.append(request)
        return trained_models_pb2.ClearDeploymentCacheResponse()

    def GetTrainedModelStats(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self.requests.append(request)
        deployment = {"deployment_id": "for_search", "allocation_count": 1, "target_allocation_count": 2}
        stats = {"deployment": deployment, "inference_count": 1_234, "cache_hit_count": 34, "pending_count": 5}
        time = {"average_inference_time": {"nanos": 1_500_000}}
        model = {"model_id": ".splade_tiny", "pipeline_count": 3, "deployment_stats": [stats | time]}
        return trained_models_pb2.GetTrainedModelStatsResponse(trained_model_stats=[model])

    def ListTrainedModels(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self.requests.append(request)
        model = {"model_id": ".splade_tiny", "state": "STATE_READY", "size_bytes": 17_671_552}
        other = {"model_id": "mine", "state": "STATE_FAILED", "error": "no tokenizer"}
        return trained_models_pb2.ListTrainedModelsResponse(trained_models=[model, other])

    def ListDeployments(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        started = [{"deployment_id": name, "state": "STATE_STARTED"} for name in ("for_ingest", "for_search")]
        return trained_models_pb2.ListDeploymentsResponse(deployments=started)

    def Infer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.deployment_id != "for_search":
            context.abort(grpc.StatusCode.NOT_FOUND, f'Deployment "{request.deployment_id}" does not exist.')
        vector = {"tokens": ["pluto", "planet", "[moon]"], "weights": [3.0, 1.5, 0.25]}
        return trained_models_pb2.InferResponse(results=[{"vector": vector, "token_count": 7}])


class _Indices(indices_pb2_grpc.IndicesServicer):
    def BulkIndex(self, request_iterator: Any, context: Any) -> Any:  # noqa: ARG002, N802
        for request in request_iterator:
            if request.WhichOneof("kind") == "operation":
                document = request.operation.put.document
                answer = indices_pb2.BulkIndexResponse(operation_id=request.operation.operation_id, id=document.id)
                if "bad" in document.source_json:
                    answer.error.code, answer.error.message = 3, "year: no integer"
                else:
                    answer.result = indices_pb2.RESULT_CREATED
                yield answer


class _Search(search_pb2_grpc.SearchServicer):
    def Search(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        hit = {"index": request.indices[0], "id": "1", "score": 1.5, "source_json": '{"title": "Salmon [farming]"}'}
        scoring = {"exactness": "EXACTNESS_EXACT"}
        return search_pb2.SearchResponse(hits=[hit], total={"value": 1, "relation": "RELATION_EQUAL"}, scoring=scoring)


@pytest.fixture(scope="session")
def _models() -> _Models:
    return _Models()


@pytest.fixture
def requests(_models: _Models) -> list[Any]:
    """Requests that the server got since the test began."""
    _models.requests.clear()
    return _models.requests


@pytest.fixture(scope="session")
def address(_models: _Models) -> Iterator[str]:
    """The address of a server that knows two models, two deployments and one hit."""
    server = grpc.server(ThreadPoolExecutor(4))
    trained_models_pb2_grpc.add_TrainedModelsServicer_to_server(_models, server)
    indices_pb2_grpc.add_IndicesServicer_to_server(_Indices(), server)
    search_pb2_grpc.add_SearchServicer_to_server(_Search(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def termwise(address: str) -> Callable[..., Any]:
    """Run the command: `termwise("models", "list")` gives exit_code, stdout and stderr."""

    def run(*arguments: str, stdin: str | None = None) -> Any:
        return CliRunner().invoke(
            app, list(arguments), input=stdin, env={"TERMWISE_ADDRESS": address, "COLUMNS": "200"}
        )

    return run
