"""One deployment in memory: where it stands, and what it runs on."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Final

from termwise.server.errors import FailedPreconditionError, Resource, TermwiseError, UnavailableError
from termwise.server.inference.cache import CacheFacts
from termwise.server.inference.statistics import Statistics
from termwise.server.models.requests import DeploymentWait
from termwise.server.models.scaling import Scaler
from termwise.server.models.waiting import Signal
from termwise.server.models.wishes import adaptive_allocations

if TYPE_CHECKING:
    from datetime import datetime

    from termwise.server.inference.base import Encoder
    from termwise.server.inference.batcher import Batcher
    from termwise.server.inference.statistics import StatisticsView
    from termwise.server.metadata.records import DeploymentRecord
    from termwise.server.models.encoders import EncoderKey
    from termwise.server.models.memory import MemoryEstimate
    from termwise.server.models.requests import AdaptiveAllocations


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
    is READY and while it is asleep. `pending` texts wait; `peak_allocation_count` is the most workers that it ever had.
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


class Runner:
    """A deployment while it is here. `Lifecycle` moves it from state to state; `signal` fires at each move."""

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
        # When it last came up, in monotonic seconds.
        self.since = now
        # What brings workers, what ends those that it had.
        self.waking: asyncio.Task[None] | None = None
        self.resting: asyncio.Task[None] | None = None
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
    def is_waking(self) -> bool:
        """Whether workers are on their way to one that is asleep."""
        return self.waking is not None and not self.waking.done()

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

    def unready(self) -> TermwiseError:
        """Make the error for whoever wants texts expanded now, or the deployment changed."""
        deployment_id, why = self.record.deployment_id, self.failure.message if self.failure else ""
        metadata = {"deployment": deployment_id, "state": self.state.value}
        if self.retry is not None and self.state is DeploymentState.FAILED:
            loop = asyncio.get_running_loop()
            return UnavailableError(
                f'Deployment "{deployment_id}" broke down: {why} It is started again by itself; retry then.',
                reason="DEPLOYMENT_BROKE_DOWN",
                metadata=metadata,
                retry_after=timedelta(seconds=max(0.1, self.retry.when() - loop.time())),
            )
        lacks_model = self.failure is not None and self.failure.reason_code == "MODEL_FAILED"
        cure = "The deployment starts once the model is there." if lacks_model else "Stop it, then start it again."
        what = {
            DeploymentState.STARTING: "is still starting; wait until it is STARTED.",
            DeploymentState.STARTED: "does not answer.",
            DeploymentState.STOPPING: "is stopping; start it again, or use another.",
            DeploymentState.FAILED: f"failed to start: {why} {cure}",
        }[self.state]
        return FailedPreconditionError(
            f'Deployment "{deployment_id}" {what}',
            reason="DEPLOYMENT_NOT_STARTED",
            metadata=metadata,
            resource=Resource("deployment", deployment_id),
        )
