"""Deployments: models that run. A state machine around each, from the wish to the workers and back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog

from termwise.server.errors import (
    FailedPreconditionError,
    Resource,
    TermwiseError,
    UnavailableError,
    already_exists,
    invalid_field,
    not_found,
)
from termwise.server.inference.base import ExpansionConfig, Expansions, Side
from termwise.server.inference.batcher import Batcher
from termwise.server.metadata.records import DeploymentRecord
from termwise.server.models.catalog import check_usable
from termwise.server.models.encoders import EncoderKey, Encoders
from termwise.server.models.requests import DeploymentWait, check_deployment
from termwise.server.models.runner import Deployment, DeploymentState, Runner
from termwise.server.models.waiting import Steps, within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from termwise.server.context import RequestContext
    from termwise.server.metadata.store import MetadataStore
    from termwise.server.models.catalog import ModelCatalog
    from termwise.server.models.encoders import Load
    from termwise.server.models.requests import NewDeployment

References: TypeAlias = "Callable[[str], Awaitable[list[str]]]"
"""Gives the names of what uses a deployment, such as 'pipeline "expand"'."""
OnChange: TypeAlias = "Callable[[str, bool], None]"
"""Hears a deployment's id and whether it answers now; called on the event loop."""

_BATCH_TOKENS: Final = {"cpu": 4_096, "cuda": 16_384}
"""Tokens of a batch, by where the encoder computes: a device wants more work at a time."""

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
    ) -> None:
        """Begin with none; `restore` brings those back that the store wants.

        `precision` is that of deployments which ask for none.
        """
        self._store = store
        self._catalog = catalog
        self._encoders = Encoders(load)
        self._references = references
        self._on_change = on_change
        self._precision = precision
        self._steps = Steps()
        self._runners: dict[str, Runner] = {}
        self._closing = False
        catalog.when_ready(self._revive)

    async def start(
        self, context: RequestContext, new: NewDeployment, wait: DeploymentWait = DeploymentWait.STARTED
    ) -> Deployment:
        """Store the wish for a deployment, start it in the background, and stay as long as `wait` says.

        Raises:
            InvalidArgumentError: a field breaks a rule; it is named.
            NotFoundError: there is no such model.
            AlreadyExistsError: the deployment id is taken.
            FailedPreconditionError: the model failed to download or to load; the deployment stays, FAILED.
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

    async def _admit(self, new: NewDeployment) -> Runner:
        deployment_id = new.deployment_id or new.model_id
        async with self._catalog.names:
            if self._closing:
                raise UnavailableError("The server is stopping.", reason="SERVER_STOPPING")
            model = await self._catalog.get(new.model_id)
            check_usable(model.record)
            if deployment_id != new.model_id and await self._catalog.has(deployment_id):
                raise invalid_field("deployment_id", f'"{deployment_id}" is the id of another model; choose another.')
            record = DeploymentRecord(
                deployment_id=deployment_id,
                model_id=new.model_id,
                number_of_allocations=new.number_of_allocations,
                threads_per_allocation=new.threads_per_allocation,
                queue_capacity=new.queue_capacity,
                create_time=datetime.now(UTC),
                precision=new.precision,
                cache_size_bytes=new.cache_size_bytes,
            )
            if deployment_id in self._runners or not await asyncio.to_thread(self._store.insert_deployment, record):
                raise already_exists("deployment", deployment_id, hint="Stop it first, or choose another id.")
            return self._begin(record)

    def _begin(self, record: DeploymentRecord) -> Runner:
        runner = self._runners[record.deployment_id] = Runner(record)
        self._launch(runner)
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
        """Bring a deployment from STARTING to STARTED or FAILED."""
        record = runner.record
        try:
            model = await self._catalog.ready(record.model_id)
            precision = record.precision or self._precision
            key = EncoderKey(model.model_id, model.create_time, record.threads_per_allocation, precision)
            config = ExpansionConfig(**model.config)
            encoder = await self._encoders.acquire(key, self._catalog.folder(model.model_id), config)
            runner.key, runner.encoder = key, encoder
            runner.batcher = Batcher(
                encoder,
                allocations=record.number_of_allocations,
                threads=record.threads_per_allocation,
                queue_capacity=record.queue_capacity,
                batch_tokens=_BATCH_TOKENS.get(encoder.device, _BATCH_TOKENS["cpu"]),
                cache_size_bytes=model.size_bytes if record.cache_size_bytes is None else record.cache_size_bytes,
            )
            runner.batcher.start()
        except asyncio.CancelledError:
            raise
        except BaseException as caught:  # noqa: BLE001 - whatever happens (a panic in Rust is no Exception), it says so
            runner.failure = _explain(record, caught)
            if runner.batcher is not None:
                await runner.batcher.close()  # some of its threads could not be started
            self._let_go(runner)
            self._move(runner, DeploymentState.FAILED)
            _log.warning("deployment_failed", deployment=record.deployment_id, error=runner.failure.message)
        else:
            runner.start_time = datetime.now(UTC)
            self._move(runner, DeploymentState.STARTED)
            _log.info("deployment_started", deployment=record.deployment_id, model=record.model_id)

    def _move(self, runner: Runner, state: DeploymentState) -> None:
        runner.state = state
        self._on_change(runner.record.deployment_id, state is DeploymentState.STARTED)
        runner.signal.fire()

    def _let_go(self, runner: Runner) -> None:
        if runner.key is not None:
            self._encoders.release(runner.key)
        runner.key = runner.encoder = runner.batcher = None

    async def stop(self, context: RequestContext, deployment_id: str, *, force: bool = False) -> None:
        """Stop a deployment: what was admitted is answered, nothing new is, then its workers end.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: something uses it and `force` is False.
            DeadlineExceededError: the deadline passed while it was draining, which goes on.

        """
        runner = self._require(deployment_id)
        users = [] if force or runner.state is DeploymentState.STOPPING else await self._references(deployment_id)
        if users:
            more = f" and {len(users) - 5} more" if len(users) > 5 else ""  # noqa: PLR2004 - as a sentence bears
            raise FailedPreconditionError(
                f'Deployment "{deployment_id}" is used by {", ".join(users[:5])}{more}; change that, or set force.',
                reason="DEPLOYMENT_IN_USE",
                metadata={"deployment": deployment_id},
                resource=Resource("deployment", deployment_id),
            )
        await self._steps.run(self._retire(runner))
        message = f'Deployment "{deployment_id}" is still answering what it had admitted; it stops by itself.'
        await within(context, runner.signal.wait_for(lambda: runner.gone), message)

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
        if runner.starting is not None and not runner.starting.done():
            runner.starting.cancel()
            with suppress(asyncio.CancelledError):
                await runner.starting
        try:
            if runner.batcher is not None:
                await runner.batcher.close()
        finally:
            self._let_go(runner)
            self._runners.pop(deployment_id, None)
            runner.gone = True
            runner.signal.fire()
        _log.info("deployment_stopped", deployment=deployment_id)

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
        runner = self._require(deployment_id)
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
        await self._steps.finish()
        await asyncio.gather(*(runner.stopping for runner in runners if runner.stopping is not None))
        self._encoders.close()

    def _require(self, deployment_id: str) -> Runner:
        runner = self._runners.get(deployment_id)
        if runner is None:
            raise not_found("deployment", deployment_id, self._runners, field="deployment_id")
        return runner


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
