"""Memory that a deployment takes, by estimate: before it starts, from what is known of its model's files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from termwise.server.metadata.records import DeploymentRecord, ModelRecord

_WEIGHT_SHARES: Final = {"float32": 1.0, "bfloat16": 0.5, "int8": 0.25}
"""Bytes of packed weights, as a share of their bytes in float32. "auto" is counted as float32."""
_BATCH_TOKENS: Final = 2_048
"""Tokens of one pass through a model."""
_WIDTHS: Final = 16
"""Numbers that a pass keeps for each token, in widths of the model."""
_LOGITS_BYTES: Final = 32 << 20
"""Most bytes of a batch's logits; each of an allocation's two threads keeps those of its largest batch."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory of a deployment, in bytes. The total is `weights + allocations * per_allocation + cache`."""

    weights_bytes: int
    per_allocation_bytes: int
    cache_bytes: int
    total_bytes: int


def estimate_memory(record: DeploymentRecord, model: ModelRecord, *, precision: str) -> MemoryEstimate:
    """Estimate the memory of a deployment whose model is READY; `precision` is what it will be loaded with."""
    weights = int(model.facts.get("weights_bytes", model.size_bytes) * _WEIGHT_SHARES.get(precision, 1.0))
    hidden = int(model.facts.get("hidden", 0))
    allocation = 2 * (_LOGITS_BYTES + _BATCH_TOKENS * hidden * _WIDTHS * 4)
    cache = model.size_bytes if record.cache_size_bytes is None else record.cache_size_bytes
    total = weights + allocation * record.number_of_allocations + cache
    return MemoryEstimate(weights, allocation, cache, total)
