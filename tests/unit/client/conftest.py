"""A real gRPC server whose methods answer as a test scripts them, and both clients behind one function."""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from termwise.client import AsyncClient, Client, RetryPolicy
from termwise.v1 import indices_pb2, pipeline_pb2, search_pb2, trained_models_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUICK = RetryPolicy(attempts=5, initial_delay=0.001, max_delay=0.01)


class Server(grpc.GenericRpcHandler):
    """Serves every method of termwise.v1: the next scripted answer of a method, the last one for ever."""

    def __init__(self) -> None:
        self.address = ""
        self.scripts: dict[str, list[Callable[[Any, grpc.ServicerContext], Any]]] = {}
        self.calls: dict[str, list[Any]] = defaultdict(list)
        self.methods = {
            f"/{service.full_name}/{method.name}": method
            for file in (indices_pb2, pipeline_pb2, search_pb2, trained_models_pb2)
            for service in file.DESCRIPTOR.services_by_name.values()
            for method in service.methods
        }

    def script(self, name: str, *answers: Callable[[Any, grpc.ServicerContext], Any]) -> None:
        """Say how "Service/Method" answers: each function takes the request (or their iterator) and the context."""
        self.scripts[name] = list(answers)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Give the handler of a call."""
        method = self.methods.get(handler_call_details.method)
        if method is None:
            return None
        name = handler_call_details.method.removeprefix("/termwise.v1.")
        kinds = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }

        def behave(request: Any, context: grpc.ServicerContext) -> Any:
            self.calls[name].append(request)
            left = self.scripts[name]
            answer = left.pop(0) if len(left) > 1 else left[0]
            return answer(request, context)

        return kinds[method.client_streaming, method.server_streaming](
            behave,
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server; its address is `server.address`."""
    scripted = Server()
    running = grpc.server(ThreadPoolExecutor(8), handlers=[scripted])
    scripted.address = f"127.0.0.1:{running.add_insecure_port('127.0.0.1:0')}"
    running.start()
    yield scripted
    running.stop(None).wait()


@pytest.fixture(params=["sync", "asyncio"])
def call(request: pytest.FixtureRequest, server: Server) -> Callable[..., Any]:
    """Run something with a client, once with each kind. Results are awaited, streams become lists."""

    async def collect(found: Any) -> Any:
        if inspect.isasyncgen(found):
            return [each async for each in found]
        return await found

    def run(use: Callable[[Any], Any], **options: Any) -> Any:
        options = {"retry": QUICK, **options}
        if request.param == "sync":
            with Client(server.address, **options) as client:
                found = use(client)
                return list(found) if inspect.isgenerator(found) else found

        async def awaited() -> Any:
            async with AsyncClient(server.address, **options) as client:
                return await collect(use(client))

        return asyncio.run(awaited())

    return run
