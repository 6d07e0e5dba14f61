"""Figures of models and of the deployments that run them, as Elasticsearch's trained-model statistics have them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from termwise.server.errors import not_found
from termwise.server.metadata.records import ModelState
from termwise.server.models.memory import required_bytes
from termwise.server.models.patterns import Patterns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from termwise.server.inference.statistics import StatisticsView
    from termwise.server.models.catalog import ModelCatalog
    from termwise.server.models.deployments import Deployments
    from termwise.server.models.runner import Deployment
    from termwise.server.models.trained_model import TrainedModel

PipelinesOf: TypeAlias = "Callable[[str], Awaitable[Sequence[str]]]"
"""Names the pipelines that use a name: a deployment's id, or a model's id or alias."""


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Figures of a model at `time`; counts are of texts, of all its deployments that run now."""

    model: TrainedModel
    required_memory_bytes: int
    pipeline_count: int
    deployments: Sequence[Deployment]
    time: datetime

    @property
    def inference_count(self) -> int:
        """Texts answered."""
        return sum(each.inference_count for each in self._counts)

    @property
    def cache_miss_count(self) -> int:
        """Texts that the model ran for."""
        return sum(each.cache_miss_count for each in self._counts)

    @property
    def failure_count(self) -> int:
        """Texts that it failed on."""
        return sum(each.error_count for each in self._counts)

    @property
    def _counts(self) -> Sequence[StatisticsView]:
        return [each.statistics for each in self.deployments if each.statistics is not None]


class Statistics:
    """Gathers the figures of models."""

    def __init__(self, catalog: ModelCatalog, deployments: Deployments, pipelines: PipelinesOf) -> None:
        """Ask these."""
        self._catalog = catalog
        self._deployments = deployments
        self._pipelines = pipelines

    async def gather(
        self, names: Sequence[str], after: str = "", limit: int | None = None
    ) -> Sequence[ModelStatistics]:
        """Give figures by model id, from the one after `after`, `limit` at most; all models where `names` is empty.

        A name is a model's id or alias, or a deployment's id, which stands for its model and that deployment alone;
        "*" in it stands for any characters.

        Raises:
            NotFoundError: a name without "*" is none of these.

        """
        models = await self._catalog.list()
        running = self._deployments.list()
        known = {name for model in models for name in _names(model)} | {each.record.deployment_id for each in running}
        wanted = Patterns(names)
        for name in wanted.missing(known):
            raise not_found("model", name, known, field=f"model_ids[{names.index(name)}]")
        found = []
        for model in models:
            own = [each for each in running if each.record.model_id == model.record.model_id]
            if not wanted.fit(*_names(model)):
                own = [each for each in own if wanted.fit(each.record.deployment_id)]
                if not own:
                    continue
            if model.record.model_id > after:
                found.append((model, own))
        return [await self._of(model, own) for model, own in found[:limit]]

    async def _of(self, model: TrainedModel, deployments: Sequence[Deployment]) -> ModelStatistics:
        users: set[str] = set()
        for name in (*_names(model), *(each.record.deployment_id for each in deployments)):
            users |= set(await self._pipelines(name))
        required = required_bytes(model.record) if model.record.state is ModelState.READY else 0
        return ModelStatistics(model, required, len(users), deployments, datetime.now(UTC))


def _names(model: TrainedModel) -> Sequence[str]:
    return (model.record.model_id, *model.aliases)
