"""`termwise deployments`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from termwise.cli.connect import connected
from termwise.cli.options import DEFAULT_ADDRESS, Address, Format, FormatOption
from termwise.cli.output import print_done, print_list, print_one
from termwise.cli.precision import Precision  # noqa: TC001 - typer reads it from the annotation
from termwise.cli.statistics import print_deployment_stats
from termwise.v1.trained_models_pb2 import AdaptiveAllocations, Deployment

app = typer.Typer(no_args_is_help=True, help="Run models.")

DeploymentId = Annotated[str, typer.Argument(metavar="DEPLOYMENT_ID", help="The deployment's id.")]


Fewest = Annotated[int | None, typer.Option(help="Let the number of workers follow the load: the fewest; 0: none.")]
Most = Annotated[int | None, typer.Option(help="Let the number of workers follow the load: the most.")]


class Priority(StrEnum):
    """Who goes first."""

    NORMAL = "normal"
    LOW = "low"


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
    priority: Annotated[
        Priority | None, typer.Option(help="low yields to other deployments; it has one worker of one thread.")
    ] = None,
    min_allocations: Fewest = None,
    max_allocations: Most = None,
    wait_for: Annotated[WaitFor, typer.Option(help="How long the command stays.")] = WaitFor.STARTED,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Start nothing; show what it would be.")] = False,
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
            priority=priority.value if priority else None,
            adaptive_allocations=_adaptive(min_allocations, max_allocations),
            validate_only=dry_run,
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


@app.command("update")
def update(
    deployment_id: DeploymentId,
    number_of_allocations: Annotated[int | None, typer.Option(help="Workers from now on.")] = None,
    min_allocations: Fewest = None,
    max_allocations: Most = None,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Change how many workers a deployment has, while it runs."""
    with connected(address) as client:
        deployment = client.deployments.update(
            deployment_id,
            number_of_allocations=number_of_allocations,
            adaptive_allocations=_adaptive(min_allocations, max_allocations),
        )
    print_one(deployment, style)


@app.command("clear-cache")
def clear_cache(
    deployment_id: DeploymentId, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE
) -> None:
    """Forget the expansions that a deployment keeps."""
    with connected(address) as client:
        client.deployments.clear_cache(deployment_id)
    fields = {"deployment_id": deployment_id, "cleared": True}
    print_done(f'The cache of deployment "{deployment_id}" is empty.', fields, style)


@app.command("stats")
def stats(
    names: Annotated[list[str] | None, typer.Argument(metavar="[DEPLOYMENT_ID]...", help="Those wanted.")] = None,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Show what deployments did since the server's start."""
    with connected(address) as client:
        models = client.models.stats(model_ids=names or ())
    wanted = [each for model in models for each in model.deployment_stats]
    print_deployment_stats(wanted, style)


def _adaptive(fewest: int | None, most: int | None) -> AdaptiveAllocations | None:
    if fewest is None and most is None:
        return None
    return AdaptiveAllocations(min_number_of_allocations=fewest, max_number_of_allocations=most)
