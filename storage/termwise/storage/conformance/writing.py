# ruff: noqa: D101, D102, S101, PLR2004 - a test's name says what it shows; assertions and figures are the purpose
"""Stores make, open and drop indices; indices write, version and give documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from termwise.storage.conformance.reference import SCHEMA, new_index, put, vector, written
from termwise.storage.errors import (
    DocumentExistsError,
    DocumentMissingError,
    IndexExistsError,
    IndexMissingError,
    InvalidDocumentError,
    SchemaError,
    VersionConflictError,
)
from termwise.storage.types import (
    MAX_ID_BYTES,
    MAX_KEYWORD_BYTES,
    MAX_TOKEN_BYTES,
    Delete,
    Document,
    Everything,
    FieldKind,
    FieldSpec,
    Ids,
    IndexSchema,
    Put,
    Result,
    Sparse,
    Written,
)

if TYPE_CHECKING:
    from termwise.storage.base import IndexStore


class StoreConformance:
    def test_a_new_index_is_listed_opened_and_empty(self, store: IndexStore) -> None:
        assert store.list() == []
        store.create("b", SCHEMA)
        store.create("a", SCHEMA)
        assert store.list() == ["a", "b"]
        statistics = store.open("a").reader().statistics()
        assert (statistics.document_count, statistics.last_seq_no) == (0, 0)
        assert set(statistics.sparse_fields) == {"vec", "other"}
        assert store.open("a").reader().match(Everything()).tolist() == []
        assert store.open("a").reader().rank(Sparse("vec", vector({"a": 1})), 5).total == 0

    def test_opening_again_gives_the_same_object(self, store: IndexStore) -> None:
        store.create("a", SCHEMA)
        assert store.open("a") is store.open("a")

    def test_the_schema_comes_back(self, store: IndexStore) -> None:
        assert new_index(store).schema == SCHEMA

    def test_a_taken_name_is_refused(self, store: IndexStore) -> None:
        store.create("a", SCHEMA)
        with pytest.raises(IndexExistsError, match="a"):
            store.create("a", IndexSchema({}))
        assert store.open("a").schema == SCHEMA

    def test_an_unknown_analyzer_is_refused_and_makes_nothing(self, store: IndexStore) -> None:
        with pytest.raises(SchemaError, match="klingon"):
            store.create("a", IndexSchema({"t": FieldSpec(FieldKind.TEXT, "klingon")}))
        assert store.list() == []

    def test_a_missing_index_is_named(self, store: IndexStore) -> None:
        with pytest.raises(IndexMissingError, match="nowhere"):
            store.open("nowhere")
        with pytest.raises(IndexMissingError, match="nowhere"):
            store.drop("nowhere")

    def test_a_dropped_index_is_gone_and_its_name_free(self, store: IndexStore) -> None:
        store.create("a", SCHEMA)
        written(store.open("a"), put("1", vec={"x": 1}))
        store.drop("a")
        assert store.list() == []
        with pytest.raises(IndexMissingError):
            store.open("a")
        store.create("a", SCHEMA)
        assert store.open("a").reader().get(["1"]) == [None]

    def test_readers_of_a_dropped_index_finish(self, store: IndexStore) -> None:
        store.create("a", SCHEMA)
        index = store.open("a")
        written(index, put("1", vec={"x": 1}))
        reader = index.reader()
        store.drop("a")
        assert reader.statistics().document_count == 1
        assert reader.match(Everything()).tolist() == [1]
        assert [found is not None for found in reader.get(["1"])] == [True]

    def test_an_index_without_fields_still_keeps_documents(self, store: IndexStore) -> None:
        index = new_index(store, IndexSchema({}))
        written(index, Put(Document("1", b'{"a": 1}')))
        (document,) = index.reader().get(["1"])
        assert document is not None
        assert document.source == b'{"a": 1}'

    def test_closing_twice_is_allowed_and_readers_finish(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", vec={"x": 1}))
        reader = index.reader()
        index.close()
        index.close()
        assert reader.match(Everything()).tolist() == [1]
        store.close()
        store.close()


class WritingConformance:
    def test_writes_are_visible_to_the_next_reader_only(self, store: IndexStore) -> None:
        index = new_index(store)
        before = index.reader()
        written(index, put("1", body="salmon", vec={"fish": 2}, lang="en"))
        between = index.reader()
        written(index, put("2", vec={"fish": 3}), Delete("1"))
        assert before.get(["1", "2"]) == [None, None]
        assert before.match(Everything()).tolist() == []
        assert before.rank(Sparse("vec", vector({"fish": 1})), 5).total == 0
        assert between.match(Everything()).tolist() == [1]
        assert between.rank(Sparse("vec", vector({"fish": 1})), 5).scores.tolist() == [2]
        assert index.reader().rank(Sparse("vec", vector({"fish": 1})), 5).scores.tolist() == [3]

    def test_get_follows_the_order_of_ids(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("a"), put("b"), put("ü"))
        documents = index.reader().get(["ü", "none", "a", "a"])
        assert [document and document.id for document in documents] == ["ü", None, "a", "a"]

    def test_fetch_follows_the_order_of_seq_nos(self, store: IndexStore) -> None:
        index = new_index(store)
        first, second, third = written(index, put("a"), put("b"), put("c"))
        fetched = index.reader().fetch(np.array([third, first, second], dtype=np.int64))
        assert [(document.id, document.seq_no) for document in fetched] == [("c", third), ("a", first), ("b", second)]
        assert index.reader().fetch(np.array([], dtype=np.int64)) == []

    def test_fetch_gives_what_is_asked_for(self, store: IndexStore) -> None:
        index = new_index(store)
        sparse = {"vec": vector({"fish": 2}), "other": vector({"sea": 1})}
        (number,) = written(index, Put(Document("a", b"{}", sparse=sparse)))
        reader, numbers = index.reader(), np.array([number], dtype=np.int64)
        (whole,) = reader.fetch(numbers)
        assert (whole.source, set(whole.sparse)) == (b"{}", {"vec", "other"})
        for source in (True, False):
            for names in ((), ("vec",), ("other", "vec", "absent")):
                (some,) = reader.fetch(numbers, source=source, sparse=names)
                assert (some.id, some.seq_no) == ("a", number)
                assert some.source == (whole.source if source else b"")
                assert some.sparse == {name: whole.sparse[name] for name in names if name in whole.sparse}

    def test_documents_come_back_as_they_were(self, store: IndexStore) -> None:
        index = new_index(store)
        source = '{"big": 9007199254740993, "text": "ünï\\u0000", "n": 1.0}'.encode()
        odd = vector({"a": 1.5, "\0": 3e38, "a\0b": 1.17549435e-38, "日本 go": 0.1, "x" * MAX_TOKEN_BYTES: 7})
        written(index, Put(Document("1", source, sparse={"vec": odd, "other": vector({})})))
        (document,) = index.reader().get(["1"])
        assert document is not None
        assert document.source == source
        assert document.sparse == {"vec": odd, "other": vector({})}

    def test_every_kind_of_write_says_what_it_did(self, store: IndexStore) -> None:
        outcomes = new_index(store).write([put("1"), put("1"), Delete("1"), put("1")])
        results = [outcome.result for outcome in outcomes if isinstance(outcome, Written)]
        assert results == [Result.CREATED, Result.UPDATED, Result.DELETED, Result.CREATED]

    def test_seq_nos_grow_and_deletes_take_one(self, store: IndexStore) -> None:
        index = new_index(store)
        seq_nos = written(index, put("1"), put("2"), Delete("2")) + written(index, put("1"), put("3"))
        assert seq_nos == sorted(set(seq_nos))
        assert seq_nos[0] > 0
        assert index.reader().statistics().last_seq_no == seq_nos[-1]
        (document,) = index.reader().get(["1"])
        assert document is not None
        assert document.seq_no == seq_nos[3]

    def test_operations_see_those_before_them(self, store: IndexStore) -> None:
        index = new_index(store)
        outcomes = index.write(
            [
                put("1", vec={"a": 1}),
                Put(put("1").document, create=True),
                Delete("1"),
                Put(put("1", vec={"a": 5}).document, create=True),
                Delete("2"),
                put("2", vec={"a": 4}),
                put("2", vec={"a": 3}),
            ]
        )
        kinds = [Written, DocumentExistsError, Written, Written, DocumentMissingError, Written, Written]
        assert [type(outcome) for outcome in outcomes] == kinds
        ranking = index.reader().rank(Sparse("vec", vector({"a": 1})), 10)
        assert ranking.scores.tolist() == [5, 3]
        assert index.reader().statistics().document_count == 2

    def test_a_failed_operation_names_its_document_and_touches_nothing(self, store: IndexStore) -> None:
        index = new_index(store)
        (first,) = written(index, put("1", vec={"a": 1}))
        outcomes = index.write([Put(put("1", vec={"a": 9}).document, create=True), Delete("x"), put("2")])
        assert isinstance(outcomes[0], DocumentExistsError)
        assert isinstance(outcomes[1], DocumentMissingError)
        assert outcomes[0].id == "1"
        assert outcomes[1].id == "x"
        (document,) = index.reader().get(["1"])
        assert document is not None
        assert document.seq_no == first

    def test_versions_guard_writes(self, store: IndexStore) -> None:
        index = new_index(store)
        document = put("1").document
        (first,) = written(index, Put(document, if_version=0))
        (conflict,) = index.write([Put(document, if_version=0)])
        assert isinstance(conflict, VersionConflictError)
        (second,) = written(index, Put(document, if_version=first))
        conflicts = index.write([Put(document, if_version=first), Delete("1", if_version=first)])
        assert [type(conflict) for conflict in conflicts] == [VersionConflictError] * 2
        (conflict,) = index.write([Put(put("2").document, if_version=second)])
        assert isinstance(conflict, VersionConflictError)
        written(index, Delete("1", if_version=second))
        (missing,) = index.write([Delete("1", if_version=second)])
        assert isinstance(missing, DocumentMissingError)

    def test_an_empty_batch_does_nothing(self, store: IndexStore) -> None:
        index = new_index(store)
        assert index.write([]) == []
        assert index.reader().statistics().last_seq_no == 0

    @pytest.mark.parametrize(
        "document",
        [
            Document("", b"{}"),
            Document("x" * (MAX_ID_BYTES + 1), b"{}"),
            Document("1", b"{}", texts={"nowhere": ["a"]}),
            Document("1", b"{}", texts={"lang": ["a"]}),
            Document("1", b"{}", columns={"lang": [3]}),
            Document("1", b"{}", columns={"lang": ["x" * (MAX_KEYWORD_BYTES + 1)]}),
            Document("1", b"{}", columns={"year": ["3"]}),
            Document("1", b"{}", columns={"year": [1.5]}),
            Document("1", b"{}", columns={"year": [True]}),
            Document("1", b"{}", columns={"year": [2**63]}),
            Document("1", b"{}", columns={"price": [float("nan")]}),
            Document("1", b"{}", columns={"draft": [1]}),
            Document("1", b"{}", columns={"vec": ["a"]}),
            Document("1", b"{}", sparse={"title": vector({"a": 1})}),
            Document("1", b"{}", sparse={"nowhere": vector({"a": 1})}),
        ],
    )
    def test_a_document_that_does_not_fit_stops_the_batch(self, store: IndexStore, document: Document) -> None:
        index = new_index(store)
        with pytest.raises(InvalidDocumentError):
            index.write([put("0"), Put(document), put("2")])
        assert index.reader().statistics().document_count == 0
        assert written(index, put("0")) == [1]

    def test_the_longest_values_are_found(self, store: IndexStore) -> None:
        index = new_index(store)
        id_, keyword = "é" * (MAX_ID_BYTES // 2), "x" * MAX_KEYWORD_BYTES
        written(index, put(id_, lang=keyword))
        assert index.reader().match(Ids((id_,))).tolist() == [1]
        written(index, put(id_, lang="y"))
        assert index.reader().statistics().document_count == 1

    def test_statistics_count_what_lives(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", vec={"a": 1, "b": 2}), put("2", vec={"b": 1}), put("3"), put("4", vec={}))
        statistics = index.reader().statistics()
        assert statistics.document_count == 4
        counts = statistics.sparse_fields["vec"]
        assert (counts.document_count, counts.token_count, counts.posting_count) == (3, 2, 3)
        assert statistics.sparse_fields["other"].document_count == 0
        tokens = index.reader().token_statistics("vec", ["b", "nowhere", "a"])
        assert (tokens.document_count, tokens.token_count, tokens.posting_count) == (3, 2, 3)
        assert tokens.frequencies.tolist() == [2, 0, 1]
        with pytest.raises(SchemaError):
            index.reader().token_statistics("title", ["a"])
