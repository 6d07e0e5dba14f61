"""A small index in the memory store, and what a search needs around it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from termwise.server.errors import not_found
from termwise.server.indices.catalog import OpenIndex
from termwise.server.indices.mapping import FieldMapping, Mapping
from termwise.server.metadata.records import IndexRecord, IndexState
from termwise.storage.memory import MemoryStore
from termwise.storage.types import Document, FieldKind, Put, sparse_vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAPPING = Mapping(
    {
        "title": FieldMapping(FieldKind.TEXT, fields={"raw": FieldMapping(FieldKind.KEYWORD)}),
        "text": FieldMapping(FieldKind.TEXT),
        "lang": FieldMapping(FieldKind.KEYWORD),
        "year": FieldMapping(FieldKind.INTEGER),
        "price": FieldMapping(FieldKind.NUMBER),
        "draft": FieldMapping(FieldKind.BOOLEAN),
        "published": FieldMapping(FieldKind.DATE),
        "expansion": FieldMapping(FieldKind.SPARSE_VECTOR, search_deployment_id="for_search"),
        "topics": FieldMapping(FieldKind.SPARSE_VECTOR),
    }
)


@dataclass
class Shelf:
    """What `Searcher` sees of the indices: each a memory index, with the fingerprints a test gives it."""

    store: MemoryStore = field(default_factory=MemoryStore)
    indices: dict[str, OpenIndex] = field(default_factory=dict)

    def add(
        self,
        name: str,
        documents: Sequence[Document],
        mapping: Mapping = MAPPING,
        fingerprints: dict[str, str] | None = None,
    ) -> OpenIndex:
        """Make an index of documents."""
        self.store.create(name, mapping.schema())
        index = self.store.open(name)
        index.write([Put(document) for document in documents])
        record = IndexRecord(
            name, IndexState.READY, name, "memory", mapping.to_json(), {}, datetime(2024, 1, 1, tzinfo=UTC)
        )
        self.indices[name] = OpenIndex(record, mapping, index, fingerprints or {})
        return self.indices[name]

    async def open(self, name: str, *, field: str = "index") -> OpenIndex:
        """Find an index."""
        if name not in self.indices:
            raise not_found("index", name, self.indices, field=field)
        return self.indices[name]


@pytest.fixture
def shelf() -> Shelf:
    """Give an empty shelf."""
    return Shelf()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Give a small pool."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def document() -> Callable[..., Document]:
    """Give a maker of documents: `document("1", text="a b", expansion={"a": 1.5}, year=2001)`."""

    def make(id_: str, **values: object) -> Document:
        texts: dict[str, list[str]] = {}
        columns: dict[str, list[object]] = {}
        sparse = {}
        for name, value in values.items():
            kind = MAPPING.fields[name].kind
            if kind is FieldKind.TEXT:
                texts[name] = [str(value)]
            elif kind is FieldKind.SPARSE_VECTOR:
                assert isinstance(value, dict)
                sparse[name] = sparse_vector(list(value), list(value.values()))
            else:
                columns[name] = [value]
        return Document(id_, f'{{"id":"{id_}"}}'.encode(), texts, columns, sparse)  # type: ignore[arg-type]

    return make
