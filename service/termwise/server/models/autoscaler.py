"""The task that gives adaptive deployments as many allocations as their load wants."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import structlog

from termwise.server.errors import ResourceExhaustedError
from termwise.server.models.runner import DeploymentState
from termwise.server.models.scaling import SAMPLE_SECONDS
from termwise.server.models.wishes import adaptive_allocations

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.server.models.lifecycle import Lifecycle
    from termwise.server.models.runner import Runner
    from termwise.server.models.waiting import Steps

_log = structlog.get_logger(__name__)


class Autoscaler:
    """Looks at all adaptive deployments every ten seconds."""

    def __init__(self, lifecycle: Lifecycle, names: asyncio.Lock, steps: Steps, clock: Callable[[], float]) -> None:
        """Do nothing before `start`. `names` is held while a deployment changes; `clock` gives monotonic seconds."""
        self._lifecycle = lifecycle
        self._names = names
        self._steps = steps
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        if self._task is None:
            self._task = asyncio.create_task(self._look_forever())

    def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - a disk that is full now may not be in ten seconds
                _log.exception("scaling_failed")

    async def look(self) -> None:
        """Look at all of them once."""
        now = self._clock()
        for runner in [*self._lifecycle.runners.values()]:
            limits = adaptive_allocations(runner.record)
            if limits is None or runner.state is not DeploymentState.STARTED:
                continue
            if runner.is_waking:  # whoever woke it still waits, and is not counted yet
                runner.scaler.note_work(now)
                continue
            runner.scaler.sample(now, runner.statistics.read(), runner.pending)
            current = runner.record.number_of_allocations
            wanted = runner.scaler.wanted(now, current, limits)
            if wanted != current:
                await self._steps.run(self._scale(runner, current, wanted))

    async def _scale(self, runner: Runner, current: int, wanted: int) -> None:
        deployment_id = runner.record.deployment_id
        async with self._names:
            is_settled = runner.state is DeploymentState.STARTED and not runner.is_waking
            if not is_settled or runner.record.number_of_allocations != current:
                return
            number = wanted
            while number != current:
                record = dataclasses.replace(runner.record, number_of_allocations=number)
                try:
                    await self._lifecycle.resize(runner, record)
                    break
                except ResourceExhaustedError as error:
                    _log.warning("deployment_not_scaled", deployment=deployment_id, error=error.message)
                    number = current + int((number - current) / 2)  # what memory allows, or nearly
            else:
                return
        _log.info("deployment_scaled", deployment=deployment_id, allocations=number, load=round(runner.scaler.load, 2))
