"""Figures of models and deployments as messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from termwise.server.inference.statistics import StatisticsView
from termwise.server.models.runner import Deployment, DeploymentState
from termwise.server.rpc.convert.deployments import deployment
from termwise.server.rpc.convert.values import duration, timestamp
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

    from termwise.server.models.stats import ModelStatistics


def model_statistics(statistics: ModelStatistics) -> pb.TrainedModelStats:
    """Write a model's figures."""
    record = statistics.model.record
    return pb.TrainedModelStats(
        model_id=record.model_id,
        size_bytes=record.size_bytes,
        required_memory_bytes=statistics.required_memory_bytes,
        pipeline_count=statistics.pipeline_count,
        inference_stats=pb.InferenceStats(
            inference_count=statistics.inference_count,
            cache_miss_count=statistics.cache_miss_count,
            failure_count=statistics.failure_count,
            time=timestamp(statistics.time),
        ),
        deployment_stats=[deployment_statistics(each) for each in statistics.deployments],
    )


def deployment_statistics(running: Deployment) -> pb.DeploymentStats:
    """Write a deployment's figures; a time of 0 was not measured, and is left out."""
    counts = running.statistics or StatisticsView()
    return pb.DeploymentStats(
        deployment=deployment(running),
        allocation_state=_allocation_state(running),
        inference_count=counts.inference_count,
        cache_hit_count=counts.cache_hit_count,
        cache_hit_count_last_minute=counts.cache_hit_count_last_minute,
        error_count=counts.error_count,
        timeout_count=counts.timeout_count,
        rejected_execution_count=counts.rejected_count,
        pending_count=running.pending,
        average_inference_time=_measured(counts.average_inference_seconds),
        average_inference_time_last_minute=_measured(counts.average_inference_seconds_last_minute),
        average_inference_time_excluding_cache_hits=_measured(counts.average_inference_seconds_excluding_cache_hits),
        throughput_last_minute=counts.throughput_last_minute,
        peak_throughput_per_minute=counts.peak_throughput_per_minute,
        last_access_time=None if counts.last_access is None else timestamp(counts.last_access),
    )


def _measured(seconds: float) -> Duration | None:
    return duration(seconds) if seconds else None


def _allocation_state(running: Deployment) -> pb.DeploymentStats.AllocationState.ValueType:
    wanted = running.record.number_of_allocations
    if running.state in {DeploymentState.STARTING, DeploymentState.FAILED}:
        return pb.DeploymentStats.ALLOCATION_STATE_STARTING
    if running.allocation_count >= wanted:
        return pb.DeploymentStats.ALLOCATION_STATE_FULLY_ALLOCATED
    if running.allocation_count:
        return pb.DeploymentStats.ALLOCATION_STATE_STARTED
    return pb.DeploymentStats.ALLOCATION_STATE_STARTING
