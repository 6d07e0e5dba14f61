"""The gRPC server: options, services, reflection, and the port."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Final, cast

import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from termwise.server.errors import FailedPreconditionError
from termwise.v1 import (
    indices_pb2,
    indices_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    trained_models_pb2,
    trained_models_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from termwise.server.rpc.health import HealthServicer
    from termwise.server.rpc.interceptors import CallInterceptor

SERVICES: Final = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (trained_models_pb2, "TrainedModels"),
        (pipeline_pb2, "Pipeline"),
        (indices_pb2, "Indices"),
        (search_pb2, "Search"),
    )
)
"""Full names of the services of `termwise.v1`."""

# Clients decode error details by reflection, which gives out what this process has imported.
_DETAILS: Final = (error_details_pb2, status_pb2)


def make_server(interceptor: CallInterceptor, *, max_message_bytes: int, keepalive_seconds: float) -> grpc.aio.Server:
    """Make a server without services."""
    probe_ms = round(keepalive_seconds * 1e3)
    return grpc.aio.server(
        interceptors=[interceptor],
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.keepalive_time_ms", probe_ms),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Clients may probe too, without a call, and this often; gRPC's own limit is 5 minutes and closes on them.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            # With it, a second server on the same port would take half of the calls instead of failing.
            ("grpc.so_reuseport", 0),
        ],
    )


def add_services(
    server: grpc.aio.Server,
    *,
    trained_models: trained_models_pb2_grpc.TrainedModelsServicer,
    pipeline: pipeline_pb2_grpc.PipelineServicer,
    indices: indices_pb2_grpc.IndicesServicer,
    search: search_pb2_grpc.SearchServicer,
    health: HealthServicer,
) -> None:
    """Add all services, and reflection over them."""
    services = cast("grpc.aio.Server", _Services(server))
    trained_models_pb2_grpc.add_TrainedModelsServicer_to_server(trained_models, services)
    pipeline_pb2_grpc.add_PipelineServicer_to_server(pipeline, services)
    indices_pb2_grpc.add_IndicesServicer_to_server(indices, services)
    search_pb2_grpc.add_SearchServicer_to_server(search, services)
    add_health(server, health)
    reflection.enable_server_reflection(
        (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
    )


def add_health(server: grpc.aio.Server, health: HealthServicer) -> None:
    """Add the health service alone."""
    health_pb2_grpc.add_HealthServicer_to_server(health, cast("grpc.aio.Server", _Services(server)))


class _Services:
    """A server as generated code fills it, without the registration of single methods.

    Core would find those a little sooner, but grpc.aio (1.85) waits for each of them anew at every call: tasks and
    callbacks by the dozen on the event loop, some 30 µs a call (measured: an echo with 31 methods).
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Leave them to the generic handlers."""


def listen(server: grpc.aio.Server, host: str, port: int) -> int:
    """Bind the server to a port, 0 for a free one, and give the port. Call it before `server.start()`.

    Raises:
        FailedPreconditionError: the port is taken, or the address is not this machine's.

    """
    try:
        bound = server.add_insecure_port(address(host, port))
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise FailedPreconditionError(
            f"Cannot listen on {address(host, port)}: {_why(host, port)}", reason="CANNOT_LISTEN"
        )
    return bound


def address(host: str, port: int) -> str:
    """Write a host and a port as gRPC takes them: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _why(host: str, port: int) -> str:
    """Find the reason, which gRPC does not tell, by trying the same without it."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen()
    except socket.gaierror:
        return f'there is no address "{host}"; give another with --host.'
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "another program has the port; stop it, or give another with --port (0: any free one)."
        return f"{os.strerror(error.errno or 0)}; give others with --host and --port."
    return "the address cannot be used; give others with --host and --port."
