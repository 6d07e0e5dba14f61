from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from termwise.server.errors import (
    AlreadyExistsError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from termwise.server.indices.catalog import IndexSettings, Indices
from termwise.server.indices.mapping import FieldMapping, Mapping
from termwise.server.metadata.records import IndexRecord, IndexState, PipelineRecord
from termwise.storage.errors import StorageFullError
from termwise.storage.memory import MemoryStore
from termwise.storage.types import Document, FieldKind, IndexSchema, Put, Written

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.server.metadata.store import MetadataStore

MAPPING = Mapping(
    {
        "title": FieldMapping(FieldKind.TEXT, "english"),
        "vector": FieldMapping(FieldKind.SPARSE_VECTOR, search_deployment_id="for_search"),
    },
    strict=True,
)
NOW = datetime(2024, 5, 1, tzinfo=UTC)


def record(name: str, state: IndexState, backend: str = "main") -> IndexRecord:
    return IndexRecord(name, state, f"{name}-storage", backend, MAPPING.to_json(), {}, NOW)


async def test_an_index_lives_and_goes(indices: Indices, stores: dict[str, MemoryStore]) -> None:
    made = await indices.create("docs", MAPPING)
    assert made.state is IndexState.READY
    assert await indices.get("docs") == made
    opened = await indices.open("docs")
    assert opened.mapping == MAPPING
    assert opened.index.schema == MAPPING.schema()
    assert opened.record.settings == {"default_pipeline": "", "storage": "main"}
    (outcome,) = await indices.write(opened, [Put(Document("1", b"{}"))])
    assert isinstance(outcome, Written)
    counts, fingerprints = await indices.statistics("docs")
    assert (counts.document_count, counts.last_seq_no, fingerprints) == (1, 1, {})
    await indices.delete("docs")
    assert stores["main"].list() == []
    for call in (indices.get("docs"), indices.open("docs"), indices.delete("docs"), indices.statistics("docs")):
        with pytest.raises(NotFoundError):
            await call
    with pytest.raises(NotFoundError):
        await indices.write(opened, [Put(Document("1", b"{}"))])


async def test_a_name_is_taken_once(indices: Indices) -> None:
    outcomes = await asyncio.gather(*(indices.create("docs", MAPPING) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(outcome, IndexRecord) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AlreadyExistsError) for outcome in outcomes) == 4


async def test_a_name_that_is_used_again_meets_nothing_old(indices: Indices) -> None:
    await indices.create("docs", MAPPING)
    old = await indices.open("docs")
    await indices.write(old, [Put(Document("1", b"{}"))])
    assert await indices.bind_fingerprint(old, "vector", "sha256:old") == "sha256:old"
    await indices.delete("docs")
    await indices.create("docs", Mapping())
    new = await indices.open("docs")
    assert new.index.reader().get(["1"]) == [None]
    assert new.fingerprints == {}
    assert new.mapping == Mapping()
    with pytest.raises(NotFoundError, match="made anew meanwhile") as caught:
        await indices.write(old, [Put(Document("1", b"{}"))])
    assert "did you mean" not in caught.value.message
    with pytest.raises(NotFoundError):
        await indices.bind_fingerprint(old, "vector", "sha256:old")


async def test_indices_are_listed_by_name(indices: Indices) -> None:
    for name in ("b", "c", "a"):
        await indices.create(name, MAPPING)
    assert [each.name for each in await indices.list()] == ["a", "b", "c"]
    assert [each.name for each in await indices.list("a", 1)] == ["b"]
    with pytest.raises(NotFoundError, match='did you mean "a"') as caught:
        await indices.open("aa", field="indices[0]")
    assert caught.value.violations[0].field == "indices[0]"


@pytest.mark.parametrize(
    ("name", "mapping", "settings", "field"),
    [
        ("", MAPPING, IndexSettings(), "index"),
        ("Docs", MAPPING, IndexSettings(), "index"),
        ("docs", Mapping({"": FieldMapping(FieldKind.TEXT)}), IndexSettings(), 'mapping.properties[""]'),
        ("docs", MAPPING, IndexSettings(storage="nowhere"), "settings.storage"),
        ("docs", MAPPING, IndexSettings(default_pipeline="No Name"), "settings.default_pipeline"),
    ],
)
async def test_what_cannot_work_is_named(
    indices: Indices, name: str, mapping: Mapping, settings: IndexSettings, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await indices.create(name, mapping, settings)
    assert caught.value.violations[0].field == field
    assert await indices.list() == []


async def test_the_default_pipeline_must_exist(indices: Indices, metadata: MetadataStore) -> None:
    with pytest.raises(NotFoundError) as caught:
        await indices.create("docs", MAPPING, IndexSettings(default_pipeline="expand"))
    assert caught.value.violations[0].field == "settings.default_pipeline"
    metadata.put_pipeline(PipelineRecord("expand", {}, NOW, NOW))
    await indices.create("docs", MAPPING, IndexSettings(default_pipeline="expand"))
    assert (await indices.open("docs")).default_pipeline == "expand"
    assert await indices.with_default_pipeline("expand") == ["docs"]
    assert await indices.with_default_pipeline("other") == []


async def test_references_to_a_deployment(indices: Indices) -> None:
    await indices.create("docs", MAPPING)
    await indices.create("plain", Mapping())
    assert await indices.references_to_deployment("for_search") == ['index "docs"']
    assert await indices.references_to_deployment("for_ingest") == []


async def test_references_to_a_model(indices: Indices) -> None:
    field = FieldMapping(FieldKind.SPARSE_VECTOR, model_id="mine", search_deployment_id="for_search")
    await indices.create("docs", Mapping({"vector": field}))
    assert await indices.references_to_model("mine") == ['index "docs"']
    assert await indices.references_to_model("for_search") == []


async def test_a_field_is_bound_to_the_first_fingerprint(indices: Indices, make_indices: Callable[[], Indices]) -> None:
    await indices.create("docs", MAPPING)
    opened = await indices.open("docs")
    bound = await asyncio.gather(*(indices.bind_fingerprint(opened, "vector", f"sha256:{n}") for n in range(5)))
    assert len(set(bound)) == 1
    again = make_indices()
    await again.reconcile()
    assert (await again.open("docs")).fingerprints == {"vector": bound[0]}


class Full(MemoryStore):
    """A store without room."""

    def create(self, name: str, schema: IndexSchema) -> None:
        """Fail."""
        del name, schema
        raise StorageFullError("The disk is full.")


async def test_a_creation_that_fails_leaves_nothing(indices: Indices, stores: dict[str, MemoryStore]) -> None:
    good, stores["main"] = stores["main"], Full()
    with pytest.raises(StorageFullError):
        await indices.create("docs", MAPPING)
    assert await indices.list() == []
    stores["main"] = good
    await indices.create("docs", MAPPING)


async def test_what_a_crash_left_is_put_right(
    make_indices: Callable[[], Indices], metadata: MetadataStore, stores: dict[str, MemoryStore]
) -> None:
    for name, state, backend in (
        ("creating", IndexState.CREATING, "main"),
        ("creating-early", IndexState.CREATING, "main"),
        ("deleting", IndexState.DELETING, "main"),
        ("deleting-late", IndexState.DELETING, "main"),
        ("forgotten", IndexState.READY, "other"),
        ("gone", IndexState.READY, "main"),
        ("ready", IndexState.READY, "main"),
        ("foreign", IndexState.READY, "nowhere"),
    ):
        metadata.put_index(record(name, state, backend))
    for name in ("creating-storage", "deleting-storage", "ready-storage", "stray"):
        stores["main"].create(name, MAPPING.schema())
    indices = make_indices()
    found = await indices.reconcile()
    assert found.ready == ("ready",)
    assert found.rolled_back == ("creating", "creating-early")
    assert found.finished == ("deleting", "deleting-late")
    assert found.lost == ("forgotten",)
    assert found.dropped == ("stray",)
    assert set(found.broken) == {"gone", "foreign"}
    assert "gone" in found.broken["gone"]
    assert stores["main"].list() == ["ready-storage"]
    assert [each.name for each in await indices.list()] == ["foreign", "gone", "ready"]
    with pytest.raises(DataLossError):
        await indices.open("gone")
    await indices.delete("gone")
    again = await make_indices().reconcile()
    assert (again.ready, set(again.broken)) == (("ready",), {"foreign"})


async def test_storage_stays_where_metadata_knows_no_index(indices: Indices, stores: dict[str, MemoryStore]) -> None:
    stores["main"].create("stray", MAPPING.schema())
    found = await indices.reconcile()
    assert found.strays == ("stray",)
    assert stores["main"].list() == ["stray"]


async def test_an_index_that_is_being_made_or_deleted_is_not_opened(indices: Indices, metadata: MetadataStore) -> None:
    metadata.put_index(record("docs", IndexState.CREATING))
    with pytest.raises(UnavailableError):
        await indices.open("docs")
    metadata.put_index(replace(record("docs", IndexState.CREATING), state=IndexState.DELETING))
    with pytest.raises(NotFoundError):
        await indices.open("docs")
    assert (await indices.get("docs")).state is IndexState.DELETING
    await indices.create("docs", MAPPING)
    assert (await indices.open("docs")).record.state is IndexState.READY


async def test_a_caller_that_leaves_does_not_stop_a_creation(indices: Indices) -> None:
    task = asyncio.create_task(indices.create("docs", MAPPING))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await indices.close()
    assert (await indices.get("docs")).state is IndexState.READY
