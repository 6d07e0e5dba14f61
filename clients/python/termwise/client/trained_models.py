"""Calls of the TrainedModels service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from termwise.client.calls import LIFECYCLE_TIMEOUT, Paged, Streaming, Unary
from termwise.client.messages import seconds, vector_from
from termwise.client.parsing import invalid, parse
from termwise.client.types import Expansion, Inference, InferenceTimings, MessageLike, SparseVector
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

InputType = Literal["query", "document"]
"""Which side of a model reads a text."""
Precision = Literal["auto", "float32", "bfloat16", "int8"]
"""Arithmetic that a deployment can be asked for."""

_PUT_WAIT = {"stored": pb.PutTrainedModelRequest.WAIT_FOR_STORED, "ready": pb.PutTrainedModelRequest.WAIT_FOR_READY}
_START_WAIT = {
    "starting": pb.StartDeploymentRequest.WAIT_FOR_STARTING,
    "started": pb.StartDeploymentRequest.WAIT_FOR_STARTED,
    "fully_allocated": pb.StartDeploymentRequest.WAIT_FOR_FULLY_ALLOCATED,
}
_PRECISIONS = {
    None: pb.Deployment.PRECISION_UNSPECIFIED,
    "auto": pb.Deployment.PRECISION_AUTO,
    "float32": pb.Deployment.PRECISION_FLOAT32,
    "bfloat16": pb.Deployment.PRECISION_BFLOAT16,
    "int8": pb.Deployment.PRECISION_INT8,
}
_INPUT_TYPES = {
    None: pb.InferRequest.INPUT_TYPE_UNSPECIFIED,
    "query": pb.InferRequest.INPUT_TYPE_QUERY,
    "document": pb.InferRequest.INPUT_TYPE_DOCUMENT,
}


def put_model(  # noqa: PLR0913 - one keyword a setting of the request
    model_id: str,
    *,
    source_uri: str = "",
    sha256: str = "",
    description: str = "",
    tags: Iterable[str] = (),
    inference_config: MessageLike | None = None,
    metadata: Mapping[str, str] | None = None,
    wait_for: Literal["stored", "ready"] = "stored",
    timeout: float | None = None,
) -> Unary[pb.TrainedModel]:
    """Store a model's configuration and start the download of its artefacts.

    For a packaged model such as ".splade_tiny" the id is all it takes. `wait_for="ready"` stays until the download has
    ended: look at the `state`, a failed download is no error of this call. Never retried.

    Args:
        model_id: The new model's id.
        source_uri: Where its artefacts come from: `pypi://name@version/path` or `file:///path`.
        sha256: Expected checksum in hex; empty: not checked.
        description: Free text.
        tags: Free labels.
        inference_config: An InferenceConfig, such as `{"text_expansion": {"max_tokens": 256}}`.
        metadata: Free key-values.
        wait_for: How long the call stays.
        timeout: Seconds; by default 300.
    """
    request = pb.PutTrainedModelRequest(
        model_id=model_id,
        source_uri=source_uri,
        sha256=sha256,
        description=description,
        tags=tags,
        metadata=metadata,
        wait_for=choose(wait_for, _PUT_WAIT, "wait_for"),
    )
    if inference_config is not None:
        request.inference_config.CopyFrom(parse(inference_config, pb.InferenceConfig, "inference_config"))
    return Unary(
        "TrainedModels/PutTrainedModel",
        request,
        lambda answer: answer.trained_model,
        idempotent=False,
        timeout=timeout or LIFECYCLE_TIMEOUT,
    )


def get_model(model_id: str, *, timeout: float | None = None) -> Unary[pb.TrainedModel]:
    """Give one model. Raises NotFoundError."""
    return Unary(
        "TrainedModels/GetTrainedModel",
        pb.GetTrainedModelRequest(model_id=model_id),
        lambda answer: answer.trained_model,
        idempotent=True,
        timeout=timeout,
    )


def list_models(*, page_size: int = 0, timeout: float | None = None) -> Paged[list[pb.TrainedModel]]:
    """Give all models by id, fetched page by page (`page_size` 0: the server's default)."""
    return Paged(
        "TrainedModels/ListTrainedModels",
        pb.ListTrainedModelsRequest(page_size=page_size),
        lambda pages: [model for page in pages for model in page.trained_models],
        timeout=timeout,
    )


def delete_model(model_id: str, *, timeout: float | None = None) -> Unary[None]:
    """Delete a model and its artefacts. Raises FailedPreconditionError while a deployment runs it. Never retried."""
    return Unary(
        "TrainedModels/DeleteTrainedModel",
        pb.DeleteTrainedModelRequest(model_id=model_id),
        lambda _: None,
        idempotent=False,
        timeout=timeout,
    )


def download_model(model_id: str, *, timeout: float | None = None) -> Streaming[pb.DownloadProgress]:
    """Start or join a download and go through its progress until it has ended. Leaving early stops nothing.

    Raises UnavailableError where the source cannot be reached, FailedPreconditionError where what it gave is no use.
    """
    return Streaming(
        "TrainedModels/DownloadTrainedModel",
        pb.DownloadTrainedModelRequest(model_id=model_id),
        lambda answer: answer.progress,
        timeout=timeout,
    )


def start_deployment(  # noqa: PLR0913 - one keyword a setting of the request
    model_id: str,
    *,
    deployment_id: str = "",
    number_of_allocations: int | None = None,
    threads_per_allocation: int | None = None,
    queue_capacity: int | None = None,
    precision: Precision | None = None,
    cache_size_bytes: int | None = None,
    wait_for: Literal["starting", "started", "fully_allocated"] = "started",
    timeout: float | None = None,
) -> Unary[pb.Deployment]:
    """Start a deployment of a model, and by default wait until it answers. Never retried.

    Args:
        model_id: The model to run. One that is still being downloaded is waited for.
        deployment_id: The new deployment's id; empty: the model's.
        number_of_allocations: Workers; by default 1.
        threads_per_allocation: Processor threads of each worker, a power of two; by default 1.
        queue_capacity: Texts that may wait; by default 1,024.
        precision: Arithmetic of the model; by default what the server's setting says. Raises FailedPreconditionError
            where the processor or the model cannot do with it.
        cache_size_bytes: Room for expansions of texts that were asked before; 0: none; by default the model's size.
        wait_for: How long the call stays.
        timeout: Seconds; by default 300. A start that outlives it goes on.
    """
    request = pb.StartDeploymentRequest(
        model_id=model_id,
        deployment_id=deployment_id,
        number_of_allocations=number_of_allocations,
        threads_per_allocation=threads_per_allocation,
        queue_capacity=queue_capacity,
        precision=choose(precision, _PRECISIONS, "precision"),
        cache_size_bytes=cache_size_bytes,
        wait_for=choose(wait_for, _START_WAIT, "wait_for"),
    )
    return Unary(
        "TrainedModels/StartDeployment",
        request,
        lambda answer: answer.deployment,
        idempotent=False,
        timeout=timeout or LIFECYCLE_TIMEOUT,
    )


def stop_deployment(deployment_id: str, *, force: bool = False, timeout: float | None = None) -> Unary[None]:
    """Stop a deployment; what it has admitted is answered first. Never retried.

    Raises FailedPreconditionError where a pipeline or an index names it, unless `force` is set.
    """
    return Unary(
        "TrainedModels/StopDeployment",
        pb.StopDeploymentRequest(deployment_id=deployment_id, force=force),
        lambda _: None,
        idempotent=False,
        timeout=timeout or LIFECYCLE_TIMEOUT,
    )


def get_deployment(deployment_id: str, *, timeout: float | None = None) -> Unary[pb.Deployment]:
    """Give one deployment. Raises NotFoundError."""
    return Unary(
        "TrainedModels/GetDeployment",
        pb.GetDeploymentRequest(deployment_id=deployment_id),
        lambda answer: answer.deployment,
        idempotent=True,
        timeout=timeout,
    )


def list_deployments(*, page_size: int = 0, timeout: float | None = None) -> Paged[list[pb.Deployment]]:
    """Give all deployments by id, fetched page by page (`page_size` 0: the server's default)."""
    return Paged(
        "TrainedModels/ListDeployments",
        pb.ListDeploymentsRequest(page_size=page_size),
        lambda pages: [deployment for page in pages for deployment in page.deployments],
        timeout=timeout,
    )


def infer(
    deployment_id: str,
    texts: Iterable[str],
    *,
    input_type: InputType | None = None,
    include_token_ids: bool = False,
    timeout: float | None = None,
) -> Unary[Inference]:
    """Expand texts into sparse vectors, one a text, in order.

    Args:
        deployment_id: The deployment.
        texts: At least one, and at most what the deployment's queue holds.
        input_type: Which side of the model reads them; may be left out only where both sides are the same.
        include_token_ids: Give vocabulary ids too.
        timeout: Seconds; by default the client's.
    """
    if isinstance(texts, str):
        raise invalid("texts", "expected a list of strings, got one string; use expand() for one text")
    request = pb.InferRequest(
        deployment_id=deployment_id,
        texts=texts,
        input_type=choose(input_type, _INPUT_TYPES, "input_type"),
        include_token_ids=include_token_ids,
    )
    return Unary("TrainedModels/Infer", request, read_inference, idempotent=True, timeout=timeout)


def expand(
    deployment_id: str, text: str, *, input_type: InputType | None = "query", timeout: float | None = None
) -> Unary[SparseVector]:
    """Expand one text, by default as a query, into weighted tokens, heaviest first."""
    call = infer(deployment_id, [text], input_type=input_type, timeout=timeout)
    return Unary(
        call.method,
        call.request,
        lambda answer: read_inference(answer).results[0].vector,
        idempotent=True,
        timeout=timeout,
    )


def read_inference(answer: pb.InferResponse) -> Inference:
    """Read the answer of Infer."""
    return Inference(
        results=tuple(
            Expansion(vector_from(each.vector), each.token_count, each.truncated, tuple(each.token_ids))
            for each in answer.results
        ),
        model_id=answer.model_id,
        fingerprint=answer.fingerprint,
        timings=InferenceTimings(
            queue=seconds(answer.timings.queue),
            tokenize=seconds(answer.timings.tokenize),
            inference=seconds(answer.timings.inference),
        ),
    )


def choose(value: str | None, choices: Mapping[Any, Any], path: str) -> Any:
    """Give the enum value of a word. Raises InvalidArgumentError that names the words there are."""
    if value not in choices:
        raise invalid(path, f'there is no "{value}"; choose from {", ".join(word for word in choices if word)}')
    return choices[value]
