"""A real server on a loopback port for each test that asks for one."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from termwise.server.rpc.interceptors import CallInterceptor
from termwise.server.rpc.status import DETAILS_KEY

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
