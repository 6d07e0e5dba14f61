"""Calls of the TrainedModels service about what runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from termwise.client.calls import LIFECYCLE_TIMEOUT, Paged, Unary
from termwise.client.parsing import choose, parse
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from termwise.client.types import MessageLike

Precision = Literal["auto", "float32", "bfloat16", "int8"]
"""Arithmetic that a deployment can be asked for."""
Priority = Literal["normal", "low"]
"""Which deployments yield where the processors do not suffice for all."""

_START_WAIT = {
    "starting": pb.StartDeploymentRequest.WAIT_FOR_STARTING,
    "started": pb.StartDeploymentRequest.WAIT_FOR_STARTED,
    "fully_allocated": pb.StartDeploymentRequest.WAIT_FOR_FULLY_ALLOCATED,
}
_PRECISIONS = {
    None: pb.Deployment.PRECISION_UNSPECIFIED,
    "auto": pb.Deployment.PRECISION_AUTO,
    "float32": pb.Deployment.PRECISION_FLOAT32,
    "bfloat16": pb.Deployment.PRECISION_BFLOAT16,
    "int8": pb.Deployment.PRECISION_INT8,
}
_PRIORITIES = {
    None: pb.Deployment.PRIORITY_UNSPECIFIED,
    "normal": pb.Deployment.PRIORITY_NORMAL,
    "low": pb.Deployment.PRIORITY_LOW,
}


def start_deployment(  # noqa: PLR0913 - one keyword a setting of the request
    model_id: str,
    *,
    deployment_id: str = "",
    number_of_allocations: int | None = None,
    threads_per_allocation: int | None = None,
    queue_capacity: int | None = None,
    precision: Precision | None = None,
    cache_size_bytes: int | None = None,
    priority: Priority | None = None,
    adaptive_allocations: MessageLike | None = None,
    validate_only: bool = False,
    wait_for: Literal["starting", "started", "fully_allocated"] = "started",
    timeout: float | None = None,
) -> Unary[pb.Deployment]:
    """Start a deployment of a model, and by default wait until it answers. Never retried.

    Args:
        model_id: The model to run, or an alias of it. One that is still being downloaded is waited for.
        deployment_id: The new deployment's id; empty: the model's.
        number_of_allocations: Workers; by default 1. Not together with `adaptive_allocations`.
        threads_per_allocation: Processor threads of each worker, a power of two; by default 1.
        queue_capacity: Texts that may wait; by default 1,024.
        precision: Arithmetic of the model; by default what the server's setting says. Raises FailedPreconditionError
            where the processor or the model cannot do with it.
        cache_size_bytes: Room for expansions of texts that were asked before; 0: none; by default the model's size.
        priority: "low" yields to other deployments; it needs one allocation of one thread.
        adaptive_allocations: Let the number of workers follow the load, within
            `{"min_number_of_allocations": 0, "max_number_of_allocations": 4}`.
        validate_only: Start nothing: give what the deployment would be, its memory above all.
        wait_for: How long the call stays.
        timeout: Seconds; by default 300. A start that outlives it goes on.
    """
    request = pb.StartDeploymentRequest(
        model_id=model_id,
        deployment_id=deployment_id,
        number_of_allocations=number_of_allocations,
        threads_per_allocation=threads_per_allocation,
        queue_capacity=queue_capacity,
        precision=choose(precision, _PRECISIONS, "precision"),
        cache_size_bytes=cache_size_bytes,
        priority=choose(priority, _PRIORITIES, "priority"),
        adaptive_allocations=_adaptive(adaptive_allocations),
        validate_only=validate_only,
        wait_for=choose(wait_for, _START_WAIT, "wait_for"),
    )
    return Unary(
        "TrainedModels/StartDeployment",
        request,
        lambda answer: answer.deployment,
        idempotent=False,
        timeout=timeout or LIFECYCLE_TIMEOUT,
    )


def update_deployment(
    deployment_id: str,
    *,
    number_of_allocations: int | None = None,
    adaptive_allocations: MessageLike | None = None,
    timeout: float | None = None,
) -> Unary[pb.Deployment]:
    """Change how many allocations a deployment has, while it runs. Never retried.

    Args:
        deployment_id: The deployment.
        number_of_allocations: Workers from now on.
        adaptive_allocations: Let their number follow the load, within these limits. One of the two is given.
        timeout: Seconds; by default 300.
    """
    return Unary(
        "TrainedModels/UpdateDeployment",
        pb.UpdateDeploymentRequest(
            deployment_id=deployment_id,
            number_of_allocations=number_of_allocations,
            adaptive_allocations=_adaptive(adaptive_allocations),
        ),
        lambda answer: answer.deployment,
        idempotent=False,
        timeout=timeout or LIFECYCLE_TIMEOUT,
    )


def clear_deployment_cache(deployment_id: str, *, timeout: float | None = None) -> Unary[None]:
    """Forget the expansions that a deployment keeps."""
    return Unary(
        "TrainedModels/ClearDeploymentCache",
        pb.ClearDeploymentCacheRequest(deployment_id=deployment_id),
        lambda _: None,
        idempotent=True,
        timeout=timeout,
    )


def stop_deployment(deployment_id: str, *, force: bool = False, timeout: float | None = None) -> Unary[None]:
    """Stop a deployment; what it has admitted is answered first. Never retried.

    Raises FailedPreconditionError where a pipeline or an index names it, unless `force` is set.
    """
    return Unary(
        "TrainedModels/StopDeployment",
        pb.StopDeploymentRequest(deployment_id=deployment_id, force=force),
        lambda _: None,
        idempotent=False,
        timeout=timeout or LIFECYCLE_TIMEOUT,
    )


def get_deployment(deployment_id: str, *, timeout: float | None = None) -> Unary[pb.Deployment]:
    """Give one deployment. Raises NotFoundError."""
    return Unary(
        "TrainedModels/GetDeployment",
        pb.GetDeploymentRequest(deployment_id=deployment_id),
        lambda answer: answer.deployment,
        idempotent=True,
        timeout=timeout,
    )


def list_deployments(*, page_size: int = 0, timeout: float | None = None) -> Paged[list[pb.Deployment]]:
    """Give all deployments by id, fetched page by page (`page_size` 0: the server's default)."""
    return Paged(
        "TrainedModels/ListDeployments",
        pb.ListDeploymentsRequest(page_size=page_size),
        lambda pages: [deployment for page in pages for deployment in page.deployments],
        timeout=timeout,
    )


def _adaptive(limits: MessageLike | None) -> pb.AdaptiveAllocations | None:
    return None if limits is None else parse(limits, pb.AdaptiveAllocations, "adaptive_allocations")
