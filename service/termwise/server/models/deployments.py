"""Deployments: models that run. What callers may do with them; `lifecycle` moves them from state to state."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from termwise.server.errors import (
    FailedPreconditionError,
    NotFoundError,
    Resource,
    TermwiseError,
    UnavailableError,
    already_exists,
    invalid_field,
    not_found,
)
from termwise.server.inference.base import Expansions, Side
from termwise.server.metadata.records import ModelState
from termwise.server.models.aliases import some
from termwise.server.models.autoscaler import Autoscaler
from termwise.server.models.budget import Budget
from termwise.server.models.launching import Launcher
from termwise.server.models.lifecycle import RETRY_SECONDS, Lifecycle
from termwise.server.models.requests import DeploymentWait, check_deployment, check_update
from termwise.server.models.runner import Deployment, DeploymentState
from termwise.server.models.trained_model import check_usable
from termwise.server.models.waiting import Steps, within
from termwise.server.models.wishes import new_record, updated_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from termwise.server.context import RequestContext
    from termwise.server.metadata.records import DeploymentRecord, ModelRecord
    from termwise.server.metadata.store import MetadataStore
    from termwise.server.models.aliases import References
    from termwise.server.models.catalog import ModelCatalog
    from termwise.server.models.encoders import Load
    from termwise.server.models.lifecycle import OnChange
    from termwise.server.models.requests import DeploymentUpdate, NewDeployment
    from termwise.server.models.runner import Runner


class Deployments:
    """Starts, changes and stops deployments, and expands texts by them (`inference.base.Expander`)."""

    def __init__(  # noqa: PLR0913 - half of them have defaults
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
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """Begin with none; `restore` brings those back that the store wants.

        `precision` is that of deployments which ask for none; `memory_bytes` is the most that all may take together, by
        estimate; `retry_seconds` is the first rest of one whose workers kept dying.
        """
        self._store = store
        self._catalog = catalog
        self._references = references
        self._steps = Steps()
        self._closing = False
        self._launcher = Launcher(catalog, load, precision)
        self._budget = Budget(memory_bytes, self._launcher.key)
        self._lifecycle = Lifecycle(
            store,
            catalog,
            self._launcher,
            self._budget,
            steps=self._steps,
            on_change=on_change,
            clock=clock,
            retry_seconds=retry_seconds,
        )
        self._runners = self._lifecycle.runners
        self._autoscaler = Autoscaler(self._lifecycle, catalog.names, self._steps, clock)
        catalog.when_ready(self._lifecycle.revive)

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
            record, model = await self._check_new(new)
            memory = self._budget.check(record, model) if model.state is ModelState.READY else None
            return Deployment(record, DeploymentState.STARTING, memory=memory)

    async def _admit(self, new: NewDeployment) -> Runner:
        async with self._catalog.names:
            record, model = await self._check_new(new)
            is_ready = model.state is ModelState.READY
            if is_ready:
                self._budget.check(record, model)
            if not await asyncio.to_thread(self._store.insert_deployment, record):
                raise _taken(record.deployment_id)
            runner = self._lifecycle.begin(record)
            if is_ready:  # at once, so that a start beside this one finds it taken
                runner.memory = self._budget.take(record, model)
            return runner

    async def _check_new(self, new: NewDeployment) -> tuple[DeploymentRecord, ModelRecord]:
        """Make the record of a new deployment, checked against the names that there are."""
        if self._closing:
            raise UnavailableError("The server is stopping.", reason="SERVER_STOPPING")
        model = (await self._catalog.get(new.model_id)).record
        check_usable(model)
        record = new_record(new, model)
        deployment_id = record.deployment_id
        if deployment_id in self._catalog.aliases:
            raise invalid_field("deployment_id", f'"{deployment_id}" is the alias of a model; choose another.')
        if deployment_id != model.model_id and await self._catalog.has(deployment_id):
            raise invalid_field("deployment_id", f'"{deployment_id}" is the id of another model; choose another.')
        if deployment_id in self._runners:
            raise _taken(deployment_id)
        return record, model

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
            if runner.gone or runner.state is DeploymentState.STOPPING:
                raise runner.unready()
            await self._lifecycle.resize(runner, updated_record(runner.record, update))

    async def scale(self) -> None:
        """Give each adaptive deployment as many allocations as its load wants; done every ten seconds by itself."""
        await self._autoscaler.look()

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
        others = (each for each in self._runners.values() if each.record is not record)
        if not any(each.record.model_id == record.model_id and _stays(each) for each in others):
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
            runner.stopping = self._lifecycle.end(runner)

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
        runner = self._runners.get(deployment_id) or await self._of_model(deployment_id)
        while True:
            if runner.is_asleep:
                await self._lifecycle.awake(context, runner)
            try:
                return await self._expand(context, runner, texts, side, wait=wait)
            except UnavailableError:
                if not runner.is_asleep:  # else it fell asleep before there was room in its queue
                    raise

    async def _expand(
        self, context: RequestContext, runner: Runner, texts: Sequence[str], side: Side | None, *, wait: bool
    ) -> Expansions:
        encoder, batcher = runner.encoder, runner.batcher
        if runner.state is not DeploymentState.STARTED or encoder is None or batcher is None:
            raise runner.unready()
        if not texts:
            raise invalid_field("texts", "There is none; give one at least.")
        capacity = runner.record.queue_capacity
        if len(texts) > capacity and not wait:
            raise invalid_field(
                "texts",
                f'{len(texts):,} are more than deployment "{runner.record.deployment_id}" ever queues; give '
                f"{capacity:,} at most.",
            )
        if side is None:
            if encoder.sides_differ:
                raise invalid_field(
                    "input_type",
                    f'Model "{runner.record.model_id}" reads documents and queries differently; say which these are.',
                )
            side = Side.DOCUMENT
        expansions, timings = await batcher.submit(
            texts, side, deadline=context.deadline, wait=wait, group=context.request_id
        )
        model_id = runner.record.model_id
        aliases = self._catalog.aliases.of(model_id)
        return Expansions(expansions, model_id, encoder.fingerprint(side), timings, aliases)

    async def restore(self) -> None:
        """Begin all deployments that the store wants, at once, in the background; `settled` waits for them.

        The catalogue is restored first.
        """
        async with self._catalog.names:
            for record in await asyncio.to_thread(self._store.list_deployments):
                if record.deployment_id not in self._runners:  # a call may have been faster
                    self._lifecycle.begin(record)
        self._autoscaler.start()

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
                    runner.stopping = self._lifecycle.end(runner)
        self._autoscaler.close()
        await self._steps.finish()
        await asyncio.gather(*(runner.stopping for runner in runners if runner.stopping is not None))
        self._launcher.close()

    def _require(self, deployment_id: str) -> Runner:
        runner = self._runners.get(deployment_id)
        if runner is None:
            raise not_found("deployment", deployment_id, self._runners, field="deployment_id")
        return runner

    async def _of_model(self, name: str) -> Runner:
        """Give a deployment that runs the model of an id or alias: one that is up, with the least to do."""
        model_id = self._catalog.aliases.model_of(name)
        running = [each for each in self._runners.values() if each.record.model_id == model_id]
        if running:
            return min(running, key=_reluctance)
        if model_id != name:
            hint = f'It is an alias of model "{model_id}", which no deployment runs; start one.'
        elif await self._catalog.has(name):
            hint = "There is a model of that id; start a deployment of it."
        else:
            raise not_found("deployment", name, [*self._runners, *self._catalog.aliases], field="deployment_id")
        raise not_found("deployment", name, field="deployment_id", hint=hint)


def _reluctance(runner: Runner) -> tuple[bool, bool, int, str]:
    return (
        runner.state is not DeploymentState.STARTED,
        runner.is_asleep,
        runner.pending,
        runner.record.deployment_id,
    )


def _stays(runner: Runner) -> bool:
    return runner.state in {DeploymentState.STARTING, DeploymentState.STARTED}


def _taken(deployment_id: str) -> TermwiseError:
    return already_exists("deployment", deployment_id, hint="Stop it first, or choose another id.")
