"""A model as callers see it, and whether it can be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from termwise.server.errors import FailedPreconditionError, Resource
from termwise.server.metadata.records import ModelState

if TYPE_CHECKING:
    from termwise.server.metadata.records import ModelRecord
    from termwise.server.models.held import UploadedFile


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far a download is; `bytes_total` is 0 while unknown."""

    model_id: str
    state: ModelState
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model as it stands. `download` is None where it was never begun in this server's life, nor is it READY.

    `uploads` are the files of an upload that goes on.
    """

    record: ModelRecord
    download: DownloadProgress | None
    aliases: tuple[str, ...] = ()
    uploads: tuple[UploadedFile, ...] = ()


def check_usable(record: ModelRecord) -> None:
    """Refuse a model whose artefacts are not there and are not coming by themselves.

    Raises:
        FailedPreconditionError: it is DEFINED, FAILED, or being deleted.

    """
    if record.state is ModelState.DEFINED:
        raise FailedPreconditionError(
            f'Model "{record.model_id}" has no files yet; send them by UploadTrainedModel.',
            reason="MODEL_NOT_UPLOADED",
            resource=Resource("model", record.model_id),
        )
    if record.state is ModelState.FAILED:
        what, cure = "failed to download", "Call DownloadTrainedModel to try again."
        if not record.source_uri:
            what, cure = "cannot be used", "Send its files again by UploadTrainedModel."
        raise FailedPreconditionError(
            f'Model "{record.model_id}" {what}: {record.error} {cure}',
            reason="MODEL_FAILED",
            resource=Resource("model", record.model_id),
        )
    if record.state is ModelState.DELETING:
        raise being_deleted(record.model_id)


def being_deleted(model_id: str) -> FailedPreconditionError:
    """Make the error for a model that is on its way out."""
    return FailedPreconditionError(f'Model "{model_id}" is being deleted.', reason="MODEL_BEING_DELETED")
