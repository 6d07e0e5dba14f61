"""Writes and reads documents: one, a few, or a batch of a stream."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from termwise.server.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    Resource,
    ResourceExhaustedError,
    TermwiseError,
    already_exists,
    invalid_field,
    not_found,
)
from termwise.server.indices.documents import InputDocument, check_id, new_id, parse_document
from termwise.server.ingest.pipelines import NO_PIPELINE, make_drafts
from termwise.server.ingest.runner import INLINE_BYTES
from termwise.storage.errors import (
    DocumentExistsError,
    DocumentMissingError,
    InvalidDocumentError,
    StorageFullError,
    VersionConflictError,
)
from termwise.storage.types import Delete, Put, Written

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from termwise.server.context import RequestContext
    from termwise.server.indices.catalog import Indices
    from termwise.server.indices.state import OpenIndex
    from termwise.server.ingest.draft import Draft, Failure
    from termwise.server.ingest.pipelines import Pipelines
    from termwise.storage.types import Operation, StoredDocument

FULL_DISK_RETRY: Final = timedelta(seconds=10)
"""When to try again where the disk is full: somebody has to make room first."""


@dataclass(frozen=True, slots=True)
class PutDocument:
    """Writes a document; `create`: it must not exist."""

    document: InputDocument
    create: bool = False


@dataclass(frozen=True, slots=True)
class DeleteDocument:
    """Deletes a document; `id_field` is where the request names it."""

    id: str
    id_field: str = "id"


@dataclass(frozen=True, slots=True)
class WriteFields:
    """Where the request holds what an operation names, for errors."""

    index: str = "index"
    pipeline: str = "pipeline"
    if_version: str = "if_version"


@dataclass(frozen=True, slots=True)
class WriteOperation:
    """One write: where, through which pipeline (empty: the index's default, "_none": none), and what."""

    index: str
    action: PutDocument | DeleteDocument
    pipeline: str = ""
    if_version: int | None = None
    fields: WriteFields = WriteFields()


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of one operation: its document's id where it is known, and either `written` or `error`."""

    id: str
    written: Written | None = None
    error: Exception | None = None


Request: TypeAlias = WriteOperation | WriteResult
"""An operation, or what became of one that cannot be run at all."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An operation that is ready to be written."""

    opened: OpenIndex
    operation: Operation

    @property
    def id(self) -> str:
        """The document's id."""
        return self.operation.document.id if isinstance(self.operation, Put) else self.operation.id


class Writer:
    """The use cases of documents."""

    def __init__(self, indices: Indices, pipelines: Pipelines) -> None:
        """Write to `indices` through `pipelines`."""
        self._indices = indices
        self._pipelines = pipelines

    async def write(self, context: RequestContext, operation: WriteOperation) -> Written:
        """Run one operation; on return it is durable and visible. A full queue of a deployment fails it at once.

        Raises:
            NotFoundError: the index, the pipeline, or the document to delete does not exist.
            AlreadyExistsError: the document must not exist and does.
            AbortedError: `if_version` does not match.
            InvalidArgumentError: the violation names the field that does not fit.
            FailedPreconditionError: vectors come from a model that does not fit those in the field.
            ResourceExhaustedError: a deployment has no room, or the disk is full.

        """
        (result,) = await self.batch(context, [operation])
        if result.written is None:
            raise result.error or RuntimeError("The write has no result.")
        return result.written

    async def batch(self, context: RequestContext, requests: Sequence[Request]) -> Sequence[WriteResult]:
        """Run operations in order, and give one result each; a full queue of a deployment fails those that need it."""
        return await self.commit(await self.prepare(context, requests, wait=False))

    async def get(self, index: str, id_: str) -> tuple[OpenIndex, StoredDocument]:
        """Give a document and the index that has it.

        Raises:
            NotFoundError: the index or the document does not exist.

        """
        check_id(id_, "id")
        opened = await self._indices.open(index)
        (found,) = await asyncio.to_thread(lambda: opened.index.reader().get([id_]))
        if found is None:
            raise not_found("document", id_, field="id")
        return opened, found

    async def prepare(
        self, context: RequestContext, requests: Sequence[Request], *, wait: bool
    ) -> Sequence[Prepared | WriteResult]:
        """Do all that comes before storage: run pipelines, apply the mapping; give a result where that fails.

        The texts of all documents of one pipeline go to the model together. `wait` as in `Expander.expand`.
        """
        batch = _Batch(requests)
        await self._open(batch)
        await self._read(batch)
        await self._run_pipelines(context, batch, wait=wait)
        await self._map(batch)
        await self._check_models(batch)
        return [each for each in batch.outcomes if each is not None]

    async def commit(self, prepared: Sequence[Prepared | WriteResult]) -> Sequence[WriteResult]:
        """Write what `prepare` gave, and give one result each, in order; those that worked are durable."""
        by_index: dict[str, list[int]] = {}
        for place, each in enumerate(prepared):
            if isinstance(each, Prepared):
                by_index.setdefault(each.opened.record.storage_name, []).append(place)
        results: dict[int, WriteResult] = {}

        async def write(places: Sequence[int]) -> None:
            ready = [each for place in places if isinstance(each := prepared[place], Prepared)]
            try:
                outcomes = await self._indices.write(ready[0].opened, [each.operation for each in ready])
            except TermwiseError as error:
                outcomes = [error] * len(ready)
            for place, each, outcome in zip(places, ready, outcomes, strict=True):
                results[place] = _result(each, outcome)

        await asyncio.gather(*(write(places) for places in by_index.values()))
        return [results[place] if isinstance(each, Prepared) else each for place, each in enumerate(prepared)]

    async def _open(self, batch: _Batch) -> None:
        """Open the indices; refuse what names none, and versions and ids that cannot be."""
        for place, operation in batch.live():
            try:
                if operation.if_version is not None and operation.if_version < 0:
                    raise invalid_field(operation.fields.if_version, "It is negative; versions are 0 or more.")  # noqa: TRY301
                opened = batch.opened.get(operation.index) or await self._open_one(operation)
                batch.opened[operation.index] = opened
                if isinstance(operation.action, DeleteDocument):
                    check_id(operation.action.id, operation.action.id_field)
                    batch.outcomes[place] = Prepared(opened, Delete(operation.action.id, operation.if_version))
                else:
                    document = operation.action.document
                    batch.ids[place] = check_id(document.id, document.paths.id) if document.id else new_id()
            except Exception as error:  # noqa: BLE001 - one index that cannot be opened fails its own writes only
                batch.fail(place, error)

    async def _open_one(self, operation: WriteOperation) -> OpenIndex:
        return await self._indices.open(operation.index, field=operation.fields.index)

    async def _read(self, batch: _Batch) -> None:
        """Parse the bodies."""
        puts = list(batch.puts())
        documents = [(batch.ids[place], action.document) for place, _, action in puts]
        for (place, _, _), draft in zip(puts, await make_drafts(documents), strict=True):
            if isinstance(draft, TermwiseError):
                batch.fail(place, draft)
            else:
                batch.drafts[place] = draft

    async def _run_pipelines(self, context: RequestContext, batch: _Batch, *, wait: bool) -> None:
        groups: dict[str, list[int]] = {}
        fields: dict[str, str] = {}
        for place, operation, _ in batch.puts():
            name = operation.pipeline or batch.opened[operation.index].default_pipeline
            if name and name != NO_PIPELINE:
                groups.setdefault(name, []).append(place)
                fields.setdefault(name, operation.fields.pipeline)

        async def run(name: str, places: Sequence[int]) -> None:
            try:
                pipeline = await self._pipelines.get(name, field=fields[name])
            except TermwiseError as error:
                for place in places:
                    batch.fail(place, error)
                return
            await self._pipelines.run(context, pipeline, [batch.drafts[place] for place in places], wait=wait)
            for place in places:
                failure = batch.drafts[place].failure
                if failure is not None:
                    batch.fail(place, _of_pipeline(name, failure))

        await asyncio.gather(*(run(name, places) for name, places in groups.items()))

    async def _map(self, batch: _Batch) -> None:
        """Apply the mappings."""
        puts = list(batch.puts())
        if sum(len(action.document.source) for _, _, action in puts) <= INLINE_BYTES:
            _map_all(batch, puts)
        else:
            await asyncio.to_thread(_map_all, batch, puts)

    async def _check_models(self, batch: _Batch) -> None:
        """Refuse vectors of a model that does not fit those in the field; the first inferred write binds a field."""
        for place, draft in batch.drafts.items():
            prepared = batch.outcomes[place]
            if not isinstance(prepared, Prepared):
                continue
            opened = prepared.opened
            for name, origin in draft.inferred.items():
                try:
                    wanted = opened.mapping.properties[name].model_id
                    if wanted and wanted != origin.model_id and wanted not in origin.aliases:
                        raise _wrong_model(name, "model_id", wanted, origin.model_id)
                    bound = opened.fingerprints.get(name)
                    if bound is None:
                        bound = await self._indices.bind_fingerprint(opened, name, origin.fingerprint)
                        opened.fingerprints[name] = bound
                    if bound != origin.fingerprint:
                        raise _wrong_model(name, "fingerprint", bound, origin.fingerprint)
                except TermwiseError as error:
                    batch.fail(place, error)
                    break


class _Batch:
    """Operations on their way to storage, by their place in the request."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.outcomes: list[Prepared | WriteResult | None] = [
            each if isinstance(each, WriteResult) else None for each in requests
        ]
        self.opened: dict[str, OpenIndex] = {}
        self.ids: dict[int, str] = {}
        self.drafts: dict[int, Draft] = {}

    def live(self) -> Iterable[tuple[int, WriteOperation]]:
        """Give what has no outcome yet."""
        for place, (request, outcome) in enumerate(zip(self.requests, self.outcomes, strict=True)):
            if outcome is None and isinstance(request, WriteOperation):
                yield place, request

    def puts(self) -> Iterable[tuple[int, WriteOperation, PutDocument]]:
        """Give the documents to write that have no outcome yet."""
        for place, operation in self.live():
            if isinstance(operation.action, PutDocument):
                yield place, operation, operation.action

    def fail(self, place: int, error: Exception) -> None:
        """Give an operation its outcome: it failed."""
        request = self.requests[place]
        id_ = self.ids.get(place, "")
        if not id_ and isinstance(request, WriteOperation):
            action = request.action
            id_ = action.id if isinstance(action, DeleteDocument) else action.document.id
        self.outcomes[place] = WriteResult(id_, error=error)


def _map_all(batch: _Batch, puts: Sequence[tuple[int, WriteOperation, PutDocument]]) -> None:
    for place, operation, action in puts:
        draft, opened = batch.drafts[place], batch.opened[operation.index]
        try:
            document = parse_document(opened.mapping, draft.id, draft.source(), draft.body, draft.sparse, draft.paths)
        except TermwiseError as error:
            batch.fail(place, error)
        else:
            batch.outcomes[place] = Prepared(opened, Put(document, action.create, operation.if_version))


def _of_pipeline(pipeline_id: str, failure: Failure) -> TermwiseError:
    """Say where in a pipeline an error arose."""
    error = failure.error
    tag = f' "{failure.processor_tag}"' if failure.processor_tag else ""
    return error.in_terms_of(
        f'Pipeline "{pipeline_id}", processor {failure.processor_type}{tag}: {error.message}',
        error.violations,
        {
            "pipeline": pipeline_id,
            "processor_type": failure.processor_type,
            "processor_tag": failure.processor_tag,
        },
    )


def _wrong_model(field: str, what: str, wanted: str, found: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f'Field "{field}" holds vectors of the model with {what} {wanted}, these come from {found}; '
        "use that model, or write to a new index.",
        reason="MODEL_MISMATCH",
        metadata={"field": field, f"field_{what}": wanted, f"document_{what}": found},
    )


def _result(prepared: Prepared, outcome: Written | Exception) -> WriteResult:
    if isinstance(outcome, Written):
        return WriteResult(outcome.id, written=outcome)
    return WriteResult(prepared.id, error=_domain_error(prepared, outcome))


def _domain_error(prepared: Prepared, error: Exception) -> Exception:
    """Give storage's error in the domain's words, which carry details."""
    resource = Resource("document", prepared.id)
    match error:
        case DocumentExistsError():
            return already_exists("document", prepared.id, hint="Leave out `create` to replace it.")
        case DocumentMissingError():
            return not_found("document", prepared.id)
        case VersionConflictError():
            return AbortedError(f"{error}", metadata={"document": prepared.id}, resource=resource)
        case InvalidDocumentError():
            return InvalidArgumentError(f"{error}", reason="INVALID_DOCUMENT", resource=resource)
        case StorageFullError():
            return ResourceExhaustedError(f"{error}", reason="DISK_FULL", retry_after=FULL_DISK_RETRY)
        case _:
            return error
