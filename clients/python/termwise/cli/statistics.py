"""Figures of models and deployments, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from termwise.cli.options import Format
from termwise.cli.output import print_list

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.duration_pb2 import Duration

    from termwise.v1.trained_models_pb2 import DeploymentStats, TrainedModelStats


def print_stats(stats: Iterable[TrainedModelStats], style: Format) -> None:
    """Print figures of models: a row a model, and under them a row a deployment."""
    found = list(stats)
    columns: tuple[tuple[str, Callable[[TrainedModelStats], str]], ...] = (
        ("MODEL", lambda each: each.model_id),
        ("BYTES", lambda each: f"{each.size_bytes:,}"),
        ("MEMORY", lambda each: f"{each.required_memory_bytes:,}"),
        ("PIPELINES", lambda each: f"{each.pipeline_count:,}"),
        ("TEXTS", lambda each: f"{each.inference_stats.inference_count:,}"),
        ("COMPUTED", lambda each: f"{each.inference_stats.cache_miss_count:,}"),
        ("FAILED", lambda each: f"{each.inference_stats.failure_count:,}"),
    )
    print_list(found, columns, style)
    deployments = [each for model in found for each in model.deployment_stats]
    if deployments and style is Format.TABLE:
        print_deployment_stats(deployments, style)


def print_deployment_stats(stats: Iterable[DeploymentStats], style: Format) -> None:
    """Print figures of deployments, a row each."""
    columns: tuple[tuple[str, Callable[[DeploymentStats], str]], ...] = (
        ("DEPLOYMENT", lambda each: each.deployment.deployment_id),
        (
            "ALLOCATIONS",
            lambda each: f"{each.deployment.allocation_count} of {each.deployment.target_allocation_count}",
        ),
        ("TEXTS", lambda each: f"{each.inference_count:,}"),
        ("CACHED", lambda each: f"{each.cache_hit_count:,}"),
        ("FAILED", lambda each: f"{each.error_count:,}"),
        ("LATE", lambda each: f"{each.timeout_count:,}"),
        ("REFUSED", lambda each: f"{each.rejected_execution_count:,}"),
        ("WAITING", lambda each: f"{each.pending_count:,}"),
        ("MS A TEXT", lambda each: _milliseconds(each.average_inference_time)),
        ("LAST MINUTE", lambda each: f"{each.throughput_last_minute:,}"),
        ("PEAK A MINUTE", lambda each: f"{each.peak_throughput_per_minute:,}"),
        ("MEMORY", lambda each: f"{each.deployment.memory.total_bytes:,}"),
    )
    print_list(stats, columns, style)


def _milliseconds(duration: Duration) -> str:
    return f"{duration.seconds * 1e3 + duration.nanos / 1e6:.2f}" if duration.ByteSize() else ""
