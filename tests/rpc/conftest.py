"""A real server on a loopback port for each test that asks for one, and one of models with an encoder held in hand."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from small_model import make_small_model
from termwise.server.inference.fake import FakeEncoder
from termwise.server.inference.loader import inspect_model
from termwise.server.metadata.store import MetadataStore
from termwise.server.models.catalog import ModelCatalog
from termwise.server.models.deployments import Deployments
from termwise.server.models.repositories.file import FileRepository
from termwise.server.models.repositories.pypi import PyPIRepository
from termwise.server.models.stats import Statistics
from termwise.server.rpc.interceptors import CallInterceptor
from termwise.server.rpc.status import DETAILS_KEY
from termwise.server.rpc.trained_models import TrainedModelsServicer
from termwise.v1 import trained_models_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

LIMIT = 32 * 1024 * 1024


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[grpc.aio.Channel]]]:
    """Start a server with the real interceptors: `channel = await serve(register, ...)`.

    Each `register` is called with the server: `lambda s: search_pb2_grpc.add_SearchServicer_to_server(servicer, s)`.
    The server and the channel end with the test.
    """
    async with AsyncExitStack() as stack:

        async def start(
            *registers: Callable[[grpc.aio.Server], Any], limit: int = LIMIT, interceptor: CallInterceptor | None = None
        ) -> grpc.aio.Channel:
            options = [("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit)]
            server = grpc.aio.server(
                interceptors=[interceptor or CallInterceptor(max_message_bytes=limit)], options=options
            )
            for register in registers:
                register(server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop, None)
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
            stack.push_async_callback(channel.close)
            return channel

        yield start


@pytest.fixture
def details_of() -> Callable[[grpc.aio.AioRpcError], dict[str, Any]]:
    """Decode the details of an error: `details_of(error)["ErrorInfo"].reason`; `["code"]` and `["message"]` too."""

    def decode(error: grpc.aio.AioRpcError) -> dict[str, Any]:
        raw = dict(error.trailing_metadata() or ())[DETAILS_KEY]
        status = status_pb2.Status.FromString(raw)
        assert status.code == error.code().value[0]
        assert status.message == error.details()
        found: dict[str, Any] = {"code": error.code(), "message": status.message}
        for packed in status.details:
            name = packed.type_url.rpartition(".")[2]
            message = getattr(error_details_pb2, name)()
            assert packed.Unpack(message)
            found[name] = message
        return found

    return decode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_small_model(tmp_path / "tiny")


class Held:
    """Holds every batch of the fake encoder while `go` is clear."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.go.wait(60)


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
async def start(tmp_path: Path, serve: Any, held: Held) -> AsyncIterator[Callable[..., Any]]:
    """Serve models of a temporary folder: `stub = await start(load=...)`; without `load`, by the fake encoder."""
    closing: list[Any] = []
    models = tmp_path / "models"
    models.mkdir()

    async def begin(load: Any = lambda *_: FakeEncoder(max_tokens=5, delay=held)) -> Any:
        store = MetadataStore(tmp_path / "metadata.sqlite")
        repositories = [PyPIRepository(), FileRepository(Path("/"))]
        catalog = ModelCatalog(store, models, repositories=repositories, inspect=inspect_model)

        async def references(deployment_id: str) -> list[str]:
            return ['pipeline "expand"'] if deployment_id == "used" else []

        deployments = Deployments(store, catalog, load=load, references=references)
        servicer = TrainedModelsServicer(catalog, deployments, Statistics(catalog, deployments, references))
        closing.extend((deployments.close, catalog.close, lambda: asyncio.to_thread(store.close)))
        channel = await serve(
            lambda server: trained_models_pb2_grpc.add_TrainedModelsServicer_to_server(servicer, server)
        )
        return trained_models_pb2_grpc.TrainedModelsStub(channel)

    yield begin
    held.go.set()
    for close in closing:
        await close()


@pytest.fixture
async def stub(start: Any) -> Any:
    return await start()
