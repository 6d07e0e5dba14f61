from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from termwise.server.rpc.health import HealthServicer
from termwise.server.rpc.server import SERVICES, add_health

Status = health_pb2.HealthCheckResponse
ALWAYS = ["", "liveness"]


class State:
    """What there is: names of deployments and indices, and whether each can be used."""

    def __init__(self) -> None:
        self.deployments: dict[str, bool] = {}
        self.indices: dict[str, bool] = {}

    async def deployment(self, name: str) -> bool | None:
        return self.deployments.get(name)

    async def index(self, name: str) -> bool | None:
        return self.indices.get(name)


@pytest.fixture
async def health(serve: Any) -> tuple[State, HealthServicer, health_pb2_grpc.HealthAsyncStub]:
    state = State()
    servicer = HealthServicer(SERVICES, {"deployment": state.deployment, "index": state.index})
    channel = await serve(lambda server: add_health(server, servicer))
    return state, servicer, health_pb2_grpc.HealthStub(channel)


async def check(stub: Any, service: str) -> str:
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return Status.ServingStatus.Name(answer.status)


async def test_a_server_is_alive_before_it_is_ready(health: Any) -> None:
    _, servicer, stub = health
    for service in (*ALWAYS, *SERVICES):
        assert await check(stub, service) == "SERVING"
    assert await check(stub, "readiness") == "NOT_SERVING"
    await servicer.ready()
    assert await check(stub, "readiness") == "SERVING"


async def test_draining_leaves_liveness_alone(health: Any) -> None:
    state, servicer, stub = health
    state.deployments["d"] = state.indices["i"] = True
    await servicer.ready()
    await servicer.drain()
    for service in ALWAYS:
        assert await check(stub, service) == "SERVING"
    for service in ("readiness", *SERVICES, "deployment/d", "index/i"):
        assert await check(stub, service) == "NOT_SERVING"


@pytest.mark.parametrize("kind", ["deployment", "index"])
async def test_deployments_and_indices_have_their_own(health: Any, details_of: Any, kind: str) -> None:
    state, _, stub = health
    known = state.deployments if kind == "deployment" else state.indices
    known["a"] = False
    assert await check(stub, f"{kind}/a") == "NOT_SERVING"
    known["a"] = True
    assert await check(stub, f"{kind}/a") == "SERVING"
    del known["a"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(stub, f"{kind}/a")
    assert details_of(caught.value)["code"] == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", ["nothing", "termwise.v1.Nothing", "model/x", "/", "deployment/"])
async def test_what_is_unknown_is_not_found(health: Any, details_of: Any, service: str) -> None:
    _, _, stub = health
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(stub, service)
    found = details_of(caught.value)
    assert found["code"] == grpc.StatusCode.NOT_FOUND
    assert found["ResourceInfo"].resource_name == service


async def test_watching_tells_each_change_once(health: Any) -> None:
    state, servicer, stub = health
    watching = stub.Watch(health_pb2.HealthCheckRequest(service="deployment/d"))

    async def told() -> str:
        answer = await asyncio.wait_for(watching.read(), 60)
        return Status.ServingStatus.Name(answer.status)

    assert await told() == "SERVICE_UNKNOWN"
    state.deployments["d"] = False
    assert await told() == "NOT_SERVING"
    state.deployments["d"] = True
    assert await told() == "SERVING"
    await servicer.ready()
    await servicer.drain()
    assert await told() == "NOT_SERVING"
    assert await asyncio.wait_for(watching.read(), 60) is grpc.aio.EOF


async def test_watching_readiness(health: Any) -> None:
    _, servicer, stub = health
    watching = stub.Watch(health_pb2.HealthCheckRequest(service="readiness"))
    assert (await asyncio.wait_for(watching.read(), 60)).status == Status.NOT_SERVING
    await servicer.ready()
    assert (await asyncio.wait_for(watching.read(), 60)).status == Status.SERVING
