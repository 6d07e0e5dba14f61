"""`termwise health`: what a container or a script asks."""

from __future__ import annotations

from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from termwise.cli.options import DEFAULT_ADDRESS, Address, Format, FormatOption
from termwise.cli.output import print_done
from termwise.client.errors import error_from_rpc

SECONDS = 3.0


def health(
    service: Annotated[
        str,
        typer.Argument(help="liveness, readiness, deployment/ID, index/NAME or a gRPC service; empty: the server."),
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    output: FormatOption = Format.TABLE,
) -> None:
    """Ask whether the server, or a part of it, is serving; the exit status is 0 where it is."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=SECONDS, wait_for_ready=False
            )
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print_done(status, {"service": service, "status": status}, output)
    raise typer.Exit(0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1)
