"""Real server processes with the real default model, which the server itself downloads once a session."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from termwise.v1 import (
    indices_pb2,
    indices_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    search_pb2_grpc,
    trained_models_pb2,
    trained_models_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

MODEL = ".splade_tiny"
MAPPING = {
    "properties": {
        "title": {"text": {"analyzer": "english"}},
        "text": {"text": {"analyzer": "english"}},
        "lang": {"keyword": {}},
        "year": {"integer": {}},
        "text_expansion": {"sparse_vector": {"model_id": MODEL, "search_deployment_id": "for_search"}},
    }
}
START_SECONDS = 120


@dataclass
class Server:
    """A server process on a free port, and stubs for it."""

    data: Path
    log: Path
    process: subprocess.Popen[bytes]
    port: int = 0
    channels: list[grpc.Channel] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def channel(self) -> grpc.Channel:
        limit = 64 * 1024 * 1024
        options = [("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit)]
        self.channels.append(grpc.insecure_channel(self.address, options=options))
        return self.channels[-1]

    @cached_property
    def channel_once(self) -> grpc.Channel:
        """A channel for calls that no stub has."""
        return self.channel()

    @cached_property
    def models(self) -> Any:
        return trained_models_pb2_grpc.TrainedModelsStub(self.channel())

    @cached_property
    def pipelines(self) -> Any:
        return pipeline_pb2_grpc.PipelineStub(self.channel())

    @cached_property
    def indices(self) -> Any:
        return indices_pb2_grpc.IndicesStub(self.channel())

    @cached_property
    def search(self) -> Any:
        return search_pb2_grpc.SearchStub(self.channel())

    @cached_property
    def health(self) -> Any:
        return health_pb2_grpc.HealthStub(self.channel())

    def check(self, service: str) -> str:
        """Name the health of a service; "NOT_FOUND" where it has none."""
        try:
            answer = self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        except grpc.RpcError as error:
            return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def wait_ready(self) -> None:
        for answer in self.health.Watch(health_pb2.HealthCheckRequest(service="readiness"), timeout=START_SECONDS):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
        msg = "the server ended before it was ready"
        raise AssertionError(msg)

    def deploy(self, *names: str, queue_capacity: int = 1024) -> None:
        for name in names:
            request = trained_models_pb2.StartDeploymentRequest(
                model_id=MODEL, deployment_id=name, queue_capacity=queue_capacity
            )
            self.models.StartDeployment(request, timeout=START_SECONDS)

    def put_pipeline(self, name: str = "expand", deployment: str = "for_ingest") -> None:
        request = pipeline_pb2.PutPipelineRequest(pipeline_id=name)
        inference = request.pipeline.processors.add().inference
        inference.deployment_id = deployment
        inference.input_output.add(input_field="text", output_field="text_expansion")
        self.pipelines.PutPipeline(request, timeout=30)

    def create_index(self, name: str, *, pipeline: str = "", storage: str = "") -> None:
        request = indices_pb2.CreateIndexRequest(index=name)
        json_format.ParseDict(MAPPING, request.mapping)
        request.settings.default_pipeline = pipeline
        request.settings.storage = storage
        self.indices.CreateIndex(request, timeout=60)

    def bulk(
        self, index: str, documents: Iterable[tuple[str, dict[str, Any]]], *, pipeline: str = ""
    ) -> Iterator[indices_pb2.BulkIndexResponse]:
        """Write documents in one stream, and give the acknowledgements as they come."""

        def requests() -> Iterator[indices_pb2.BulkIndexRequest]:
            defaults = indices_pb2.BulkIndexRequest.Defaults(index=index, pipeline=pipeline)
            yield indices_pb2.BulkIndexRequest(defaults=defaults)
            for name, body in documents:
                request = indices_pb2.BulkIndexRequest()
                request.operation.operation_id = name
                request.operation.put.document.id = name
                request.operation.put.document.source_json = json.dumps(body)
                yield request

        return self.bulk_raw(requests())

    def bulk_raw(self, requests: Iterable[indices_pb2.BulkIndexRequest]) -> Iterator[indices_pb2.BulkIndexResponse]:
        """Send requests in one stream, and give the acknowledgements as they come."""
        return iter(self.indices.BulkIndex(iter(requests)))

    def close_channels(self) -> None:
        for channel in self.channels:
            channel.close()
        self.channels.clear()
        for name in ("channel_once", "models", "pipelines", "indices", "search", "health"):
            self.__dict__.pop(name, None)

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        self.process.kill()
        self.process.wait(30)
        self.close_channels()

    def stop(self, timeout: float = 60) -> int:
        """End the process as an operator would, and give its exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout)
        self.close_channels()
        return status

    def events(self) -> list[dict[str, Any]]:
        """Read the log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


def command(data: Path, port_file: Path, *flags: str) -> Sequence[str]:
    return [
        sys.executable,
        "-m",
        "termwise.server",
        "--data",
        str(data),
        "--port",
        "0",
        "--port-file",
        str(port_file),
        "--log-format",
        "json",
        *flags,
    ]


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start a server: `server = launch(data_folder, *flags, before=[...], env={...})`. All end with the session.

    `before` are words put before the command, such as strace and its flags.
    """
    started: list[Server] = []

    def start(data: Path, *flags: str, before: Sequence[str] = (), env: dict[str, str] | None = None) -> Server:
        place = tmp_path_factory.mktemp("server")
        port_file, log = place / "port", place / "log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TERMWISE_")} | (env or {})
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*before, *command(data, port_file, *flags)], stderr=stream, stdout=stream, env=environment
            )
        server = Server(data, log, process)
        started.append(server)
        until = time.monotonic() + START_SECONDS
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > until:
                msg = f"the server did not start:\n{log.read_text()}"
                raise AssertionError(msg)
            time.sleep(0.02)
        server.port = int(port_file.read_text())
        return server

    yield start
    for server in started:
        server.close_channels()
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(30)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Start a server that must not start: gives its exit status and what it said."""

    def start(data: Path, *flags: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TERMWISE_")} | (env or {})
        done = subprocess.run(
            command(data, tmp_path / "port", *flags),
            capture_output=True,
            env=environment,
            timeout=START_SECONDS,
            check=False,
        )
        return done.returncode, done.stderr.decode()

    return start


@pytest.fixture(scope="session")
def seed(launch: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a data folder that holds the default model and the verdict of its check; tests work on copies."""
    data = tmp_path_factory.mktemp("seed") / "data"
    server = launch(data)
    request = trained_models_pb2.PutTrainedModelRequest(
        model_id=MODEL, wait_for=trained_models_pb2.PutTrainedModelRequest.WAIT_FOR_READY
    )
    model = server.models.PutTrainedModel(request, timeout=START_SECONDS).trained_model
    assert model.state == trained_models_pb2.TrainedModel.STATE_READY, model.error
    server.deploy("once")
    server.models.StopDeployment(trained_models_pb2.StopDeploymentRequest(deployment_id="once"), timeout=30)
    assert server.stop() == 0
    return data


@pytest.fixture
def fresh(seed: Path, tmp_path: Path) -> Path:
    """Copy the seed for one test."""
    return Path(shutil.copytree(seed, tmp_path / "data"))


@pytest.fixture
def blank(seed: Path, tmp_path: Path) -> Path:
    """Make a data folder that holds the verdict of the default model's check, which takes seconds, and nothing else."""
    data = tmp_path / "data"
    shutil.copytree(seed / "cache", data / "cache")
    shutil.copy(seed / "FORMAT", data)
    return data


@pytest.fixture(scope="session")
def serve(launch: Callable[..., Server], seed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Server]:
    """Start a server with `for_search` and `for_ingest` started and the pipeline `expand`: `server = serve(*flags)`."""

    def start(*flags: str) -> Server:
        running = launch(shutil.copytree(seed, tmp_path_factory.mktemp("served") / "data"), *flags)
        running.deploy("for_search", "for_ingest")
        running.put_pipeline()
        return running

    return start


@pytest.fixture(scope="session")
def server(serve: Callable[..., Server]) -> Server:
    """The server of tests that leave its models, deployments and pipelines as they were, and name indices by module."""
    return serve()


@pytest.fixture
def details_of() -> Callable[[grpc.RpcError], dict[str, Any]]:
    """Decode an error: its code, its message, and each of its details by name."""

    def decode(error: Any) -> dict[str, Any]:
        raw = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
        assert raw is not None, f"{error.code()} without details: {error.details()}"
        status = status_pb2.Status.FromString(raw)
        assert (status.code, status.message) == (error.code().value[0], error.details())
        found: dict[str, Any] = {"code": error.code(), "message": status.message}
        for packed in status.details:
            name = packed.type_url.rpartition(".")[2]
            found[name] = getattr(error_details_pb2, name)()
            assert packed.Unpack(found[name])
        return found

    return decode
