"""How deployments move from state to state: started, broken and tried again, resized, asleep and woken, drained."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog

from termwise.server.errors import (
    FailedPreconditionError,
    ResourceExhaustedError,
    TermwiseError,
    UnavailableError,
)
from termwise.server.metadata.records import ModelState
from termwise.server.models.runner import DeploymentState, Runner
from termwise.server.models.waiting import within

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.server.context import RequestContext
    from termwise.server.metadata.records import DeploymentRecord
    from termwise.server.metadata.store import MetadataStore
    from termwise.server.models.budget import Budget
    from termwise.server.models.catalog import ModelCatalog
    from termwise.server.models.launching import Launcher
    from termwise.server.models.waiting import Steps

OnChange: TypeAlias = "Callable[[str, bool], None]"
"""Hears a deployment's id and whether it answers now; called on the event loop."""

RETRY_SECONDS: Final = 1.0
"""How long a deployment whose workers kept dying rests before it is started again; doubled each time."""
_LONGEST_RETRY_SECONDS: Final = 60.0
_SOUND_SECONDS: Final = 300.0
"""One that ran for so long begins with the shortest rest again."""

_log = structlog.get_logger(__name__)


class Lifecycle:
    """Holds the deployments that are here, and moves them. Used from one event loop.

    What changes a record is called under the lock of names.
    """

    def __init__(
        self,
        store: MetadataStore,
        catalog: ModelCatalog,
        launcher: Launcher,
        budget: Budget,
        *,
        steps: Steps,
        on_change: OnChange,
        clock: Callable[[], float],
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """Begin with none."""
        self.runners: dict[str, Runner] = {}
        self._store = store
        self._catalog = catalog
        self._launcher = launcher
        self._budget = budget
        self._steps = steps
        self._on_change = on_change
        self._clock = clock
        self._retry_seconds = retry_seconds

    def begin(self, record: DeploymentRecord) -> Runner:
        """Take a deployment in, and start it; one that was asleep stays so until it is asked."""
        runner = self.runners[record.deployment_id] = Runner(record, self._clock())
        if record.number_of_allocations:
            self._launch(runner)
        else:
            self._move(runner, DeploymentState.STARTED)
        return runner

    def revive(self, model_id: str) -> None:
        """Start again what had FAILED for want of a model that is there now."""
        for runner in self.runners.values():
            if runner.record.model_id == model_id and runner.state is DeploymentState.FAILED:
                self._launch(runner)

    def _launch(self, runner: Runner) -> None:
        if runner.retry is not None:
            runner.retry.cancel()
            runner.retry = None
        runner.failure = None
        self._move(runner, DeploymentState.STARTING)
        runner.starting = asyncio.create_task(self._run(runner))

    async def _run(self, runner: Runner) -> None:
        """Bring a deployment to STARTED or FAILED."""
        deployment_id = runner.record.deployment_id
        try:
            await self._rested(runner)
            model = await self._catalog.ready(runner.record.model_id)
            runner.memory = self._budget.take(runner.record, model)
            await self._launcher.launch(runner, model, self._break_down)
        except asyncio.CancelledError:
            raise
        except BaseException as caught:  # noqa: BLE001 - whatever happens (a panic in Rust is no Exception), it says so
            runner.failure = _explain(runner.record, caught)
            await self._launcher.land(runner)  # some of its threads could not be started
            self._budget.give_back(deployment_id)
            self._move(runner, DeploymentState.FAILED)
            _log.warning("deployment_failed", deployment=deployment_id, error=runner.failure.message)
        else:
            runner.start_time, runner.since = datetime.now(UTC), self._clock()
            runner.peak = max(runner.peak, runner.record.number_of_allocations)
            if runner.encoder is not None:
                runner.memory = self._budget.settle(runner.record, model, runner.encoder.precision)
            self._move(runner, DeploymentState.STARTED)
            _log.info("deployment_started", deployment=deployment_id, model=runner.record.model_id)

    @staticmethod
    async def _rested(runner: Runner) -> None:
        """Wait until the workers that it had before have ended."""
        if runner.resting is not None:
            await asyncio.wait({runner.resting})

    def _move(self, runner: Runner, state: DeploymentState) -> None:
        runner.state = state
        self._on_change(runner.record.deployment_id, state is DeploymentState.STARTED)
        runner.signal.fire()

    def _break_down(self, runner: Runner, error: UnavailableError) -> None:
        """Take a deployment whose workers keep dying out of service, and try again after a while."""
        if runner.state is not DeploymentState.STARTED:
            return
        if self._clock() - runner.since > _SOUND_SECONDS:
            runner.breakdowns = 0
        pause = min(self._retry_seconds * 2**runner.breakdowns, _LONGEST_RETRY_SECONDS)
        runner.breakdowns += 1
        runner.failure = error
        self._budget.give_back(runner.record.deployment_id)
        self._move(runner, DeploymentState.FAILED)
        _log.error("deployment_broke_down", deployment=runner.record.deployment_id, retry_seconds=pause)
        runner.resting = asyncio.create_task(self._launcher.land(runner))
        runner.retry = asyncio.get_running_loop().call_later(pause, self._try_again, runner)

    def _try_again(self, runner: Runner) -> None:
        if runner.state is DeploymentState.FAILED:
            self._launch(runner)

    async def resize(self, runner: Runner, record: DeploymentRecord) -> None:
        """Store how many allocations a deployment shall have, and give it as many; none puts it to sleep.

        One that is FAILED is tried again.

        Raises:
            ResourceExhaustedError: there is too little memory for them, or the system gives no more threads; of the
                latter there are then fewer than stored.

        """
        allocations = record.number_of_allocations
        model = (await self._catalog.get(record.model_id)).record
        memory = runner.memory
        if not allocations:
            memory = None
        elif model.state is ModelState.READY:
            memory = self._budget.check(record, model)
        await asyncio.to_thread(self._store.put_deployment, record)
        runner.record, runner.memory = record, memory
        if memory is not None and runner.state is not DeploymentState.FAILED:
            self._budget.take(record, model)
        if runner.is_asleep:
            if allocations and not runner.is_waking:  # else what is on its way has the new number
                self._wake(runner)
        elif runner.batcher is not None:
            await self._give(runner, allocations)
        elif runner.state is DeploymentState.FAILED:
            self._launch(runner)  # fewer may fit
        runner.signal.fire()

    async def _give(self, runner: Runner, allocations: int) -> None:
        batcher, deployment_id = runner.batcher, runner.record.deployment_id
        if batcher is None:
            return
        if not allocations:
            self._budget.give_back(deployment_id)
            runner.resting = asyncio.create_task(self._launcher.land(runner))
            return
        try:
            await asyncio.to_thread(batcher.resize, allocations)
        except RuntimeError as error:
            raise ResourceExhaustedError(
                f'The system gives deployment "{deployment_id}" no threads for {allocations} allocations '
                f"({batcher.allocation_count} run); ask for fewer.",
                reason="THREADS_EXHAUSTED",
                metadata={"deployment": deployment_id},
            ) from error
        runner.peak = max(runner.peak, allocations)

    def _wake(self, runner: Runner) -> None:
        """Bring the workers of a deployment that is asleep back. It stays STARTED: it answers, if late."""
        _log.info("deployment_wakes", deployment=runner.record.deployment_id)
        runner.starting = runner.waking = asyncio.create_task(self._run(runner))

    async def awake(self, context: RequestContext, runner: Runner) -> None:
        """Wait until a deployment that was asleep has workers, or has FAILED.

        Raises:
            DeadlineExceededError: the deadline passed first; it goes on waking.
            ResourceExhaustedError: others have taken the memory that it needs.

        """
        deployment_id = runner.record.deployment_id
        message = f'Deployment "{deployment_id}" slept for want of work and is still waking; call again.'
        while runner.is_asleep:
            if not runner.is_waking:
                await within(context, self._steps.run(self._wake_up(runner)), message)
            if runner.waking is not None:
                await within(context, asyncio.wait({runner.waking}), message)

    async def _wake_up(self, runner: Runner) -> None:
        async with self._catalog.names:
            if runner.is_asleep and not runner.is_waking:
                await self.resize(runner, dataclasses.replace(runner.record, number_of_allocations=1))

    def end(self, runner: Runner) -> asyncio.Task[None]:
        """Begin to stop a deployment; the task ends once all that it admitted is answered."""
        self._move(runner, DeploymentState.STOPPING)
        if runner.starting is not None:
            runner.starting.cancel()  # at once: a start that is about to end well would be STARTED again
        return asyncio.create_task(self._drain(runner))

    async def _drain(self, runner: Runner) -> None:
        deployment_id = runner.record.deployment_id
        if runner.retry is not None:
            runner.retry.cancel()
        if runner.starting is not None:
            with suppress(asyncio.CancelledError):
                await runner.starting
        try:
            await self._rested(runner)
            await self._launcher.land(runner)
        finally:
            self._budget.give_back(deployment_id)
            self.runners.pop(deployment_id, None)
            runner.gone = True
            runner.signal.fire()
        _log.info("deployment_stopped", deployment=deployment_id)


def _explain(record: DeploymentRecord, caught: BaseException) -> TermwiseError:
    if isinstance(caught, TermwiseError):
        if record.precision or all(each.field != "precision" for each in caught.violations):
            return caught
        # The request has no such field; the operator set it.
        return caught.in_terms_of(f"The server's setting precision: {caught.sentence}", [])
    _log.error("deployment_broke", deployment=record.deployment_id, exc_info=caught)
    if isinstance(caught, MemoryError):
        return FailedPreconditionError("There is not enough memory for the model.", reason="MEMORY_FULL")
    return FailedPreconditionError(
        f"The model could not be loaded ({type(caught).__name__}); the server's log says more.", reason="LOAD_FAILED"
    )
