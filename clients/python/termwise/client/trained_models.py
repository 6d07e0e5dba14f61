"""Calls of the TrainedModels service about what is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from termwise.client.calls import LIFECYCLE_TIMEOUT, Paged, Streaming, Unary
from termwise.client.parsing import choose, invalid, parse
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from termwise.client.types import MessageLike

_PUT_WAIT = {"stored": pb.PutTrainedModelRequest.WAIT_FOR_STORED, "ready": pb.PutTrainedModelRequest.WAIT_FOR_READY}


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

    For a packaged model such as ".splade_tiny" the id is all it takes. Without a source the files are uploaded
    (`models.upload`). `wait_for="ready"` stays until the download has
    ended: look at the `state`, a failed download is no error of this call. Never retried.

    Args:
        model_id: The new model's id.
        source_uri: Where its artefacts come from: `pypi://name@version/path`, `hf://org/name@revision`, `https://…`,
            `http://…` or `file:///path`.
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


def list_models(
    *,
    model_ids: Iterable[str] = (),
    tags: Iterable[str] = (),
    page_size: int = 0,
    timeout: float | None = None,
) -> Paged[list[pb.TrainedModel]]:
    """Give models by id, fetched page by page.

    Args:
        model_ids: Ids and aliases of those wanted; "*" stands for any characters. By default all.
        tags: Labels that they must have, all of them.
        page_size: Models in a page; 0: the server's default.
        timeout: Seconds; by default the client's.
    """
    return Paged(
        "TrainedModels/ListTrainedModels",
        pb.ListTrainedModelsRequest(
            page_size=page_size, model_ids=several(model_ids, "model_ids"), tags=several(tags, "tags")
        ),
        lambda pages: [model for page in pages for model in page.trained_models],
        timeout=timeout,
    )


def delete_model(model_id: str, *, force: bool = False, timeout: float | None = None) -> Unary[None]:
    """Delete a model, its artefacts and its aliases. Never retried.

    Raises FailedPreconditionError while a deployment runs it, or a pipeline or an index uses it, unless `force` is set:
    its deployments are then stopped.
    """
    return Unary(
        "TrainedModels/DeleteTrainedModel",
        pb.DeleteTrainedModelRequest(model_id=model_id, force=force),
        lambda _: None,
        idempotent=False,
        timeout=timeout or LIFECYCLE_TIMEOUT,
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


def cancel_download(model_id: str, *, timeout: float | None = None) -> Unary[pb.TrainedModel]:
    """End a model's download; the model turns FAILED. Never retried.

    Raises FailedPreconditionError where it is not being downloaded.
    """
    return Unary(
        "TrainedModels/CancelDownload",
        pb.CancelDownloadRequest(model_id=model_id),
        lambda answer: answer.trained_model,
        idempotent=False,
        timeout=timeout,
    )


def put_alias(
    alias: str, model_id: str, *, reassign: bool = False, timeout: float | None = None
) -> Unary[pb.TrainedModel]:
    """Give a model another name.

    Raises AlreadyExistsError where the alias is another model's, unless `reassign` is set.
    """
    return Unary(
        "TrainedModels/PutModelAlias",
        pb.PutModelAliasRequest(alias=alias, model_id=model_id, reassign=reassign),
        lambda answer: answer.trained_model,
        idempotent=True,
        timeout=timeout,
    )


def delete_alias(alias: str, *, model_id: str = "", timeout: float | None = None) -> Unary[None]:
    """Take an alias away, where `model_id` is given only from that model. Raises NotFoundError. Never retried."""
    return Unary(
        "TrainedModels/DeleteModelAlias",
        pb.DeleteModelAliasRequest(alias=alias, model_id=model_id),
        lambda _: None,
        idempotent=False,
        timeout=timeout,
    )


def get_model_stats(
    *, model_ids: Iterable[str] = (), page_size: int = 0, timeout: float | None = None
) -> Paged[list[pb.TrainedModelStats]]:
    """Give figures of models and their deployments, fetched page by page.

    Args:
        model_ids: Ids and aliases of models, ids of deployments; "*" stands for any characters. By default all models.
        page_size: Models in a page; 0: the server's default.
        timeout: Seconds; by default the client's.
    """
    return Paged(
        "TrainedModels/GetTrainedModelStats",
        pb.GetTrainedModelStatsRequest(page_size=page_size, model_ids=several(model_ids, "model_ids")),
        lambda pages: [stats for page in pages for stats in page.trained_model_stats],
        timeout=timeout,
    )


def several(names: Iterable[str], path: str) -> Iterable[str]:
    """Refuse one string where a list of them is expected."""
    if isinstance(names, str):
        raise invalid(path, f'expected a list of strings, got one string; give ["{names}"]')
    return names
