# ruff: noqa: D101, D102, S101, PLR2004 - a test's name says what it shows; assertions and figures are the purpose
"""A document of several vectors in a field scores by its best one, and counts once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.storage.conformance.matching import many
from termwise.storage.conformance.ranking import check_scores
from termwise.storage.conformance.reference import (
    Model,
    check_ranking,
    chunked,
    new_index,
    put,
    vector,
    written,
)
from termwise.storage.errors import InvalidDocumentError
from termwise.storage.types import (
    MAX_CHUNKS,
    SMALLEST_WEIGHT,
    Delete,
    Document,
    Exists,
    Ids,
    Operation,
    Put,
    Sparse,
    SparseVector,
    Terms,
)

if TYPE_CHECKING:
    from termwise.storage.base import IndexStore

_ROUNDING = 2e-6
_weights = st.sampled_from([0.25, 0.5, 1.0, 2.0]) | st.floats(SMALLEST_WEIGHT, 2.0**127, width=32)
_vectors = st.dictionaries(st.sampled_from("abcdef"), _weights, max_size=6).map(vector)
_keys = st.sampled_from([str(number) for number in range(12)])


def _put(key: str, held: list[SparseVector], lang: str) -> Put:
    columns = {"lang": [lang]}
    if len(held) == 1:
        return Put(Document(key, b"{}", columns=columns, sparse={"vec": held[0]}))
    return Put(Document(key, b"{}", columns=columns, chunks={"vec": held}))


_operations: st.SearchStrategy[list[Operation]] = st.lists(
    st.builds(_put, _keys, st.lists(_vectors, max_size=5), st.sampled_from(["en", "de"])) | st.builds(Delete, _keys),
    max_size=15,
)


class ChunksConformance:
    @many
    @given(batches=st.lists(_operations, max_size=4), query=_vectors, depth=st.integers(1, 8), count=st.integers(0, 12))
    def test_rankings_of_chunks_are_those_of_a_walk(
        self, store: IndexStore, batches: list[list[Operation]], query: SparseVector, depth: int, count: int
    ) -> None:
        index, model = new_index(store), Model()
        for batch in batches:
            model.write(index, batch)
        reader, leaf, english = index.reader(), Sparse("vec", query), Terms("lang", ("en",))
        scores = model.dot_products("vec", query)
        check_ranking(reader.rank(leaf, depth), scores, depth, _ROUNDING)
        check_ranking(reader.rank(leaf, depth, count=count), scores, depth, _ROUNDING, count)
        check_scores(reader, leaf, scores, list(model.alive()))
        assert reader.match(leaf).tolist() == sorted(scores)
        matched = set(model.match(english))
        narrowed = {seq_no: score for seq_no, score in scores.items() if seq_no in matched}
        check_ranking(reader.rank(leaf, depth, english), narrowed, depth, _ROUNDING)
        check_ranking(reader.rank(leaf, depth, english, count=count), narrowed, depth, _ROUNDING, count)
        store.drop(next(name for name in store.list() if store.open(name) is index))

    def test_the_best_chunk_scores_and_chunks_never_add_up(self, store: IndexStore) -> None:
        index = new_index(store)
        written(
            index,
            chunked("1", {"a": 1, "c": 9}, {"a": 3}, {"b": 2}),
            put("2", vec={"a": 1, "b": 3}),
            chunked("3", {"c": 1}, {"d": 5}),
        )
        reader, leaf = index.reader(), Sparse("vec", vector({"a": 2, "b": 1}))
        ranking = reader.rank(leaf, 10)
        assert (ranking.seq_nos.tolist(), ranking.scores.tolist(), ranking.total) == ([1, 2], [6, 5], 2)
        assert ranking.exhausted
        assert reader.score(leaf, np.array([3, 2, 1], np.int64)).tolist()[1:] == [5, 6]
        assert reader.match(leaf).tolist() == [1, 2]
        assert reader.rank(leaf, 10, Ids(("1",))).scores.tolist() == [6]

    def test_equal_best_chunks_come_by_age(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, *(chunked(str(n), *[{"a": 1}] * (1 + n % 4), {"a": 0.5}) for n in range(20)))
        for depth in (1, 5, 20):
            ranking = index.reader().rank(Sparse("vec", vector({"a": 1})), depth)
            assert ranking.seq_nos.tolist() == list(range(1, 21))[:depth]
            assert ranking.total == 20

    def test_chunks_come_back_as_they_were(self, store: IndexStore) -> None:
        index = new_index(store)
        held = (vector({"b": 2, "a": 1}), vector({}), vector({"\0": 3}), vector({"b": 2, "a": 1}))
        document = Document("1", b"{}", sparse={"other": vector({"sea": 1})}, chunks={"vec": held})
        (number,) = written(index, Put(document))
        (stored,) = index.reader().get(["1"])
        assert stored is not None
        assert (stored.sparse, stored.chunks) == ({"other": vector({"sea": 1})}, {"vec": held})
        assert stored.vectors() == {"other": (vector({"sea": 1}),), "vec": held}
        (some,) = index.reader().fetch(np.array([number], np.int64), source=False, sparse=("vec",))
        assert (some.sparse, some.chunks) == ({}, {"vec": held})
        (none,) = index.reader().fetch(np.array([number], np.int64), sparse=("other",))
        assert (set(none.sparse), none.chunks) == ({"other"}, {})

    def test_one_chunk_is_a_vector_and_no_chunks_are_no_value(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, chunked("1", {"a": 1}), chunked("2"), chunked("3", {}, {}))
        one, two, three = index.reader().get(["1", "2", "3"])
        assert one is not None
        assert two is not None
        assert three is not None
        assert (one.sparse, one.chunks) == ({"vec": vector({"a": 1})}, {})
        assert two.vectors() == {}
        assert three.chunks == {"vec": (vector({}), vector({}))}
        assert index.reader().match(Exists("vec")).tolist() == [1, 3]

    def test_chunks_that_cannot_be_kept_are_refused(self, store: IndexStore) -> None:
        index, one = new_index(store), vector({"a": 1})
        broken = SparseVector(("a",), np.array([np.nan], np.float32))
        for document, message in (
            (Document("1", b"{}", chunks={"vec": [one] * (MAX_CHUNKS + 1)}), f"{MAX_CHUNKS:,}"),
            (Document("1", b"{}", sparse={"vec": one}, chunks={"vec": [one, one]}), "either"),
            (Document("1", b"{}", chunks={"vec": [one, broken]}), "vec"),
            (Document("1", b"{}", chunks={"title": [one, one]}), "title"),
            (Document("1", b"{}", chunks={"nowhere": []}), "nowhere"),
        ):
            with pytest.raises(InvalidDocumentError, match=message):
                index.write([put("0"), Put(document)])
        assert index.reader().statistics().document_count == 0

    def test_as_many_chunks_as_may_be(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", vec={"a": 2}))
        written(
            index, chunked("2", *({"a": 1, f"t{n % 50}": 1 + n} for n in range(MAX_CHUNKS))), put("3", vec={"a": 3})
        )
        reader = index.reader()
        assert reader.rank(Sparse("vec", vector({"a": 1})), 5).seq_nos.tolist() == [3, 1, 2]
        ranking = reader.rank(Sparse("vec", vector({"t49": 1, "t48": 1})), 5)
        assert (ranking.seq_nos.tolist(), ranking.scores.tolist(), ranking.total) == ([2], [MAX_CHUNKS], 1)
        counts = reader.token_statistics("vec", ["a", "t3"])
        assert counts.document_count == MAX_CHUNKS + 2
        assert counts.frequencies.tolist() == [MAX_CHUNKS + 2, MAX_CHUNKS // 50]

    def test_statistics_count_vectors(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, chunked("1", {"a": 1, "b": 2}, {"a": 1}, {}), chunked("2", {"a": 3}), put("3", vec={"b": 1}))
        counts = index.reader().token_statistics("vec", ["a", "b", "nowhere"])
        assert (counts.document_count, counts.token_count, counts.posting_count) == (5, 2, 5)
        assert counts.frequencies.tolist() == [3, 2, 0]
        assert index.reader().statistics().document_count == 3

    def test_updates_and_deletes_take_all_chunks(self, store: IndexStore) -> None:
        index, leaf = new_index(store), Sparse("vec", vector({"a": 1}))
        written(index, *(chunked(str(n), {"a": 1 + n}, {"a": 2}, {"b": 1}) for n in range(9)))
        written(index, Delete("8"), chunked("7", {"a": 0.5}, {"b": 1}), put("6", vec={"b": 1}))
        ranking = index.reader().rank(leaf, 20)
        assert ranking.scores.tolist() == [6, 5, 4, 3, 2, 2, 0.5]
        assert ranking.seq_nos.tolist() == [6, 5, 4, 3, 1, 2, 11]
        assert ranking.total == 7
        assert np.isnan(index.reader().score(leaf, np.array([7, 8, 9, 12], np.int64))).all()
