"""What a new model's record is: what the caller says, and what the model's package says where the caller is silent."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from termwise.server.errors import invalid_field
from termwise.server.metadata.records import ModelRecord, ModelState
from termwise.server.models.requests import check_package, unknown_packaged
from termwise.server.models.waiting import within

if TYPE_CHECKING:
    from collections.abc import Mapping

    from termwise.server.context import RequestContext
    from termwise.server.models.packaged import PackagedModel, PackageIndex
    from termwise.server.models.repositories.base import Repository
    from termwise.server.models.requests import NewModel


class Registration:
    """Makes records of new models. `repositories` are by scheme."""

    def __init__(self, repositories: Mapping[str, Repository], packages: PackageIndex) -> None:
        """Look nothing up yet."""
        self._repositories = repositories
        self._packages = packages

    async def record(self, context: RequestContext, model: NewModel) -> ModelRecord:
        """Make the record of a model whose own fields were checked; without a source it is DEFINED.

        Raises:
            InvalidArgumentError: the source's kind or form is none, or a field says otherwise than the package.
            NotFoundError: the id begins with a dot and is no packaged model's.
            UnavailableError: the model repository cannot be reached.
            FailedPreconditionError: the model's package cannot be used, or is another platform's.
            DeadlineExceededError: the deadline passed while the package was looked up.

        """
        package = await self._find_package(context, model)
        source_uri = package.source_uri if package else model.source_uri
        if source_uri:
            repository = self._repositories.get(source_uri.partition("://")[0])
            if repository is None:
                kinds = " or ".join(f"{scheme}://" for scheme in sorted(self._repositories))
                raise invalid_field("source_uri", f"Its kind is unknown; give {kinds}.")
            repository.check(source_uri)
        metadata = package.metadata if package else None
        return ModelRecord(
            model_id=model.model_id,
            state=ModelState.DOWNLOADING if source_uri else ModelState.DEFINED,
            source_uri=source_uri,
            create_time=datetime.now(UTC),
            sha256=package.sha256 if package else model.sha256.lower(),
            description=model.description or (package.description if package else ""),
            tags=model.tags or (package.tags if package else ()),
            config=dataclasses.asdict(metadata.expansion(model.config) if metadata else model.config),
            metadata=dict(model.metadata),
            package=dict(metadata.raw) if metadata else None,
        )

    async def _find_package(self, context: RequestContext, model: NewModel) -> PackagedModel | None:
        """Look a packaged model up, which may take a look into the model repository."""
        if not model.model_id.startswith("."):
            return None
        looking = asyncio.to_thread(self._packages.find, model.model_id)
        package = await within(context, looking, "The model repository did not answer in time; nothing was stored.")
        if package is None:
            raise unknown_packaged(model.model_id, self._packages.built_in, self._packages.place)
        check_package(model, package)
        if package.metadata is not None:
            package.metadata.check_platform()
        return package
