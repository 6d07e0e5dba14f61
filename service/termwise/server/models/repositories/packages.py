"""Packaged models of the configured model repository, a folder on a web server or on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from termwise.server.errors import FailedPreconditionError, TermwiseError, UnavailableError
from termwise.server.inference.torchscript.metadata import read_metadata
from termwise.server.models.packaged import PackagedModel
from termwise.server.models.repositories.answers import is_absent, shown
from termwise.server.models.repositories.http import read_raw
from termwise.server.models.repositories.locations import METADATA_END, below, package_of
from termwise.server.models.repositories.web import HURRIED, Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from termwise.server.inference.torchscript.metadata import PackageMetadata
    from termwise.server.models.repositories.file import FileRepository
    from termwise.server.models.repositories.web import Access, Patience


class RepositoryPackages:
    """Looks a packaged model up in the model repository, then among the built-in ones."""

    def __init__(
        self,
        repository: str,
        built_in: Mapping[str, PackagedModel],
        *,
        access: Access,
        files: FileRepository,
        patience: Patience = HURRIED,
    ) -> None:
        """Take the repository's URL: http://, https:// or file://."""
        self.built_in = built_in
        self.place = shown(repository)
        self._base = repository.rstrip("/") + "/"
        self._access = access
        self._files = files
        self._patience = patience

    def find(self, model_id: str) -> PackagedModel | None:
        """Give the packaged model of an id; None where there is none. Blocks for some seconds at most.

        Raises:
            UnavailableError: the repository cannot be reached.
            FailedPreconditionError: its package is there and cannot be used, or it denies it.

        """
        package = package_of(model_id)
        if package is None:
            return self.built_in.get(model_id)
        uri = below(self._base, f"{package}{METADATA_END}")
        try:
            metadata = self._read(uri)
        except UnavailableError as error:
            raise UnavailableError(
                f"The model repository {shown(self._base)} cannot be asked for {model_id}: {error.message}",
                reason=error.reason_code,
                metadata={"model": model_id},
            ) from error
        if metadata is None:
            return self.built_in.get(model_id)
        if metadata.packaged_model_id != package:
            raise FailedPreconditionError(
                f"{shown(uri)} says that it is {metadata.packaged_model_id[:100]!r}; correct the repository.",
                reason="PACKAGE_UNUSABLE",
            )
        return PackagedModel(
            model_id=model_id,
            source_uri=uri,
            sha256=metadata.sha256,
            weights_sha256="",
            max_tokens=metadata.tokenization.max_sequence_length,
            description=metadata.description,
            tags=metadata.tags,
            metadata=metadata,
        )

    def _read(self, uri: str) -> PackageMetadata | None:
        if uri.startswith("file://"):
            if not self._files.resolve(self._base).is_dir():
                raise UnavailableError("There is no such folder on the server's machine.", reason="SOURCE_UNREACHABLE")
            return self._files.read_metadata(uri)
        try:
            with Session(self._access, self._patience) as session:
                raw = session.run(lambda: read_raw(session, uri), _nothing)
        except TermwiseError as error:
            if is_absent(error):
                return None
            raise
        return read_metadata(raw, packaged=True)


def _nothing() -> None:
    """Whoever waits may leave; the look itself takes some seconds at most."""
