"""Deployments from and to their messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from termwise.server.errors import invalid_field
from termwise.server.models.requests import AdaptiveAllocations, DeploymentUpdate, DeploymentWait, NewDeployment
from termwise.server.models.runner import DeploymentState
from termwise.server.rpc.convert.values import known, timestamp
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from termwise.server.metadata.records import DeploymentRecord
    from termwise.server.models.memory import MemoryEstimate
    from termwise.server.models.runner import Deployment

_DEPLOYMENT_WAITS: Final = {
    pb.StartDeploymentRequest.WAIT_FOR_UNSPECIFIED: DeploymentWait.STARTED,
    pb.StartDeploymentRequest.WAIT_FOR_STARTING: DeploymentWait.STARTING,
    pb.StartDeploymentRequest.WAIT_FOR_STARTED: DeploymentWait.STARTED,
    pb.StartDeploymentRequest.WAIT_FOR_FULLY_ALLOCATED: DeploymentWait.FULLY_ALLOCATED,
}
_PRECISIONS: Final[Mapping[int, str]] = {
    pb.Deployment.PRECISION_UNSPECIFIED: "",
    pb.Deployment.PRECISION_AUTO: "auto",
    pb.Deployment.PRECISION_FLOAT32: "float32",
    pb.Deployment.PRECISION_BFLOAT16: "bfloat16",
    pb.Deployment.PRECISION_INT8: "int8",
}
_PRIORITIES: Final[Mapping[int, str]] = {
    pb.Deployment.PRIORITY_UNSPECIFIED: "normal",
    pb.Deployment.PRIORITY_NORMAL: "normal",
    pb.Deployment.PRIORITY_LOW: "low",
}
_PRIORITY_NUMBERS: Final[Mapping[str, Any]] = {name: number for number, name in _PRIORITIES.items()}
_PRECISION_NUMBERS: Final[Mapping[str, Any]] = {name: number for number, name in _PRECISIONS.items()}
_DEPLOYMENT_STATES: Final = {
    DeploymentState.STARTING: pb.Deployment.STATE_STARTING,
    DeploymentState.STARTED: pb.Deployment.STATE_STARTED,
    DeploymentState.STOPPING: pb.Deployment.STATE_STOPPING,
    DeploymentState.FAILED: pb.Deployment.STATE_FAILED,
}


class NamesDeployment(Protocol):
    """A request about one deployment."""

    deployment_id: str


def deployment_id(request: NamesDeployment) -> str:
    """Read which deployment a request means.

    Raises:
        InvalidArgumentError: it names none.

    """
    if not request.deployment_id:
        raise invalid_field("deployment_id", "It is empty; name the deployment.")
    return request.deployment_id


def new_deployment(request: pb.StartDeploymentRequest) -> NewDeployment:
    """Read a deployment to start."""
    given = {
        name: getattr(request, name)
        for name in ("number_of_allocations", "threads_per_allocation", "queue_capacity", "cache_size_bytes")
        if request.HasField(name)
    }
    precision = known(_PRECISIONS, request.precision, "precision")
    return NewDeployment(
        request.model_id,
        request.deployment_id,
        precision=precision,
        priority=known(_PRIORITIES, request.priority, "priority"),
        adaptive=_adaptive(request),
        **given,
    )


def deployment_update(request: pb.UpdateDeploymentRequest) -> DeploymentUpdate:
    """Read what a deployment shall have from now on."""
    number = request.number_of_allocations if request.HasField("number_of_allocations") else None
    return DeploymentUpdate(number, _adaptive(request))


def _adaptive(request: pb.StartDeploymentRequest | pb.UpdateDeploymentRequest) -> AdaptiveAllocations | None:
    if not request.HasField("adaptive_allocations"):
        return None
    limits = request.adaptive_allocations
    most = limits.max_number_of_allocations if limits.HasField("max_number_of_allocations") else None
    return AdaptiveAllocations(limits.min_number_of_allocations, most)


def deployment_wait(request: pb.StartDeploymentRequest) -> DeploymentWait:
    """Read how long the call stays."""
    return known(_DEPLOYMENT_WAITS, request.wait_for, "wait_for")


def deployment(running: Deployment) -> pb.Deployment:
    """Write a deployment."""
    record = running.record
    return pb.Deployment(
        deployment_id=record.deployment_id,
        model_id=record.model_id,
        state=_DEPLOYMENT_STATES[running.state],
        allocation_count=running.allocation_count,
        target_allocation_count=record.number_of_allocations,
        threads_per_allocation=record.threads_per_allocation,
        queue_capacity=record.queue_capacity,
        precision=running.precision,
        requested_precision=_PRECISION_NUMBERS[record.precision],
        device=running.device,
        cache_size_bytes=running.cache.size_bytes,
        cache_used_bytes=running.cache.used_bytes,
        cache_hit_count=running.cache.hits,
        cache_miss_count=running.cache.misses,
        error=running.error,
        priority=_PRIORITY_NUMBERS[record.priority],
        adaptive_allocations=_adaptive_message(record),
        memory=None if running.memory is None else _memory(running.memory),
        engine=running.engine,
        peak_allocation_count=running.peak_allocation_count,
        create_time=timestamp(record.create_time),
        start_time=None if running.start_time is None else timestamp(running.start_time),
    )


def _memory(estimate: MemoryEstimate) -> pb.MemoryEstimate:
    return pb.MemoryEstimate(
        weights_bytes=estimate.weights_bytes,
        per_allocation_bytes=estimate.per_allocation_bytes,
        cache_bytes=estimate.cache_bytes,
        total_bytes=estimate.total_bytes,
    )


def _adaptive_message(record: DeploymentRecord) -> pb.AdaptiveAllocations | None:
    if not record.adaptive:
        return None
    return pb.AdaptiveAllocations(
        min_number_of_allocations=record.min_number_of_allocations,
        max_number_of_allocations=record.max_number_of_allocations,
    )
