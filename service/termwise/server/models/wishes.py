"""What the operator wants of a deployment, as it is stored."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from termwise.server.errors import FailedPreconditionError, Resource
from termwise.server.metadata.records import DeploymentRecord
from termwise.server.models.requests import AdaptiveAllocations

if TYPE_CHECKING:
    from termwise.server.metadata.records import ModelRecord
    from termwise.server.models.requests import DeploymentUpdate, NewDeployment


def new_record(new: NewDeployment, model: ModelRecord) -> DeploymentRecord:
    """Make the record of a new deployment, whose fields were checked, of a model."""
    adaptive = new.adaptive
    return DeploymentRecord(
        deployment_id=new.deployment_id or model.model_id,
        model_id=model.model_id,
        number_of_allocations=new.first_allocations,
        threads_per_allocation=new.threads_per_allocation,
        queue_capacity=new.queue_capacity,
        create_time=datetime.now(UTC),
        precision=new.precision,
        cache_size_bytes=new.cache_size_bytes,
        priority=new.priority,
        adaptive=adaptive is not None,
        min_number_of_allocations=adaptive.fewest if adaptive else 0,
        max_number_of_allocations=adaptive.most if adaptive else None,
    )


def updated_record(record: DeploymentRecord, update: DeploymentUpdate) -> DeploymentRecord:
    """Make the record of a deployment after an update, whose fields were checked.

    Adaptive allocations begin with the number that there is, as far as their limits let them; a number ends them.

    Raises:
        FailedPreconditionError: it is of low priority, and would have more than its one allocation.

    """
    limits = update.adaptive
    if record.priority == "low" and (limits is not None or update.number_of_allocations != 1):
        raise FailedPreconditionError(
            f'Deployment "{record.deployment_id}" is of low priority and keeps its one allocation; start another '
            "deployment of normal priority.",
            reason="PRIORITY_LOW",
            resource=Resource("deployment", record.deployment_id),
        )
    number = update.number_of_allocations or record.number_of_allocations
    return dataclasses.replace(
        record,
        number_of_allocations=limits.clamp(number) if limits else number,
        adaptive=limits is not None,
        min_number_of_allocations=limits.fewest if limits else 0,
        max_number_of_allocations=limits.most if limits else None,
    )


def adaptive_allocations(record: DeploymentRecord) -> AdaptiveAllocations | None:
    """Give the limits of a deployment's allocations; None where their number is fixed."""
    if not record.adaptive:
        return None
    return AdaptiveAllocations(record.min_number_of_allocations, record.max_number_of_allocations)
