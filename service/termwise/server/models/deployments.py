"""Deployments: models that run. A state machine around each, from the wish to the workers and back."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog

from termwise.server.errors import (
    FailedPreconditionError,
    NotFoundError,
    Resource,
    ResourceExhaustedError,
    TermwiseError,
    UnavailableError,
    already_exists,
    invalid_field,
    not_found,
)
from termwise.server.inference.base import Expansions, Side
from termwise.server.metadata.records import DeploymentRecord, ModelState
from termwise.server.models.aliases import some
from termwise.server.models.budget import check_budget
from termwise.server.models.catalog import check_usable
from termwise.server.models.launching import Launcher
from termwise.server.models.memory import estimate_memory
from termwise.server.models.requests import DeploymentWait, check_deployment, check_update
from termwise.server.models.runner import Deployment, DeploymentState, Runner, adaptive_allocations
from termwise.server.models.scaling import SAMPLE_SECONDS
from termwise.server.models.waiting import Steps, within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from termwise.server.context import RequestContext
    from termwise.server.metadata.records import ModelRecord
    from termwise.server.metadata.store import MetadataStore
    from termwise.server.models.aliases import References
    from termwise.server.models.catalog import ModelCatalog
    from termwise.server.models.encoders import EncoderKey, Load
    from termwise.server.models.memory import MemoryEstimate
    from termwise.server.models.requests import DeploymentUpdate, NewDeployment

OnChange: TypeAlias = "Callable[[str, bool], None]"
"""Hears a deployment's id and whether it answers now; called on the event loop."""

_FIRST_RETRY_SECONDS: Final = 1.0
_LONGEST_RETRY_SECONDS: Final = 60.0
"""How long a deployment whose workers kept dying rests before it is started again; doubled each time."""

_log = structlog.get_logger(__name__)


class Deployments:
    """Starts, runs and stops deployments, and expands texts by them (`inference.base.Expander`)."""

    def __init__(
        self,
        store: MetadataStore,
        catalog: ModelCatalog,
        *,
        load: Load,
        references: References,
        on_change: OnChange = lambda _id, _answers: None,
        precision: str = "auto",
        memory_bytes: int = 1 << 62,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with none; `restore` brings those back that the store wants.

        `precision` is that of deployments which ask for none; `memory_bytes` is the most that all may take together, by
        estimate.
        """
        self._store = store
        self._catalog = catalog
        self._launcher = Launcher(catalog, load, precision)
        self._references = references
        self._on_change = on_change
        self._memory_bytes = memory_bytes
        self._clock = clock
        self._steps = Steps()
        self._runners: dict[str, Runner] = {}
        self._closing = False
        self._scaling: asyncio.Task[None] | None = None
        catalog.when_ready(self._revive)

    async def start(
        self, context: RequestContext, new: NewDeployment, wait: DeploymentWait = DeploymentWait.STARTED
    ) -> Deployment:
        """Store the wish for a deployment, start it in the background, and stay as long as `wait` says.

        Raises:
            InvalidArgumentError: a field breaks a rule; it is named.
            NotFoundError: there is no such model.
            AlreadyExistsError: the deployment id is taken.
            FailedPreconditionError: the model has no files, failed to download or to load; of the last the deployment
                stays, FAILED.
            ResourceExhaustedError: it does not fit into the memory that is left.
            DeadlineExceededError: the deadline passed while waiting; the start goes on.
            UnavailableError: it was stopped meanwhile, or the server stops.

        """
        check_deployment(new)
        runner = await self._steps.run(self._admit(new))
        deployment_id = runner.record.deployment_id
        if wait is DeploymentWait.STARTING:
            return runner.view()
        message = f'Deployment "{deployment_id}" is still starting; follow it with GetDeployment.'
        await within(context, runner.settle(wait), message)
        if (error := runner.outcome()) is not None:
            raise error
        return runner.view()

    async def estimate(self, new: NewDeployment) -> Deployment:
        """Say what a deployment would be; nothing is stored or started.

        Raises:
            TermwiseError: `start` would refuse it, for the same reason.

        """
        check_deployment(new)
        async with self._catalog.names:
            record, memory = await self._check_new(new)
            return Deployment(record, DeploymentState.STARTING, memory=memory)

    async def _admit(self, new: NewDeployment) -> Runner:
        async with self._catalog.names:
            record, _ = await self._check_new(new)
            if not await asyncio.to_thread(self._store.insert_deployment, record):
                raise _taken(record.deployment_id)
            return self._begin(record)

    async def _check_new(self, new: NewDeployment) -> tuple[DeploymentRecord, MemoryEstimate | None]:
        """Make the record of a new deployment, checked against what there is."""
        if self._closing:
            raise UnavailableError("The server is stopping.", reason="SERVER_STOPPING")
        model = (await self._catalog.get(new.model_id)).record
        check_usable(model)
        record = _record(new, model)
        deployment_id = record.deployment_id
        if deployment_id in self._catalog.aliases:
            raise invalid_field("deployment_id", f'"{deployment_id}" is the alias of a model; choose another.')
        if deployment_id != model.model_id and await self._catalog.has(deployment_id):
            raise invalid_field("deployment_id", f'"{deployment_id}" is the id of another model; choose another.')
        if deployment_id in self._runners:
            raise _taken(deployment_id)
        return record, self._check_memory(record, model)

    def _check_memory(self, record: DeploymentRecord, model: ModelRecord) -> MemoryEstimate | None:
        """Estimate a deployment's memory, and refuse one that does not fit; None before its model is READY."""
        if model.state is not ModelState.READY:
            return None
        key = self._launcher.key(record, model)
        memory = estimate_memory(record, model, precision=key.precision)
        check_budget(record.deployment_id, (key, memory), self._others(record.deployment_id), self._memory_bytes)
        return memory

    def _others(self, deployment_id: str) -> Iterable[tuple[EncoderKey, MemoryEstimate]]:
        """Give what the other deployments take that run."""
        for other, runner in self._runners.items():
            if other != deployment_id and runner.key is not None and runner.memory is not None:
                yield runner.key, runner.memory

    def _begin(self, record: DeploymentRecord) -> Runner:
        runner = self._runners[record.deployment_id] = Runner(record, self._clock())
        if record.number_of_allocations:
            self._launch(runner)
        else:  # it was asleep, and stays so until it is asked
            self._move(runner, DeploymentState.STARTED)
        return runner

    def _launch(self, runner: Runner) -> None:
        runner.failure = None
        self._move(runner, DeploymentState.STARTING)
        runner.starting = asyncio.create_task(self._run(runner))

    def _revive(self, model_id: str) -> None:
        """Start again what had FAILED for want of a model that is there now."""
        for runner in self._runners.values():
            if runner.record.model_id == model_id and runner.state is DeploymentState.FAILED:
                self._launch(runner)

    async def _run(self, runner: Runner) -> None:
        """Bring a deployment to STARTED or FAILED."""
        deployment_id = runner.record.deployment_id
        try:
            model = await self._catalog.ready(runner.record.model_id)
            runner.memory = self._check_memory(runner.record, model)
            await self._launcher.launch(runner, model, self._break_down)
        except asyncio.CancelledError:
            raise
        except BaseException as caught:  # noqa: BLE001 - whatever happens (a panic in Rust is no Exception), it says so
            runner.failure = _explain(runner.record, caught)
            await self._launcher.land(runner)  # some of its threads could not be started
            self._move(runner, DeploymentState.FAILED)
            _log.warning("deployment_failed", deployment=deployment_id, error=runner.failure.message)
        else:
            runner.start_time = datetime.now(UTC)
            runner.peak = max(runner.peak, runner.record.number_of_allocations)
            self._move(runner, DeploymentState.STARTED)
            _log.info("deployment_started", deployment=deployment_id, model=runner.record.model_id)

    def _move(self, runner: Runner, state: DeploymentState) -> None:
        runner.state = state
        self._on_change(runner.record.deployment_id, state is DeploymentState.STARTED)
        runner.signal.fire()

    def _break_down(self, runner: Runner, error: UnavailableError) -> None:
        """Take a deployment whose workers keep dying out of service, and try again after a while."""
        if runner.state is not DeploymentState.STARTED:
            return
        runner.failure = error
        self._move(runner, DeploymentState.FAILED)
        pause = min(_FIRST_RETRY_SECONDS * 2**runner.breakdowns, _LONGEST_RETRY_SECONDS)
        runner.breakdowns += 1
        _log.error("deployment_broke_down", deployment=runner.record.deployment_id, retry_seconds=pause)
        runner.starting = asyncio.create_task(self._launcher.land(runner))
        runner.retry = asyncio.get_running_loop().call_later(pause, self._try_again, runner)

    def _try_again(self, runner: Runner) -> None:
        if runner.state is DeploymentState.FAILED and not self._closing:
            self._launch(runner)

    async def update(self, deployment_id: str, update: DeploymentUpdate) -> Deployment:
        """Change how many allocations a deployment has; nothing that it admitted is lost.

        Raises:
            InvalidArgumentError: a field breaks a rule; it is named.
            NotFoundError: there is no such deployment.
            FailedPreconditionError: it is STOPPING, or of low priority and would have more than one.
            ResourceExhaustedError: it would not fit into the memory that is left.

        """
        check_update(update)
        runner = self._require(deployment_id)
        await self._steps.run(self._update(runner, update))
        return runner.view()

    async def _update(self, runner: Runner, update: DeploymentUpdate) -> None:
        async with self._catalog.names:
            before = runner.record
            if runner.gone or runner.state is DeploymentState.STOPPING:
                raise runner.unready()
            if before.priority == "low" and (update.adaptive is not None or update.number_of_allocations != 1):
                raise FailedPreconditionError(
                    f'Deployment "{before.deployment_id}" is of low priority and keeps its one allocation; start '
                    "another deployment of normal priority.",
                    reason="PRIORITY_LOW",
                    resource=Resource("deployment", before.deployment_id),
                )
            await self._resize(runner, _updated(before, update))

    async def _resize(self, runner: Runner, record: DeploymentRecord) -> None:
        """Store how many allocations a deployment shall have, and give it as many. Under the lock of names."""
        memory = self._check_memory(record, (await self._catalog.get(record.model_id)).record)
        await asyncio.to_thread(self._store.put_deployment, record)
        runner.record, runner.memory = record, memory
        allocations = record.number_of_allocations
        if runner.is_asleep:
            if allocations:
                self._wake(runner)
        elif runner.batcher is not None and allocations:
            runner.batcher.resize(allocations)
            runner.peak = max(runner.peak, allocations)
        elif runner.batcher is not None:
            runner.starting = asyncio.create_task(self._launcher.land(runner))
        runner.signal.fire()

    def _wake(self, runner: Runner) -> None:
        """Bring the workers of a deployment that is asleep back. It stays STARTED: it answers, if late."""
        _log.info("deployment_wakes", deployment=runner.record.deployment_id)
        resting = runner.starting

        async def run() -> None:
            if resting is not None:
                await asyncio.wait({resting})  # it may still be going to sleep
            await self._run(runner)

        runner.starting = runner.waking = asyncio.create_task(run())

    async def _awake(self, context: RequestContext, runner: Runner) -> None:
        """Wait until a deployment that was asleep has workers, or has FAILED."""
        deployment_id = runner.record.deployment_id
        message = f'Deployment "{deployment_id}" had no allocation for want of work; it is still starting one.'
        while runner.is_asleep:
            if runner.waking is None or runner.waking.done():
                await self._steps.run(self._wake_up(runner))
            waking = runner.waking
            if waking is not None and not waking.done():
                await within(context, asyncio.wait({waking}), message)

    async def _wake_up(self, runner: Runner) -> None:
        async with self._catalog.names:
            if runner.is_asleep and (runner.waking is None or runner.waking.done()):
                await self._resize(runner, dataclasses.replace(runner.record, number_of_allocations=1))

    async def scale(self) -> None:
        """Look at all adaptive deployments, and give each as many allocations as its load wants."""
        now = self._clock()
        for runner in [*self._runners.values()]:
            limits = adaptive_allocations(runner.record)
            if limits is None or runner.state is not DeploymentState.STARTED:
                continue
            runner.scaler.sample(now, runner.statistics.read(), runner.pending)
            current = runner.record.number_of_allocations
            wanted = runner.scaler.wanted(now, current, limits)
            if wanted != current:
                await self._steps.run(self._scale(runner, current, wanted))

    async def _scale(self, runner: Runner, current: int, wanted: int) -> None:
        deployment_id = runner.record.deployment_id
        async with self._catalog.names:
            if runner.state is not DeploymentState.STARTED or runner.record.number_of_allocations != current:
                return
            try:
                await self._resize(runner, dataclasses.replace(runner.record, number_of_allocations=wanted))
            except ResourceExhaustedError as error:
                _log.warning("deployment_cannot_grow", deployment=deployment_id, error=error.message)
                return
        _log.info("deployment_scaled", deployment=deployment_id, allocations=wanted, load=round(runner.scaler.load, 2))

    async def _scale_forever(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            try:
                await self.scale()
            except Exception:  # noqa: BLE001 - a disk that is full now may not be in ten seconds
                _log.exception("scaling_failed")

    async def stop(self, context: RequestContext, deployment_id: str, *, force: bool = False) -> None:
        """Stop a deployment: what was admitted is answered, nothing new is, then its workers end.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: something uses it and `force` is False.
            DeadlineExceededError: the deadline passed while it was draining, which goes on.

        """
        runner = self._require(deployment_id)
        users = [] if force or runner.state is DeploymentState.STOPPING else await self._users(runner.record)
        if users:
            raise FailedPreconditionError(
                f'Deployment "{deployment_id}" is used by {some(users)}; change that, or set force.',
                reason="DEPLOYMENT_IN_USE",
                metadata={"deployment": deployment_id},
                resource=Resource("deployment", deployment_id),
            )
        await self._steps.run(self._retire(runner))
        message = f'Deployment "{deployment_id}" is still answering what it had admitted; it stops by itself.'
        await within(context, runner.signal.wait_for(lambda: runner.gone), message)

    async def _users(self, record: DeploymentRecord) -> list[str]:
        """Name what uses a deployment: by its id or, where it is the last one of its model, by that one's names."""
        names = [record.deployment_id]
        if sum(each.record.model_id == record.model_id for each in self._runners.values()) == 1:
            names += [record.model_id, *self._catalog.aliases.of(record.model_id)]
        return [user for name in dict.fromkeys(names) for user in await self._references(name)]

    async def delete_model(self, context: RequestContext, model_id: str, *, force: bool = False) -> None:
        """Delete a model; with `force` its deployments are stopped first, whatever uses them.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: it is used, and `force` is False, or it is being deleted.
            DeadlineExceededError: the deadline passed while a deployment was draining; the model is still there.

        """
        if force:
            running = [each.record for each in self._runners.values() if each.record.model_id == model_id]
            for record in running:
                with suppress(NotFoundError):  # it ended by itself meanwhile
                    await self.stop(context, record.deployment_id, force=True)
        await self._catalog.delete(model_id, force=force)

    async def _retire(self, runner: Runner) -> None:
        deployment_id = runner.record.deployment_id
        async with self._catalog.names:
            if runner.state is DeploymentState.STOPPING or runner.gone:
                return
            await asyncio.to_thread(self._store.delete_deployment, deployment_id)
            runner.stopping = self._end(runner)

    def _end(self, runner: Runner) -> asyncio.Task[None]:
        self._move(runner, DeploymentState.STOPPING)
        return asyncio.create_task(self._drain(runner))

    async def _drain(self, runner: Runner) -> None:
        deployment_id = runner.record.deployment_id
        if runner.retry is not None:
            runner.retry.cancel()
        if runner.starting is not None and not runner.starting.done():
            runner.starting.cancel()
            with suppress(asyncio.CancelledError):
                await runner.starting
        try:
            await self._launcher.land(runner)
        finally:
            self._runners.pop(deployment_id, None)
            runner.gone = True
            runner.signal.fire()
        _log.info("deployment_stopped", deployment=deployment_id)

    def clear_cache(self, deployment_id: str) -> None:
        """Forget the expansions that a deployment keeps.

        Raises:
            NotFoundError: there is none.

        """
        batcher = self._require(deployment_id).batcher
        if batcher is not None:
            batcher.clear_cache()

    def get(self, deployment_id: str) -> Deployment:
        """Give one deployment.

        Raises:
            NotFoundError: there is none.

        """
        return self._require(deployment_id).view()

    def list(self, after: str = "", limit: int | None = None) -> Sequence[Deployment]:
        """Give deployments by id, from the one after `after`, `limit` at most."""
        ids = sorted(deployment_id for deployment_id in self._runners if deployment_id > after)
        return [self._runners[deployment_id].view() for deployment_id in ids[:limit]]

    async def expand(
        self,
        context: RequestContext,
        deployment_id: str,
        texts: Sequence[str],
        side: Side | None,
        *,
        wait: bool = False,
    ) -> Expansions:
        """Expand texts by a deployment, as `inference.base.Expander.expand` says."""
        runner = self._find(deployment_id)
        if runner.is_asleep:
            await self._awake(context, runner)
        encoder, batcher = runner.encoder, runner.batcher
        if runner.state is not DeploymentState.STARTED or encoder is None or batcher is None:
            raise runner.unready()
        if not texts:
            raise invalid_field("texts", "There is none; give one at least.")
        capacity = runner.record.queue_capacity
        if len(texts) > capacity and not wait:
            raise invalid_field(
                "texts",
                f'{len(texts):,} are more than deployment "{deployment_id}" ever queues; give {capacity:,} at most.',
            )
        if side is None:
            if encoder.sides_differ:
                raise invalid_field(
                    "input_type",
                    f'Model "{runner.record.model_id}" reads documents and queries differently; say which these are.',
                )
            side = Side.DOCUMENT
        expansions, timings = await batcher.submit(texts, side, deadline=context.deadline, wait=wait)
        return Expansions(expansions, runner.record.model_id, encoder.fingerprint(side), timings)

    async def restore(self) -> None:
        """Begin all deployments that the store wants, at once, in the background; `settled` waits for them.

        The catalogue is restored first.
        """
        async with self._catalog.names:
            for record in await asyncio.to_thread(self._store.list_deployments):
                if record.deployment_id not in self._runners:  # a call may have been faster
                    self._begin(record)
        self._scaling = asyncio.create_task(self._scale_forever())

    async def settled(self) -> None:
        """Wait until no deployment is STARTING any more."""
        starting = [runner.starting for runner in self._runners.values() if runner.starting is not None]
        if starting:
            await asyncio.wait(starting)

    async def close(self) -> None:
        """Drain and end all deployments; the store goes on wanting them, and the next start brings them back."""
        async with self._catalog.names:
            self._closing = True
            runners = [*self._runners.values()]
            for runner in runners:
                if runner.stopping is None:
                    runner.stopping = self._end(runner)
        if self._scaling is not None:
            self._scaling.cancel()
        await self._steps.finish()
        await asyncio.gather(*(runner.stopping for runner in runners if runner.stopping is not None))
        self._launcher.close()

    def _require(self, deployment_id: str) -> Runner:
        runner = self._runners.get(deployment_id)
        if runner is None:
            raise not_found("deployment", deployment_id, self._runners, field="deployment_id")
        return runner

    def _find(self, name: str) -> Runner:
        """Give the deployment of an id; or one that runs the model of an id or alias, the one with the least to do."""
        if name in self._runners:
            return self._runners[name]
        model_id = self._catalog.aliases.model_of(name)
        running = [each for each in self._runners.values() if each.record.model_id == model_id]
        if not running:
            raise not_found("deployment", name, [*self._runners, *self._catalog.aliases], field="deployment_id")
        return min(running, key=lambda each: (each.batcher is None, each.pending, each.record.deployment_id))


def _record(new: NewDeployment, model: ModelRecord) -> DeploymentRecord:
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


def _updated(record: DeploymentRecord, update: DeploymentUpdate) -> DeploymentRecord:
    limits = update.adaptive
    number = update.number_of_allocations or record.number_of_allocations
    return dataclasses.replace(
        record,
        number_of_allocations=limits.clamp(number) if limits else number,
        adaptive=limits is not None,
        min_number_of_allocations=limits.fewest if limits else 0,
        max_number_of_allocations=limits.most if limits else None,
    )


def _taken(deployment_id: str) -> TermwiseError:
    return already_exists("deployment", deployment_id, hint="Stop it first, or choose another id.")


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
