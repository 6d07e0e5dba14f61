"""How much memory the deployments of a server may take together, by estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from termwise.server.errors import ResourceExhaustedError
from termwise.server.models.memory import estimate_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from termwise.server.metadata.records import DeploymentRecord, ModelRecord
    from termwise.server.models.encoders import EncoderKey
    from termwise.server.models.memory import MemoryEstimate


class Budget:
    """What each deployment has of the memory that all may take. Used from one event loop."""

    def __init__(self, limit_bytes: int, key: Callable[[DeploymentRecord, ModelRecord], EncoderKey]) -> None:
        """Give nothing out yet; deployments of equal `key` share their weights."""
        self._limit = limit_bytes
        self._key = key
        self._claims: dict[str, tuple[EncoderKey, MemoryEstimate]] = {}
        self._precisions: dict[EncoderKey, str] = {}

    def check(self, record: DeploymentRecord, model: ModelRecord) -> MemoryEstimate:
        """Estimate the memory of a deployment, whose model is READY, in place of what it has now.

        Raises:
            ResourceExhaustedError: beside the others it would take more than there is; the message has both figures.

        """
        return self._weigh(record, model)[1]

    def take(self, record: DeploymentRecord, model: ModelRecord) -> MemoryEstimate:
        """Do the same, and count it from now on.

        Raises:
            ResourceExhaustedError: as above; what it had it keeps.

        """
        claim = self._weigh(record, model)
        self._claims[record.deployment_id] = claim
        return claim[1]

    def settle(self, record: DeploymentRecord, model: ModelRecord, precision: str) -> MemoryEstimate:
        """Count a deployment that has been loaded, and those that share its encoder, by the precision that it got.

        Before that it counts by what was asked for, of which "auto" may turn out as anything.
        """
        self._precisions[self._key(record, model)] = precision
        claim = self._claim(record, model)
        self._claims[record.deployment_id] = claim
        return claim[1]

    def give_back(self, deployment_id: str) -> None:
        """Count a deployment no more."""
        self._claims.pop(deployment_id, None)

    def _weigh(self, record: DeploymentRecord, model: ModelRecord) -> tuple[EncoderKey, MemoryEstimate]:
        claim = self._claim(record, model)
        beside = [other for name, other in self._claims.items() if name != record.deployment_id]
        taken = taken_bytes(beside)
        needed = taken_bytes([*beside, claim]) - taken
        if taken + needed > self._limit:
            left = max(0, self._limit - taken)
            raise ResourceExhaustedError(
                f'Deployment "{record.deployment_id}" needs about {needed:,} bytes of memory, and {left:,} of the '
                f"{self._limit:,} that model_memory_bytes allows are left; use fewer allocations or a smaller cache, "
                "stop another deployment, or raise the setting.",
                reason="MEMORY_LIMIT",
                metadata={"needed_bytes": str(needed), "left_bytes": str(left), "limit": str(self._limit)},
            )
        return claim

    def _claim(self, record: DeploymentRecord, model: ModelRecord) -> tuple[EncoderKey, MemoryEstimate]:
        key = self._key(record, model)
        return key, estimate_memory(record, model, precision=self._precisions.get(key, key.precision))


def taken_bytes(claims: Iterable[tuple[EncoderKey, MemoryEstimate]]) -> int:
    """Add estimates up; deployments that share an encoder have its weights once."""
    weights: dict[EncoderKey, int] = {}
    others = 0
    for key, estimate in claims:
        weights[key] = max(estimate.weights_bytes, weights.get(key, 0))
        others += estimate.total_bytes - estimate.weights_bytes
    return others + sum(weights.values())
