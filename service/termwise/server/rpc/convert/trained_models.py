"""Messages of TrainedModels from and to what `termwise.server.models` knows."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from termwise.server.errors import invalid_field
from termwise.server.inference.base import ExpansionConfig, Side
from termwise.server.metadata.records import ModelState
from termwise.server.models.requests import DeploymentWait, ModelWait, NewDeployment, NewModel
from termwise.server.models.runner import DeploymentState
from termwise.v1 import sparse_vector_pb2
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from termwise.server.inference.base import Expansion, Expansions
    from termwise.server.models.catalog import DownloadProgress, TrainedModel
    from termwise.server.models.runner import Deployment

Meaning = TypeVar("Meaning")

_MODEL_WAITS: Final = {
    pb.PutTrainedModelRequest.WAIT_FOR_UNSPECIFIED: ModelWait.STORED,
    pb.PutTrainedModelRequest.WAIT_FOR_STORED: ModelWait.STORED,
    pb.PutTrainedModelRequest.WAIT_FOR_READY: ModelWait.READY,
}
_DEPLOYMENT_WAITS: Final = {
    pb.StartDeploymentRequest.WAIT_FOR_UNSPECIFIED: DeploymentWait.STARTED,
    pb.StartDeploymentRequest.WAIT_FOR_STARTING: DeploymentWait.STARTING,
    pb.StartDeploymentRequest.WAIT_FOR_STARTED: DeploymentWait.STARTED,
    pb.StartDeploymentRequest.WAIT_FOR_FULLY_ALLOCATED: DeploymentWait.FULLY_ALLOCATED,
}
_PRECISIONS: Final[Mapping[int, str]] = {
    pb.Deployment.PRECISION_UNSPECIFIED: "",
    pb.Deployment.PRECISION_AUTO: "auto",
    pb.Deployment.PRECISION_FLOAT32: "float32",
    pb.Deployment.PRECISION_BFLOAT16: "bfloat16",
    pb.Deployment.PRECISION_INT8: "int8",
}
_PRECISION_NUMBERS: Final[Mapping[str, Any]] = {name: number for number, name in _PRECISIONS.items()}
_TRUNCATES: Final = {
    pb.TextExpansionConfig.TRUNCATE_UNSPECIFIED: True,
    pb.TextExpansionConfig.TRUNCATE_END: True,
    pb.TextExpansionConfig.TRUNCATE_NONE: False,
}
_SIDES: Final[Mapping[int, Side | None]] = {
    pb.InferRequest.INPUT_TYPE_UNSPECIFIED: None,
    pb.InferRequest.INPUT_TYPE_DOCUMENT: Side.DOCUMENT,
    pb.InferRequest.INPUT_TYPE_QUERY: Side.QUERY,
}
_MODEL_STATES: Final = {
    ModelState.DEFINED: pb.TrainedModel.STATE_DEFINED,
    ModelState.DOWNLOADING: pb.TrainedModel.STATE_DOWNLOADING,
    ModelState.READY: pb.TrainedModel.STATE_READY,
    ModelState.FAILED: pb.TrainedModel.STATE_FAILED,
    ModelState.DELETING: pb.TrainedModel.STATE_DELETING,
}
_DEPLOYMENT_STATES: Final = {
    DeploymentState.STARTING: pb.Deployment.STATE_STARTING,
    DeploymentState.STARTED: pb.Deployment.STATE_STARTED,
    DeploymentState.STOPPING: pb.Deployment.STATE_STOPPING,
    DeploymentState.FAILED: pb.Deployment.STATE_FAILED,
}


def model_id(
    request: pb.GetTrainedModelRequest | pb.DeleteTrainedModelRequest | pb.DownloadTrainedModelRequest,
) -> str:
    """Read which model a request means.

    Raises:
        InvalidArgumentError: it names none.

    """
    if not request.model_id:
        raise invalid_field("model_id", "It is empty; name the model.")
    return request.model_id


def deployment_id(request: pb.GetDeploymentRequest | pb.StopDeploymentRequest | pb.InferRequest) -> str:
    """Read which deployment a request means.

    Raises:
        InvalidArgumentError: it names none.

    """
    if not request.deployment_id:
        raise invalid_field("deployment_id", "It is empty; name the deployment.")
    return request.deployment_id


def new_model(request: pb.PutTrainedModelRequest) -> NewModel:
    """Read a model to store. `input` is only there for callers of Elasticsearch."""
    return NewModel(
        model_id=request.model_id,
        source_uri=request.source_uri,
        sha256=request.sha256,
        description=request.description,
        tags=tuple(request.tags),
        config=_config(request.inference_config.text_expansion),
        metadata=dict(request.metadata),
    )


def model_wait(request: pb.PutTrainedModelRequest) -> ModelWait:
    """Read how long the call stays."""
    return _known(_MODEL_WAITS, request.wait_for, "wait_for")


def new_deployment(request: pb.StartDeploymentRequest) -> NewDeployment:
    """Read a deployment to start."""
    given = {
        name: getattr(request, name)
        for name in ("number_of_allocations", "threads_per_allocation", "queue_capacity", "cache_size_bytes")
        if request.HasField(name)
    }
    precision = _known(_PRECISIONS, request.precision, "precision")
    return NewDeployment(request.model_id, request.deployment_id, precision=precision, **given)


def deployment_wait(request: pb.StartDeploymentRequest) -> DeploymentWait:
    """Read how long the call stays."""
    return _known(_DEPLOYMENT_WAITS, request.wait_for, "wait_for")


def side(request: pb.InferRequest) -> Side | None:
    """Read which side reads the texts; None: not said."""
    return _known(_SIDES, request.input_type, "input_type")


def _config(config: pb.TextExpansionConfig) -> ExpansionConfig:
    return ExpansionConfig(
        max_tokens=config.max_tokens,
        truncate=_known(_TRUNCATES, config.truncate, "inference_config.text_expansion.truncate"),
        document_prefix=config.document_prefix,
        query_prefix=config.query_prefix,
        document_max_terms=config.document_max_terms,
        query_max_terms=config.query_max_terms,
        min_weight=config.min_weight,
    )


def _known(meanings: Mapping[Any, Meaning], number: int, field: str) -> Meaning:
    """Read an enum: proto3 lets any number through."""
    if number not in meanings:
        raise invalid_field(field, f"{number} is none of its values.")
    return meanings[number]


def trained_model(model: TrainedModel) -> pb.TrainedModel:
    """Write a model."""
    record = model.record
    config = ExpansionConfig(**record.config)
    message = pb.TrainedModel(
        model_id=record.model_id,
        state=_MODEL_STATES[record.state],
        source_uri=record.source_uri,
        sha256=record.sha256,
        description=record.description,
        tags=record.tags,
        inference_config=pb.InferenceConfig(text_expansion=_config_message(config)),
        metadata=record.metadata,
        fingerprint=record.fingerprint,
        query_fingerprint=record.query_fingerprint,
        size_bytes=record.size_bytes,
        architecture=record.architecture,
        vocabulary_size=record.vocabulary_size,
        create_time=timestamp(record.create_time),
        error=record.error,
    )
    if model.download is not None:
        message.download.CopyFrom(progress(model.download))
    return message


def _config_message(config: ExpansionConfig) -> pb.TextExpansionConfig:
    return pb.TextExpansionConfig(
        max_tokens=config.max_tokens,
        truncate=pb.TextExpansionConfig.TRUNCATE_END if config.truncate else pb.TextExpansionConfig.TRUNCATE_NONE,
        document_prefix=config.document_prefix,
        query_prefix=config.query_prefix,
        document_max_terms=config.document_max_terms,
        query_max_terms=config.query_max_terms,
        min_weight=config.min_weight,
    )


def progress(download: DownloadProgress) -> pb.DownloadProgress:
    """Write how far a download is."""
    return pb.DownloadProgress(
        model_id=download.model_id,
        state=_MODEL_STATES[download.state],
        bytes_done=download.bytes_done,
        bytes_total=download.bytes_total,
    )


def deployment(running: Deployment) -> pb.Deployment:
    """Write a deployment."""
    record = running.record
    return pb.Deployment(
        deployment_id=record.deployment_id,
        model_id=record.model_id,
        state=_DEPLOYMENT_STATES[running.state],
        allocation_count=running.allocation_count,
        target_allocation_count=record.number_of_allocations,
        threads_per_allocation=record.threads_per_allocation,
        queue_capacity=record.queue_capacity,
        precision=running.precision,
        requested_precision=_PRECISION_NUMBERS[record.precision],
        device=running.device,
        cache_size_bytes=running.cache.size_bytes,
        cache_used_bytes=running.cache.used_bytes,
        cache_hit_count=running.cache.hits,
        cache_miss_count=running.cache.misses,
        error=running.error,
        create_time=timestamp(record.create_time),
        start_time=None if running.start_time is None else timestamp(running.start_time),
    )


def infer_response(expansions: Expansions, *, token_ids: bool) -> pb.InferResponse:
    """Write what became of texts; `token_ids` adds the vocabulary ids of the tokens."""
    timings = expansions.timings
    return pb.InferResponse(
        results=[_text_expansion(expansion, token_ids=token_ids) for expansion in expansions.expansions],
        model_id=expansions.model_id,
        fingerprint=expansions.fingerprint,
        timings=pb.InferenceTimings(
            queue=duration(timings.queue), tokenize=duration(timings.tokenize), inference=duration(timings.inference)
        ),
    )


def _text_expansion(expansion: Expansion, *, token_ids: bool) -> pb.TextExpansion:
    return pb.TextExpansion(
        vector=sparse_vector_pb2.SparseVector(tokens=expansion.tokens, weights=expansion.weights.tolist()),
        token_ids=expansion.token_ids.tolist() if token_ids else (),
        token_count=expansion.token_count,
        truncated=expansion.truncated,
    )


def timestamp(time: datetime) -> Timestamp:
    """Write a time."""
    message = Timestamp()
    message.FromDatetime(time)
    return message


def duration(seconds: float) -> Duration:
    """Write a time span."""
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds) if math.isfinite(seconds) else timedelta())
    return message
