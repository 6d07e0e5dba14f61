"""Everything from the memory store to the bulk stream, with fake models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from termwise.server.context import RequestContext
from termwise.server.indices.catalog import IndexSettings, Indices
from termwise.server.indices.documents import InputDocument
from termwise.server.indices.mapping import FieldMapping, Mapping
from termwise.server.inference.fake import FakeExpander
from termwise.server.ingest.bulk import Bulk
from termwise.server.ingest.pipelines import Pipelines
from termwise.server.ingest.processors import InferenceProcessor, IngestPipeline, InputOutput, Processor
from termwise.server.ingest.writing import DeleteDocument, PutDocument, WriteOperation, Writer
from termwise.server.metadata.store import MetadataStore
from termwise.storage.memory import MemoryStore
from termwise.storage.types import FieldKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from termwise.server.inference.base import Expander
    from termwise.storage.types import StoredDocument

MAPPING = Mapping(
    {
        "text": FieldMapping(FieldKind.TEXT),
        "year": FieldMapping(FieldKind.INTEGER),
        "expansion": FieldMapping(FieldKind.SPARSE_VECTOR),
    }
)
EXPAND = IngestPipeline(
    processors=(Processor(InferenceProcessor("for_ingest", (InputOutput("text", "expansion"),), ignore_missing=True)),)
)


@dataclass
class Stack:
    """The use cases, wired as bootstrap wires them."""

    indices: Indices
    pipelines: Pipelines
    writer: Writer
    bulk: Bulk
    context: RequestContext

    async def get(self, id_: str, index: str = "docs") -> StoredDocument | None:
        """Give a document of an index."""
        opened = await self.indices.open(index)
        (found,) = opened.index.reader().get([id_])
        return found


@pytest.fixture
def metadata(tmp_path: Path) -> Iterator[MetadataStore]:
    """Give an empty metadata store."""
    store = MetadataStore(tmp_path / "metadata.sqlite")
    yield store
    store.close()


@pytest.fixture
def expander() -> FakeExpander:
    """Give fake models."""
    return FakeExpander()


@pytest.fixture
def make_stack(metadata: MetadataStore) -> Callable[..., Awaitable[Stack]]:
    """Wire a stack over any expander and store, with the pipeline "expand" and the index "docs", whose default it is.

    Further stacks find what an earlier one stored, as after a restart.
    """

    async def make(expander: Expander, store: MemoryStore | None = None) -> Stack:
        kept = store or MemoryStore()
        indices = Indices(metadata, lambda _: kept, default_backend="memory")
        pipelines = Pipelines(metadata, expander, indices)
        writer = Writer(indices, pipelines)
        if not await indices.list():
            await pipelines.put("expand", EXPAND)
            await indices.create("docs", MAPPING, IndexSettings(default_pipeline="expand"))
        return Stack(indices, pipelines, writer, Bulk(writer), RequestContext("test"))

    return make


@pytest.fixture
async def stack(make_stack: Callable[..., Awaitable[Stack]], expander: FakeExpander) -> Stack:
    """Give a stack."""
    return await make_stack(expander)


@pytest.fixture
def put() -> Callable[..., WriteOperation]:
    """Make operations that write a document: `put("1", b'{"text": "x"}')`."""

    def make(
        id_: str,
        source: bytes = b"{}",
        *,
        index: str = "docs",
        pipeline: str = "",
        create: bool = False,
        if_version: int | None = None,
        **vectors: object,
    ) -> WriteOperation:
        document = InputDocument(id_, source, vectors)  # type: ignore[arg-type]
        return WriteOperation(index, PutDocument(document, create), pipeline, if_version)

    return make


@pytest.fixture
def delete() -> Callable[..., WriteOperation]:
    """Make operations that delete a document."""

    def make(id_: str, *, index: str = "docs", if_version: int | None = None) -> WriteOperation:
        return WriteOperation(index, DeleteDocument(id_), if_version=if_version)

    return make
