"""From a deployment that is wanted to one that runs, and back: its encoder and its workers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from termwise.server.inference.base import ExpansionConfig
from termwise.server.inference.batcher import Batcher
from termwise.server.inference.priority import PriorityGate
from termwise.server.models.encoders import EncoderKey, Encoders

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.server.errors import UnavailableError
    from termwise.server.metadata.records import DeploymentRecord, ModelRecord
    from termwise.server.models.catalog import ModelCatalog
    from termwise.server.models.encoders import Load
    from termwise.server.models.runner import Runner

_BATCH_TOKENS: Final = {"cpu": 4_096, "cuda": 16_384}
"""Tokens of a batch, by where the encoder computes: a device wants more work at a time."""


class Launcher:
    """Gives runners what they run on, and takes it back."""

    def __init__(self, catalog: ModelCatalog, load: Load, precision: str) -> None:
        """Load nothing yet. `precision` is that of deployments which ask for none."""
        self._catalog = catalog
        self._encoders = Encoders(load)
        self._precision = precision
        self._gate = PriorityGate()

    def key(self, record: DeploymentRecord, model: ModelRecord) -> EncoderKey:
        """Give what a deployment shares its encoder by."""
        precision = record.precision or self._precision
        return EncoderKey(model.model_id, model.create_time, record.threads_per_allocation, precision)

    async def launch(
        self, runner: Runner, model: ModelRecord, on_broken: Callable[[Runner, UnavailableError], None]
    ) -> None:
        """Load a runner's model and start its workers; `on_broken` hears, on the event loop, that they keep dying.

        Raises whatever loading raises; there is then nothing to take back but by `land`.
        """
        key = self.key(runner.record, model)
        folder = self._catalog.folder(model.model_id)
        encoder = await self._encoders.acquire(key, folder, ExpansionConfig(**model.config))
        runner.key, runner.encoder = key, encoder
        loop = asyncio.get_running_loop()
        record = runner.record  # as an update has left it meanwhile
        cache = record.cache_size_bytes
        runner.batcher = Batcher(
            encoder,
            allocations=max(1, record.number_of_allocations),
            threads=record.threads_per_allocation,
            queue_capacity=record.queue_capacity,
            batch_tokens=_BATCH_TOKENS.get(encoder.device, _BATCH_TOKENS["cpu"]),
            cache_size_bytes=model.size_bytes if cache is None else cache,
            statistics=runner.statistics,
            gate=self._gate,
            low_priority=record.priority == "low",
            on_broken=lambda error: _on_loop(loop, on_broken, runner, error),
            name=record.deployment_id,
        )
        runner.batcher.start()

    async def land(self, runner: Runner) -> None:
        """Answer what a runner admitted, end its workers, and let its model go."""
        batcher, key = runner.batcher, runner.key
        # From here on nobody finds them, so that what comes now is for whoever launches it next.
        runner.batcher = runner.encoder = runner.key = None
        try:
            if batcher is not None:
                await batcher.close()
        finally:
            if key is not None:
                self._encoders.release(key)

    def close(self) -> None:
        """Load no more."""
        self._encoders.close()


def _on_loop(
    loop: asyncio.AbstractEventLoop,
    tell: Callable[[Runner, UnavailableError], None],
    runner: Runner,
    error: UnavailableError,
) -> None:
    """Tell from a worker's thread; nobody where the server has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(tell, runner, error)
