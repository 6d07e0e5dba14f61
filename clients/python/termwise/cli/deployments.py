"""`termwise deployments`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from termwise.cli.connect import connected
from termwise.cli.options import DEFAULT_ADDRESS, Address, Format, FormatOption
from termwise.cli.output import print_done, print_list, print_one
from termwise.cli.precision import Precision  # noqa: TC001 - typer reads it from the annotation
from termwise.v1.trained_models_pb2 import Deployment

app = typer.Typer(no_args_is_help=True, help="Run models.")

DeploymentId = Annotated[str, typer.Argument(metavar="DEPLOYMENT_ID", help="The deployment's id.")]


class WaitFor(StrEnum):
    """How long a start stays."""

    STARTING = "starting"
    STARTED = "started"
    FULLY_ALLOCATED = "fully_allocated"


@app.command("start")
def start(  # noqa: PLR0913 - one option a setting of the request
    model_id: Annotated[str, typer.Argument(metavar="MODEL_ID", help="The model to run.")],
    deployment_id: Annotated[str, typer.Option(help="The new deployment's id; by default the model's.")] = "",
    number_of_allocations: Annotated[int | None, typer.Option(help="Workers; by default 1.")] = None,
    threads_per_allocation: Annotated[int | None, typer.Option(help="Threads of each worker; by default 1.")] = None,
    queue_capacity: Annotated[int | None, typer.Option(help="Texts that may wait; by default 1,024.")] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Arithmetic of the model; by default the server's setting.")
    ] = None,
    cache_size_bytes: Annotated[
        int | None, typer.Option(help="Room for expansions asked before; 0: none; by default the model's size.")
    ] = None,
    wait_for: Annotated[WaitFor, typer.Option(help="How long the command stays.")] = WaitFor.STARTED,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Start a deployment of a model."""
    with connected(address) as client:
        deployment = client.deployments.start(
            model_id,
            deployment_id=deployment_id,
            number_of_allocations=number_of_allocations,
            threads_per_allocation=threads_per_allocation,
            queue_capacity=queue_capacity,
            precision=precision.value if precision else None,
            cache_size_bytes=cache_size_bytes,
            wait_for=wait_for.value,
        )
    print_one(deployment, style)


@app.command("get")
def get(deployment_id: DeploymentId, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """Show one deployment."""
    with connected(address) as client:
        print_one(client.deployments.get(deployment_id), style)


@app.command("list")
def list_all(address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """List deployments."""
    with connected(address) as client:
        deployments = client.deployments.list()
    columns = (
        ("DEPLOYMENT", lambda each: each.deployment_id),
        ("MODEL", lambda each: each.model_id),
        ("STATE", lambda each: Deployment.State.Name(each.state).removeprefix("STATE_").lower()),
        ("ALLOCATIONS", lambda each: f"{each.allocation_count} of {each.target_allocation_count}"),
        ("THREADS", lambda each: str(each.threads_per_allocation)),
        ("QUEUE", lambda each: f"{each.queue_capacity:,}"),
        ("PRECISION", lambda each: each.precision),
        ("DEVICE", lambda each: each.device),
        ("CACHE HITS", lambda each: f"{each.cache_hit_count:,} of {each.cache_hit_count + each.cache_miss_count:,}"),
        ("ERROR", lambda each: each.error),
    )
    print_list(deployments, columns, style)


@app.command("stop")
def stop(
    deployment_id: DeploymentId,
    *,
    force: Annotated[bool, typer.Option("--force", help="Even where a pipeline or an index names it.")] = False,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Stop a deployment."""
    with connected(address) as client:
        client.deployments.stop(deployment_id, force=force)
    fields = {"deployment_id": deployment_id, "stopped": True}
    print_done(f'Deployment "{deployment_id}" is stopped.', fields, style)
