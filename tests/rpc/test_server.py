from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.errors import FailedPreconditionError, not_found
from termwise.server.rpc.health import HealthServicer
from termwise.server.rpc.interceptors import CallInterceptor
from termwise.server.rpc.server import SERVICES, add_services, address, listen, make_server
from termwise.v1 import indices_pb2_grpc, pipeline_pb2_grpc, search_pb2_grpc, trained_models_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT = 1 << 20
GRPCURL = Path(sys.executable).with_name("grpcurl")


class Missing(search_pb2_grpc.SearchServicer):
    async def Search(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        raise not_found("index", "docz", ["docs"], field="indices[0]")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = make_server(CallInterceptor(max_message_bytes=LIMIT), max_message_bytes=LIMIT, keepalive_seconds=60)
    add_services(
        server,
        trained_models=trained_models_pb2_grpc.TrainedModelsServicer(),
        pipeline=pipeline_pb2_grpc.PipelineServicer(),
        indices=indices_pb2_grpc.IndicesServicer(),
        search=Missing(),
        health=HealthServicer(SERVICES, {}),
    )
    number = listen(server, "127.0.0.1", 0)
    await server.start()
    yield number
    await server.stop(None)


async def grpcurl(port: int, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        GRPCURL,
        "-plaintext",
        *arguments[:-1],
        f"127.0.0.1:{port}",
        *arguments[-1:],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_reflection_lists_all_services(port: int) -> None:
    code, out, err = await grpcurl(port, "list")
    assert code == 0, err
    assert {*SERVICES, "grpc.health.v1.Health"} <= set(out.split())


async def test_grpcurl_shows_error_details(port: int) -> None:
    code, out, err = await grpcurl(port, "-format-error", "-d", '{"indices": ["docz"]}', "termwise.v1.Search/Search")
    shown = json.loads(err or out)
    assert code != 0
    assert shown["code"] == 5
    assert shown["message"] == 'Index "docz" does not exist; did you mean "docs"?'
    kinds = {one["@type"].rpartition(".")[2]: one for one in shown["details"]}
    assert kinds["ErrorInfo"]["reason"] == "INDEX_NOT_FOUND"
    assert kinds["ErrorInfo"]["metadata"] == {"index": "docz"}
    assert kinds["ResourceInfo"]["resource_name"] == "docz"
    assert kinds["BadRequest"]["field_violations"] == [{"field": "indices[0]", "description": "no such index"}]


async def test_grpcurl_shows_the_details_as_text_too(port: int) -> None:
    _, _, err = await grpcurl(port, "-d", '{"indices": ["docz"]}', "termwise.v1.Search/Search")
    assert "INDEX_NOT_FOUND" in err


async def test_a_method_without_code_is_unimplemented(port: int) -> None:
    _, _, err = await grpcurl(port, "-d", "{}", "termwise.v1.Pipeline/ListPipelines")
    assert "Unimplemented" in err
    assert "METHOD_UNIMPLEMENTED" in err


async def test_a_port_that_is_taken_is_told(port: int) -> None:
    server = make_server(CallInterceptor(max_message_bytes=LIMIT), max_message_bytes=LIMIT, keepalive_seconds=60)
    with pytest.raises(FailedPreconditionError, match=f"127.0.0.1:{port}: another program has the port"):
        listen(server, "127.0.0.1", port)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
async def test_an_address_of_another_machine_is_told(host: str) -> None:
    server = make_server(CallInterceptor(max_message_bytes=LIMIT), max_message_bytes=LIMIT, keepalive_seconds=60)
    with pytest.raises(FailedPreconditionError, match="--host"):
        listen(server, host, 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_addresses() -> None:
    assert address("127.0.0.1", 1) == "127.0.0.1:1"
    assert address("::1", 1) == "[::1]:1"
    assert address("[::1]", 1) == "[::1]:1"
