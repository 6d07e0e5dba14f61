"""The ingest pipelines: stored, found, tried, and run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from termwise.server.errors import FailedPreconditionError, TermwiseError, invalid_field, not_found
from termwise.server.identifiers import check_identifier
from termwise.server.indices.body import parse_body
from termwise.server.ingest.draft import Draft
from termwise.server.ingest.expansion import TextExpander
from termwise.server.ingest.processors import IngestPipeline, check_pipeline
from termwise.server.ingest.runner import INLINE_BYTES, Runner
from termwise.server.metadata.records import PipelineRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from termwise.server.context import RequestContext
    from termwise.server.indices.catalog import Indices
    from termwise.server.indices.documents import InputDocument
    from termwise.server.inference.base import Expander
    from termwise.server.metadata.store import MetadataStore

NO_PIPELINE: Final = "_none"
"""Names no pipeline, where the index has a default one."""


class Pipelines:
    """The catalogue of ingest pipelines. One process owns the data folder, so what was read is kept."""

    def __init__(self, metadata: MetadataStore, expander: Expander, indices: Indices) -> None:
        """Wire the catalogue: `expander` serves inference, `indices` say which pipeline is a default."""
        self._metadata = metadata
        self._expander = expander
        self._indices = indices
        self._known: dict[str, IngestPipeline] = {}
        self._changing = asyncio.Lock()

    async def put(self, pipeline_id: str, pipeline: IngestPipeline) -> IngestPipeline:
        """Store a pipeline, or replace the one of that id, and give it as stored.

        Raises:
            InvalidArgumentError: the violation names the processor and field that cannot work.

        """
        check_identifier(pipeline_id, "pipeline_id")
        if pipeline_id == NO_PIPELINE:
            raise invalid_field("pipeline_id", f'"{NO_PIPELINE}" stands for no pipeline; choose another id.')
        check_pipeline(pipeline)
        async with self._changing:
            now = datetime.now(UTC)
            old = await asyncio.to_thread(self._metadata.get_pipeline, pipeline_id)
            record = PipelineRecord(pipeline_id, pipeline.to_json(), old.create_time if old else now, now)
            await asyncio.to_thread(self._metadata.put_pipeline, record)
            stored = replace(pipeline, create_time=record.create_time, update_time=record.update_time)
            self._known[pipeline_id] = stored
        return stored

    async def get(self, pipeline_id: str, *, field: str = "pipeline_id") -> IngestPipeline:
        """Give a pipeline.

        Raises:
            NotFoundError: there is none; the violation names `field`.

        """
        if not pipeline_id:
            raise invalid_field(field, "It is empty; name the pipeline.")
        known = self._known.get(pipeline_id)
        if known is not None:
            return known
        async with self._changing:
            record = await asyncio.to_thread(self._metadata.get_pipeline, pipeline_id)
            if record is None:
                names = [each.pipeline_id for each in await asyncio.to_thread(self._metadata.list_pipelines)]
                raise not_found("pipeline", pipeline_id, names, field=field)
            pipeline = _read(record)
            self._known[pipeline_id] = pipeline
        return pipeline

    async def list(self, after: str = "", limit: int | None = None) -> Sequence[tuple[str, IngestPipeline]]:
        """Give pipelines by id, from the one after `after`."""
        records = await asyncio.to_thread(self._metadata.list_pipelines, after, limit)
        return [(record.pipeline_id, _read(record)) for record in records]

    async def delete(self, pipeline_id: str) -> None:
        """Delete a pipeline.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: it is the default of an index.

        """
        await self.get(pipeline_id)
        async with self._indices.changing, self._changing:
            users = await self._indices.with_default_pipeline(pipeline_id)
            if users:
                named = ", ".join(f'"{name}"' for name in users[:3]) + (" and others" if len(users) > 3 else "")  # noqa: PLR2004
                raise FailedPreconditionError(
                    f'Pipeline "{pipeline_id}" is the default of index {named}; delete the index first.',
                    reason="PIPELINE_IN_USE",
                    metadata={"pipeline": pipeline_id, "index": users[0]},
                )
            await asyncio.to_thread(self._metadata.delete_pipeline, pipeline_id)
            self._known.pop(pipeline_id, None)

    async def references_to_deployment(self, deployment_id: str) -> Sequence[str]:
        """Name the pipelines that use a deployment, as 'pipeline "expand"'."""
        return [f'pipeline "{name}"' for name, each in await self.list() if each.uses_deployment(deployment_id)]

    async def run(
        self, context: RequestContext, pipeline: IngestPipeline, drafts: Sequence[Draft], *, wait: bool
    ) -> None:
        """Run documents through a pipeline; a failure stands in the draft. `wait` as in `Expander.expand`."""
        await Runner(TextExpander(self._expander, context, wait=wait)).run(pipeline, drafts)

    async def simulate(
        self,
        context: RequestContext,
        pipeline: IngestPipeline,
        documents: Sequence[InputDocument],
        *,
        verbose: bool = False,
    ) -> Sequence[Draft]:
        """Run documents through a pipeline and give what comes out; nothing is indexed.

        Raises:
            InvalidArgumentError: a body is no JSON object, or the pipeline cannot work.

        """
        check_pipeline(pipeline)
        drafts: list[Draft] = []
        for outcome in await make_drafts([(document.id, document) for document in documents]):
            if isinstance(outcome, TermwiseError):
                raise outcome
            drafts.append(outcome)
        runner = Runner(TextExpander(self._expander, context, wait=False), verbose=verbose)
        await runner.run(pipeline, drafts)
        return drafts


def _read(record: PipelineRecord) -> IngestPipeline:
    return IngestPipeline.from_json(record.body, record.create_time, record.update_time)


async def make_drafts(documents: Sequence[tuple[str, InputDocument]]) -> Sequence[Draft | TermwiseError]:
    """Read the bodies of documents, each with its id; large ones in a thread."""
    if sum(len(document.source) for _, document in documents) <= INLINE_BYTES:
        return _make_drafts(documents)
    return await asyncio.to_thread(_make_drafts, documents)


def _make_drafts(documents: Sequence[tuple[str, InputDocument]]) -> Sequence[Draft | TermwiseError]:
    drafts: list[Draft | TermwiseError] = []
    for id_, document in documents:
        try:
            body = parse_body(document.source, document.paths.body)
        except TermwiseError as error:
            drafts.append(error)
        else:
            drafts.append(Draft(id_, document.source, body, dict(document.sparse), document.paths))
    return drafts
