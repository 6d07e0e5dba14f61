"""One deployment in memory: where it stands, and what it runs on."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import TYPE_CHECKING, Final

from termwise.server.errors import FailedPreconditionError, Resource, TermwiseError, UnavailableError
from termwise.server.inference.cache import CacheFacts
from termwise.server.inference.statistics import Statistics
from termwise.server.models.requests import AdaptiveAllocations, DeploymentWait
from termwise.server.models.scaling import Scaler
from termwise.server.models.waiting import Signal

if TYPE_CHECKING:
    import asyncio
    from datetime import datetime

    from termwise.server.inference.base import Encoder
    from termwise.server.inference.batcher import Batcher
    from termwise.server.inference.statistics import StatisticsView
    from termwise.server.metadata.records import DeploymentRecord
    from termwise.server.models.encoders import EncoderKey
    from termwise.server.models.memory import MemoryEstimate


NO_CACHE: Final = CacheFacts()


class DeploymentState(Enum):
    """Where a deployment stands."""

    STARTING = "STARTING"
    STARTED = "STARTED"
    STOPPING = "STOPPING"
    FAILED = "FAILED"


@dataclasses.dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment as it stands.

    `precision`, `device` and `engine` are "" and `start_time` None until it is STARTED, `memory` None until its model
    is READY. `pending` texts wait; `peak_allocation_count` is the most workers that it ever had.
    """

    record: DeploymentRecord
    state: DeploymentState
    allocation_count: int = 0
    peak_allocation_count: int = 0
    precision: str = ""
    device: str = ""
    error: str = ""
    start_time: datetime | None = None
    cache: CacheFacts = NO_CACHE
    engine: str = ""
    memory: MemoryEstimate | None = None
    statistics: StatisticsView | None = None
    pending: int = 0

    @property
    def adaptive(self) -> AdaptiveAllocations | None:
        """Limits of its allocations; None where their number is fixed."""
        return adaptive_allocations(self.record)


def adaptive_allocations(record: DeploymentRecord) -> AdaptiveAllocations | None:
    """Give the limits of a deployment's allocations; None where their number is fixed."""
    if not record.adaptive:
        return None
    return AdaptiveAllocations(record.min_number_of_allocations, record.max_number_of_allocations)


class Runner:
    """A deployment while it is here. `Deployments` moves it from state to state; `signal` fires at each move."""

    def __init__(self, record: DeploymentRecord, now: float) -> None:
        """Begin STARTING, with nothing; `now` is in monotonic seconds."""
        self.record = record
        self.statistics = Statistics()
        self.scaler = Scaler(now)
        self.memory: MemoryEstimate | None = None
        self.peak = 0
        # How often in a row its workers died until it was given up.
        self.breakdowns = 0
        self.retry: asyncio.TimerHandle | None = None
        self.waking: asyncio.Task[None] | None = None
        self.state = DeploymentState.STARTING
        self.failure: TermwiseError | None = None
        self.key: EncoderKey | None = None
        self.encoder: Encoder | None = None
        self.batcher: Batcher | None = None
        self.start_time: datetime | None = None
        self.signal = Signal()
        self.starting: asyncio.Task[None] | None = None
        self.stopping: asyncio.Task[None] | None = None
        self.gone = False

    @property
    def is_asleep(self) -> bool:
        """Whether it has no workers, since nothing was asked of it for long; the next text wakes it."""
        return self.state is DeploymentState.STARTED and self.batcher is None

    @property
    def pending(self) -> int:
        """Texts that wait for a worker."""
        return self.batcher.pending if self.batcher else 0

    def view(self) -> Deployment:
        """Give the deployment as it stands."""
        return Deployment(
            self.record,
            self.state,
            allocation_count=self.batcher.allocation_count if self.batcher else 0,
            peak_allocation_count=self.peak,
            precision=self.encoder.precision if self.encoder else "",
            device=self.encoder.device if self.encoder else "",
            error=self.failure.message if self.failure else "",
            start_time=self.start_time,
            cache=self.batcher.cache_facts if self.batcher else NO_CACHE,
            engine=self.encoder.engine if self.encoder else "",
            memory=self.memory,
            statistics=self.statistics.read(),
            pending=self.pending,
        )

    async def settle(self, wait: DeploymentWait) -> None:
        """Wait until a start has come as far as `wait` says, or has ended otherwise."""
        await self.signal.wait_for(lambda: self.state is not DeploymentState.STARTING)
        if wait is DeploymentWait.FULLY_ALLOCATED:
            await self.signal.wait_for(lambda: self.state is not DeploymentState.STARTED or self._fully_allocated())

    def _fully_allocated(self) -> bool:
        return self.batcher is not None and self.batcher.allocation_count >= self.record.number_of_allocations

    def outcome(self) -> TermwiseError | None:
        """Give the error for whoever waited for the start; None where it is STARTED."""
        deployment_id = self.record.deployment_id
        if self.state is DeploymentState.STARTED:
            return None
        if self.failure is None:
            return UnavailableError(
                f'Deployment "{deployment_id}" was stopped meanwhile.',
                reason="DEPLOYMENT_STOPPED",
                metadata={"deployment": deployment_id},
            )
        return FailedPreconditionError(
            f'Deployment "{deployment_id}" could not start: {self.failure.message}',
            reason="DEPLOYMENT_FAILED",
            metadata={"deployment": deployment_id, "cause": self.failure.reason_code},
            violations=self.failure.violations,
            resource=Resource("deployment", deployment_id),
        )

    def _cure(self) -> str:
        if self.failure is not None and self.failure.reason_code == "MODEL_FAILED":
            return "The deployment starts once the model is there."
        return "Stop it, then start it again."

    def unready(self) -> FailedPreconditionError:
        """Make the error for whoever wants texts expanded now."""
        what = {
            DeploymentState.STARTING: "is still starting; wait until it is STARTED.",
            DeploymentState.STARTED: "does not answer.",
            DeploymentState.STOPPING: "is stopping; start it again, or use another.",
            DeploymentState.FAILED: f"failed to start: {self.failure.message if self.failure else ''} {self._cure()}",
        }[self.state]
        deployment_id = self.record.deployment_id
        return FailedPreconditionError(
            f'Deployment "{deployment_id}" {what}',
            reason="DEPLOYMENT_NOT_STARTED",
            metadata={"deployment": deployment_id, "state": self.state.value},
            resource=Resource("deployment", deployment_id),
        )
