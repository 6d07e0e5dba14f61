"""Models from and to their messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from termwise.server.errors import invalid_field
from termwise.server.inference.base import ExpansionConfig
from termwise.server.metadata.records import ModelState
from termwise.server.models.requests import ModelWait, NewModel
from termwise.server.models.uploads import UploadCommit, UploadData, UploadHeader
from termwise.server.rpc.convert.values import known, timestamp
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from termwise.server.models.trained_model import DownloadProgress, TrainedModel
    from termwise.server.models.uploads import UploadPart

_MODEL_WAITS: Final = {
    pb.PutTrainedModelRequest.WAIT_FOR_UNSPECIFIED: ModelWait.STORED,
    pb.PutTrainedModelRequest.WAIT_FOR_STORED: ModelWait.STORED,
    pb.PutTrainedModelRequest.WAIT_FOR_READY: ModelWait.READY,
}
_TRUNCATES: Final = {
    pb.TextExpansionConfig.TRUNCATE_UNSPECIFIED: True,
    pb.TextExpansionConfig.TRUNCATE_END: True,
    pb.TextExpansionConfig.TRUNCATE_NONE: False,
}
_MODEL_STATES: Final = {
    ModelState.DEFINED: pb.TrainedModel.STATE_DEFINED,
    ModelState.DOWNLOADING: pb.TrainedModel.STATE_DOWNLOADING,
    ModelState.READY: pb.TrainedModel.STATE_READY,
    ModelState.FAILED: pb.TrainedModel.STATE_FAILED,
    ModelState.DELETING: pb.TrainedModel.STATE_DELETING,
}
_PACKAGE_TEXTS: Final = (
    "packaged_model_id",
    "minimum_version",
    "sha256",
    "vocabulary_file",
    "platform_architecture",
    "model_type",
)
_LAYOUTS: Final = {
    "": pb.TrainedModel.LAYOUT_UNSPECIFIED,
    "transformers": pb.TrainedModel.LAYOUT_TRANSFORMERS,
    "sparse_encoder": pb.TrainedModel.LAYOUT_SPARSE_ENCODER,
    "doc_only": pb.TrainedModel.LAYOUT_DOC_ONLY,
    "torchscript": pb.TrainedModel.LAYOUT_TORCHSCRIPT,
}


class NamesModel(Protocol):
    """A request about one model."""

    model_id: str


def model_id(request: NamesModel) -> str:
    """Read which model a request means.

    Raises:
        InvalidArgumentError: it names none.

    """
    if not request.model_id:
        raise invalid_field("model_id", "It is empty; name the model.")
    return request.model_id


def alias(request: pb.PutModelAliasRequest | pb.DeleteModelAliasRequest) -> str:
    """Read which alias a request means.

    Raises:
        InvalidArgumentError: it names none.

    """
    if not request.alias:
        raise invalid_field("alias", "It is empty; name the alias.")
    return request.alias


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


async def upload_parts(requests: AsyncIterator[pb.UploadTrainedModelRequest]) -> AsyncIterator[UploadPart]:
    """Read the parts of an upload.

    Raises:
        InvalidArgumentError: one says nothing, or a header names no model.

    """
    async for request in requests:
        match request.WhichOneof("part"):
            case "header":
                if not request.header.model_id:
                    raise invalid_field("header.model_id", "It is empty; name the model.")
                header = request.header
                yield UploadHeader(header.model_id, header.file_name, header.size_bytes, header.sha256, header.offset)
            case "data":
                yield UploadData(request.data)
            case "commit":
                yield UploadCommit()
            case _:
                raise invalid_field("header", "The message has no part; send a header, data or a commit.")


def model_wait(request: pb.PutTrainedModelRequest) -> ModelWait:
    """Read how long the call stays."""
    return known(_MODEL_WAITS, request.wait_for, "wait_for")


def _config(config: pb.TextExpansionConfig) -> ExpansionConfig:
    return ExpansionConfig(
        max_tokens=config.max_tokens,
        truncate=known(_TRUNCATES, config.truncate, "inference_config.text_expansion.truncate"),
        document_prefix=config.document_prefix,
        query_prefix=config.query_prefix,
        document_max_terms=config.document_max_terms,
        query_max_terms=config.query_max_terms,
        min_weight=config.min_weight,
    )


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
        aliases=model.aliases,
        layout=_LAYOUTS[record.layout],
        package=None if record.package is None else _package(record.package),
        uploads=[
            pb.UploadedFile(
                file_name=file.file_name, size_bytes=file.size_bytes, sha256=file.sha256, bytes_held=file.bytes_held
            )
            for file in model.uploads
        ],
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


def _package(raw: Mapping[str, Any]) -> pb.ModelPackage:
    """Write what a package's metadata file says; it was read once, and its kinds of values were checked then."""
    package = pb.ModelPackage(size_bytes=int(raw.get("size") or 0))
    for name in _PACKAGE_TEXTS:
        setattr(package, name, str(raw.get(name) or ""))
    return package


def progress(download: DownloadProgress) -> pb.DownloadProgress:
    """Write how far a download is."""
    return pb.DownloadProgress(
        model_id=download.model_id,
        state=_MODEL_STATES[download.state],
        bytes_done=download.bytes_done,
        bytes_total=download.bytes_total,
    )
