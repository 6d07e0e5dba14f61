"""How much memory the deployments of a server may take together, by estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from termwise.server.errors import ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from termwise.server.models.encoders import EncoderKey
    from termwise.server.models.memory import MemoryEstimate


def taken_bytes(estimates: Iterable[tuple[EncoderKey, MemoryEstimate]]) -> int:
    """Add estimates up; deployments that share an encoder have its weights once."""
    weights: dict[EncoderKey, int] = {}
    others = 0
    for key, estimate in estimates:
        weights[key] = max(estimate.weights_bytes, weights.get(key, 0))
        others += estimate.total_bytes - estimate.weights_bytes
    return others + sum(weights.values())


def check_budget(
    deployment_id: str,
    new: tuple[EncoderKey, MemoryEstimate],
    running: Iterable[tuple[EncoderKey, MemoryEstimate]],
    limit: int,
) -> None:
    """Refuse a deployment that does not fit beside those that run.

    Raises:
        ResourceExhaustedError: together they take more than `limit` bytes; the message has both figures.

    """
    beside = [*running]
    taken = taken_bytes(beside)
    needed = taken_bytes([*beside, new]) - taken
    if taken + needed > limit:
        raise ResourceExhaustedError(
            f'Deployment "{deployment_id}" needs about {needed:,} bytes of memory, and {max(0, limit - taken):,} of '
            f"the {limit:,} that model_memory_bytes allows are left; use fewer allocations or a smaller cache, stop "
            "another deployment, or raise the setting.",
            reason="MEMORY_LIMIT",
            metadata={"needed_bytes": str(needed), "left_bytes": str(max(0, limit - taken)), "limit": str(limit)},
        )
