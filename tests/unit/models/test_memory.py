from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.metadata.records import DeploymentRecord, ModelRecord, ModelState
from termwise.server.models import memory
from termwise.server.models.memory import estimate_memory, machine_memory_bytes, required_bytes

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def model(weights: int, hidden: int, vocabulary: int = 30_522, size: int = 0) -> ModelRecord:
    return ModelRecord(
        "mine",
        ModelState.READY,
        "",
        NOW,
        size_bytes=size or weights,
        vocabulary_size=vocabulary,
        facts={"weights_bytes": weights, "hidden": hidden, "longest": 512},
    )


BERT_BASE = model(438_057_200, 768)
DEFAULT = model(17_666_792, 128)


def deployment(allocations: int = 1, cache: int | None = 0) -> DeploymentRecord:
    return DeploymentRecord("mine", "mine", allocations, 1, 1_024, NOW, cache_size_bytes=cache)


@pytest.mark.parametrize(
    ("of", "precision", "measured"),
    [
        # Anonymous memory of a process after the load, less what it had before; by /proc/self/smaps_rollup.
        (BERT_BASE, "float32", 552 * MIB),
        (BERT_BASE, "bfloat16", 304 * MIB),
        (BERT_BASE, "int8", 206 * MIB),
    ],
)
def test_weights_are_as_they_were_measured(of: ModelRecord, precision: str, measured: int) -> None:
    assert estimate_memory(deployment(), of, precision=precision).weights_bytes == pytest.approx(measured, rel=0.1)


def test_a_small_model_is_not_underrated() -> None:
    estimate = estimate_memory(deployment(), DEFAULT, precision="float32")
    # Measured: 41 MiB after the load, and at most 27 for an allocation.
    assert 41 * MIB < estimate.weights_bytes < 60 * MIB
    assert 27 * MIB < estimate.per_allocation_bytes < 90 * MIB


def test_large_models_need_more_to_compute() -> None:
    estimate = estimate_memory(deployment(), BERT_BASE, precision="float32")
    # Measured: 70 MiB; texts of a word each would take more, and the estimate is for those.
    assert 70 * MIB < estimate.per_allocation_bytes < 160 * MIB


@given(
    allocations=st.integers(1, 64),
    cache=st.none() | st.integers(0, 1 << 40),
    weights=st.integers(1, 1 << 36),
    hidden=st.integers(0, 8_192),
    precision=st.sampled_from(["auto", "float32", "bfloat16", "int8"]),
)
def test_the_parts_are_the_whole(
    allocations: int, cache: int | None, weights: int, hidden: int, precision: str
) -> None:
    of = model(weights, hidden)
    found = estimate_memory(deployment(allocations, cache), of, precision=precision)
    assert found.total_bytes == found.weights_bytes + allocations * found.per_allocation_bytes + found.cache_bytes
    assert found.cache_bytes == (weights if cache is None else cache)
    assert found.weights_bytes <= estimate_memory(deployment(), of, precision="float32").weights_bytes
    assert required_bytes(of) == estimate_memory(deployment(), of, precision="auto").total_bytes


def test_what_is_not_known_of_a_model_is_its_files_size() -> None:
    unknown = dataclasses.replace(model(0, 0, size=100 * MIB), facts={})
    assert 100 * MIB < required_bytes(unknown) < 220 * MIB


def test_a_limit_of_the_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_GROUP_LIMIT", limit)
    whole = machine_memory_bytes()
    limit.write_text("max\n")
    assert machine_memory_bytes() == whole > 0
    limit.write_text("123456789\n")
    assert machine_memory_bytes() == 123_456_789
