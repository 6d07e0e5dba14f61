"""Memory that a deployment takes, by estimate: before it starts, from what is known of its model's files."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from termwise.server.metadata.records import DeploymentRecord, ModelRecord

_WEIGHT_SHARES: Final = {"float32": 1.0, "bfloat16": 0.5, "int8": 0.25}
"""Bytes of a laid out weight, as a share of its bytes in float32. "auto" is counted as float32."""
_TOKEN_SHARES: Final = {"float32": 1.0, "bfloat16": 0.5, "int8": 0.5}
"""The same of the vectors of tokens, which lie there twice: to be looked up, and to be multiplied by the head."""
_SLACK: Final = 1.1
_BASE_BYTES: Final = 16 << 20
"""What a model takes beside its weights: its tokenizer, its vocabulary, and what the allocator keeps.

Measured: BERT-base takes 552, 304 and 206 MiB in the three precisions, estimated 575, 295 and 204; the default model
41, estimated 51.
"""
_BATCH_TOKENS: Final = 2_048
"""Tokens of one pass through a model."""
_WIDTHS: Final = 6
"""Numbers that a pass keeps for each token, in widths of the model. Measured: 28 MiB a thread for BERT-base."""
_LOGITS_BYTES: Final = 32 << 20
"""Most bytes of a batch's logits; each of an allocation's two threads keeps those of its largest batch."""
_GROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory of a deployment, in bytes. The total is `weights + allocations * per_allocation + cache`."""

    weights_bytes: int
    per_allocation_bytes: int
    cache_bytes: int
    total_bytes: int


def estimate_memory(record: DeploymentRecord, model: ModelRecord, *, precision: str) -> MemoryEstimate:
    """Estimate the memory of a deployment whose model is READY; `precision` is what it will be loaded with.

    While it loads, its files are read beside, for a moment.
    """
    weights, allocation = _laid_out(model, precision), _for_allocation(model)
    cache = model.size_bytes if record.cache_size_bytes is None else record.cache_size_bytes
    total = weights + allocation * record.number_of_allocations + cache
    return MemoryEstimate(weights, allocation, cache, total)


def machine_memory_bytes() -> int:
    """Give the machine's memory, or what of it this process may have (control groups, version 2)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        memory = min(memory, int(_GROUP_LIMIT.read_text("ascii")))
    return memory


def required_bytes(model: ModelRecord) -> int:
    """Estimate what a deployment of one allocation, one thread and no cache takes of a READY model."""
    return _laid_out(model, "auto") + _for_allocation(model)


def _for_allocation(model: ModelRecord) -> int:
    """Give what the two threads of an allocation need to compute."""
    return 2 * (_LOGITS_BYTES + _BATCH_TOKENS * int(model.facts.get("hidden", 0)) * _WIDTHS * 4)


def _laid_out(model: ModelRecord, precision: str) -> int:
    """Give the bytes of a loaded model, once for all allocations."""
    hidden = int(model.facts.get("hidden", 0))
    weights = int(model.facts.get("weights_bytes", 0)) or model.size_bytes
    tokens = min(model.vocabulary_size * hidden * 4, weights)
    layers = (weights - tokens) * _WEIGHT_SHARES.get(precision, 1.0)
    return int(_SLACK * (layers + 2 * tokens * _TOKEN_SHARES.get(precision, 1.0))) + _BASE_BYTES
