"""`grpc.health.v1`: whether the server, its services, its deployments and its indices can be used.

| Service | SERVING |
|---|---|
| "" and `liveness` | while the process answers, draining included |
| `readiness` | once metadata is restored, indices are open, and every desired deployment is STARTED or has FAILED |
| `termwise.v1.…` | from the first call on |
| `deployment/<id>`, `index/<name>` | while it can be used |

All but the first two turn NOT_SERVING when the server begins to drain.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

from grpc_health.v1 import health_pb2, health_pb2_grpc

from termwise.server.errors import NotFoundError, Resource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    import grpc.aio

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_ALIVE: Final = frozenset({"", "liveness"})
_LOOK_SECONDS: Final = 0.25
"""A watcher of a deployment or an index is told of a change this late at most."""


class Probe(Protocol):
    """Says whether a deployment or an index can be used."""

    async def __call__(self, name: str) -> bool | None:
        """Give None where there is none of that name."""
        ...


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # comes without types
    """Answers Check and Watch. `ready` and `drain` say how the server stands."""

    def __init__(self, services: Iterable[str], probes: dict[str, Probe]) -> None:
        """Begin not ready. `services` are full names; `probes` are by kind: "deployment", "index"."""
        self._services = frozenset(services)
        self._probes = probes
        self._is_ready = False
        self._is_draining = False
        self._changed = asyncio.Condition()

    async def ready(self) -> None:
        """Say that what was there before the start is back."""
        async with self._changed:
            self._is_ready = True
            self._changed.notify_all()

    async def drain(self) -> None:
        """Say that the server is about to stop. There is no way back."""
        async with self._changed:
            self._is_draining = True
            self._changed.notify_all()

    async def _status(self, service: str) -> int:
        if service in _ALIVE:
            return int(_SERVING)
        known: bool | None = None
        kind, slash, name = service.partition("/")
        if service == "readiness":
            known = self._is_ready
        elif service in self._services:
            known = True
        elif slash and kind in self._probes:
            known = await self._probes[kind](name)
        if known is None:
            return int(_SERVICE_UNKNOWN)
        return int(_SERVING if known and not self._is_draining else _NOT_SERVING)

    async def Check(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Answer how a service stands; NOT_FOUND where it is unknown."""
        del context
        status = await self._status(request.service)
        if status == _SERVICE_UNKNOWN:
            raise NotFoundError(
                f'There is no service "{request.service}" to check; there are "", liveness, readiness, '
                f"{', '.join(sorted(self._services))}, deployment/<id> and index/<name>.",
                reason="SERVICE_NOT_FOUND",
                resource=Resource("service", request.service),
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answer how a service stands now and at each change, until the caller leaves or the server begins to drain."""
        del context
        last: int | None = None
        while True:
            draining = self._is_draining
            status = await self._status(request.service)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            if draining:
                return
            async with self._changed:
                if self._is_draining is draining:
                    await _within(self._changed.wait(), _LOOK_SECONDS)


async def _within(waiting: Any, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        pass
