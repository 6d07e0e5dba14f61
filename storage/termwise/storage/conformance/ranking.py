# ruff: noqa: D101, D102, S101, PLR2004 - a test's name says what it shows; assertions and figures are the purpose
"""Leaves score by their definition, and rankings hold the best, ties by age."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.storage.conformance.matching import conditions, many
from termwise.storage.conformance.reference import Model, check_ranking, new_index, put, vector, written
from termwise.storage.errors import SchemaError
from termwise.storage.types import (
    SMALLEST_WEIGHT,
    AllOf,
    Condition,
    Delete,
    Document,
    FieldKind,
    FieldSpec,
    Ids,
    IndexSchema,
    Leaf,
    Lexical,
    Not,
    Operation,
    Put,
    Sparse,
    SparseVector,
    Terms,
)

if TYPE_CHECKING:
    from termwise.storage.base import IndexReader, IndexStore

_ROUNDING = 2e-6
"""Relative error that a dozen float32 operations may add up to."""

_weights = st.one_of(
    st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    st.floats(0.0078125, 4, width=32),
    st.floats(SMALLEST_WEIGHT, 2.0**127, width=32),
)
_vectors = st.dictionaries(st.sampled_from("abcdefgh"), _weights, max_size=8).map(vector)
_LANGUAGES = ["en", "de"]
_keys = st.sampled_from([str(number) for number in range(20)])


def _put(key: str, held: SparseVector | None, lang: str) -> Put:
    sparse = {} if held is None else {"vec": held}
    return Put(Document(key, b"{}", columns={"lang": [lang]}, sparse=sparse))


_puts = st.builds(_put, _keys, st.none() | _vectors, st.sampled_from(_LANGUAGES))
_operations: st.SearchStrategy[list[Operation]] = st.lists(
    st.one_of(_puts, _puts, st.builds(Delete, _keys)), max_size=25
)
_words = st.lists(st.sampled_from(["salmon", "river", "farm", "farming", "the", "fish"]), max_size=30).map(" ".join)
_wheres: st.SearchStrategy[Condition | None] = st.none() | conditions


def check_scores(reader: IndexReader, leaf: Leaf, scores: dict[int, float], everyone: list[int]) -> None:
    """Check that `score` gives what `rank` does for each of `everyone`, and nothing for who does not match."""
    asked = np.array([*everyone, 10**9], dtype=np.int64)
    given = reader.score(leaf, asked)
    assert given.dtype == np.float32
    ranked = reader.rank(leaf, len(everyone) + 1)
    by_rank = dict(zip(ranked.seq_nos.tolist(), ranked.scores.tolist(), strict=True))
    for seq_no, score in zip(asked.tolist(), given.tolist(), strict=True):
        if seq_no in scores:
            assert score == pytest.approx(by_rank[seq_no], rel=_ROUNDING)
        else:
            assert math.isnan(score)


class SparseConformance:
    @many
    @given(
        batches=st.lists(_operations, max_size=3),
        query=_vectors,
        depth=st.integers(1, 8),
        where=_wheres,
        count=st.integers(0, 12),
    )
    def test_sparse_rankings_are_those_of_a_walk(
        self,
        store: IndexStore,
        batches: list[list[Operation]],
        query: SparseVector,
        depth: int,
        where: Condition | None,
        count: int,
    ) -> None:
        index, model = new_index(store), Model()
        for batch in batches:
            model.write(index, batch)
        reader, leaf = index.reader(), Sparse("vec", query)
        scores = model.dot_products("vec", query)
        check_ranking(reader.rank(leaf, depth), scores, depth, _ROUNDING)
        check_ranking(reader.rank(leaf, depth, count=count), scores, depth, _ROUNDING, count)
        check_scores(reader, leaf, scores, list(model.alive()))
        assert reader.match(leaf).tolist() == sorted(scores)
        if where is not None:
            matched = set(model.match(where))
            narrowed = {seq_no: score for seq_no, score in scores.items() if seq_no in matched}
            check_ranking(reader.rank(leaf, depth, where), narrowed, depth, _ROUNDING)
            check_ranking(reader.rank(leaf, depth, where, count=count), narrowed, depth, _ROUNDING, count)
        store.drop(next(name for name in store.list() if store.open(name) is index))

    def test_sparse_scores_are_dot_products(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", vec={"a": 1, "b": 2}), put("2", vec={"b": 4, "c": 1}), put("3", vec={"c": 9}))
        ranking = index.reader().rank(Sparse("vec", vector({"a": 3, "b": 0.5})), 10)
        assert (ranking.seq_nos.tolist(), ranking.scores.tolist()) == ([1, 2], [4, 2])
        assert ranking.total == 2
        assert ranking.exhausted
        assert index.reader().rank(Sparse("other", vector({"a": 3})), 10).total == 0
        assert index.reader().rank(Sparse("vec", vector({})), 10).total == 0

    def test_equal_sparse_scores_come_by_age_at_the_cut_too(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, *(put(str(number), vec={"a": 1}) for number in range(30)))
        written(index, put("3", vec={"a": 1}), put("late", vec={"a": 2}))
        reader = index.reader()
        expected = [32, 1, 2, 3, 5, 6, 7]
        for depth in (1, 3, 7):
            ranking = reader.rank(Sparse("vec", vector({"a": 1})), depth)
            assert ranking.seq_nos.tolist() == expected[:depth]
            assert ranking.total == 31
            assert not ranking.exhausted
        narrowed = reader.rank(Sparse("vec", vector({"a": 1})), 2, Ids(("7", "late", "9", "5")))
        assert narrowed.seq_nos.tolist() == [32, 6]
        assert narrowed.total == 4

    def test_the_smallest_and_largest_weights_count(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", vec={"a": SMALLEST_WEIGHT}), put("2", vec={"a": 3e38}), put("3", vec={"b": 1}))
        reader = index.reader()
        tiny = reader.rank(Sparse("vec", vector({"a": SMALLEST_WEIGHT})), 10)
        assert tiny.seq_nos.tolist() == [2, 1]
        huge = reader.rank(Sparse("vec", vector({"a": 3e38})), 10)
        assert huge.seq_nos.tolist() == [2, 1]
        assert np.isfinite(huge.scores).all()
        assert reader.rank(Sparse("vec", vector({"a": SMALLEST_WEIGHT})), 10, Ids(("1",))).total == 1

    def test_deleted_and_replaced_vectors_do_not_score(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", vec={"a": 5}), put("2", vec={"a": 4}), put("3", vec={"a": 3}))
        written(index, Delete("1"), put("2", vec={"b": 1}))
        reader = index.reader()
        assert reader.rank(Sparse("vec", vector({"a": 1})), 10).seq_nos.tolist() == [3]
        scores = reader.score(Sparse("vec", vector({"a": 1})), np.array([1, 2, 3], dtype=np.int64))
        assert np.isnan(scores).tolist() == [True, True, False]

    def test_many_small_writes_rank_like_one(self, store: IndexStore) -> None:
        index, model = new_index(store), Model()
        for number in range(40):
            model.write(index, [put(str(number % 25), vec={f"t{number % 7}": 1 + number / 10, "all": 1})])
        for query in (vector({"t1": 1, "all": 0.5}), vector({"all": 1})):
            check_ranking(
                index.reader().rank(Sparse("vec", query), 10), model.dot_products("vec", query), 10, _ROUNDING
            )

    def test_ranking_nothing_is_refused(self, store: IndexStore) -> None:
        with pytest.raises(ValueError, match="depth"):
            new_index(store).reader().rank(Sparse("vec", vector({"a": 1})), 0)
        with pytest.raises(ValueError, match="count"):
            new_index(store).reader().rank(Sparse("vec", vector({"a": 1})), 1, count=-1)

    def test_matches_are_counted_as_far_as_asked(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, *(put(str(number), body="salmon", vec={"a": 1}) for number in range(30)))
        reader = index.reader()
        for leaf in (Sparse("vec", vector({"a": 1})), Lexical("body", "salmon")):
            for depth in (3, 30, 40):
                for count in (0, 7, 29, 30, 31, 1000):
                    ranking = reader.rank(leaf, depth, count=count)
                    assert len(ranking.seq_nos) == min(depth, 30)
                    assert max(len(ranking.seq_nos), min(count, 30)) <= ranking.total <= 30
                    assert ranking.counted or ranking.total >= count
                    assert not ranking.counted or ranking.total == 30
                    assert ranking.counted or depth <= 30
                    assert not ranking.exhausted or depth >= 30

    def test_leaves_of_the_wrong_kind_are_refused(self, store: IndexStore) -> None:
        reader = new_index(store).reader()
        for leaf in (Sparse("title", vector({"a": 1})), Sparse("nowhere", vector({"a": 1})), Lexical("vec", "a")):
            with pytest.raises(SchemaError):
                reader.rank(leaf, 1)
            with pytest.raises(SchemaError):
                reader.score(leaf, np.array([1], dtype=np.int64))


class LexicalConformance:
    @many
    @given(
        texts=st.lists(st.lists(_words, max_size=2), max_size=12),
        query=_words,
        all_words=st.booleans(),
        depth=st.integers(1, 6),
        name=st.sampled_from(["title", "body"]),
    )
    def test_bm25_is_that_of_a_walk(
        self, store: IndexStore, texts: list[list[str]], query: str, all_words: bool, depth: int, name: str
    ) -> None:
        index, model = new_index(store), Model()
        for number, values in enumerate(texts):
            columns = {"lang": [_LANGUAGES[number % 2]]}
            model.write(index, [Put(Document(str(number), b"{}", {name: values}, columns))])
        reader, leaf = index.reader(), Lexical(name, query, all_words)
        scores = model.bm25(leaf)
        check_ranking(reader.rank(leaf, depth), scores, depth, 1e-5)
        check_ranking(reader.rank(leaf, depth, count=3), scores, depth, 1e-5, 3)
        check_scores(reader, leaf, scores, list(model.alive()))
        english = Terms("lang", ("en",))
        narrowed = {seq_no: score for seq_no, score in scores.items() if seq_no in set(model.match(english))}
        check_ranking(reader.rank(leaf, depth, english), narrowed, depth, 1e-5)
        store.drop(next(stored for stored in store.list() if store.open(stored) is index))

    def test_bm25_has_its_known_values(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", body="salmon"), put("2", body="salmon salmon river"), put("3", body="a river"))
        ranking = index.reader().rank(Lexical("body", "Salmon"), 10)
        # N = 3, df = 2, average length 2, k1 = 1.2, b = 0.75, worked out by hand
        rarity = math.log(1 + 1.5 / 2.5)
        short = 2.2 * rarity * 1 / (1 + 1.2 * (0.25 + 0.75 * 1 / 2))
        long = 2.2 * rarity * 2 / (2 + 1.2 * (0.25 + 0.75 * 3 / 2))
        assert ranking.seq_nos.tolist() == [1, 2]
        assert ranking.scores.tolist() == pytest.approx([short, long], rel=1e-6)

    def test_lengths_beyond_forty_are_coarse(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, *(put(str(n), body="salmon " + "x " * (n - 1)) for n in (41, 40, 56, 59, 60)))
        ranking = index.reader().rank(Lexical("body", "salmon"), 10)
        assert ranking.seq_nos.tolist() == [1, 2, 3, 4, 5]
        scores = ranking.scores.tolist()
        assert scores[0] == scores[1] > scores[2] == scores[3] > scores[4]

    def test_any_word_or_all_words(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", body="salmon river"), put("2", body="river"), put("3", body="farm"))
        reader = index.reader()
        assert sorted(reader.rank(Lexical("body", "salmon river"), 9).seq_nos.tolist()) == [1, 2]
        assert reader.rank(Lexical("body", "salmon river", all_words=True), 9).seq_nos.tolist() == [1]
        assert reader.rank(Lexical("body", "salmon salmon", all_words=True), 9).seq_nos.tolist() == [1]
        once, twice = (reader.rank(Lexical("body", text), 1).scores[0] for text in ("salmon", "salmon salmon"))
        assert twice == pytest.approx(2 * once)

    def test_text_without_words_matches_nothing(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", title="the salmon", body="?"))
        for leaf in (Lexical("title", "the"), Lexical("title", ""), Lexical("body", "?!"), Lexical("body", "?", True)):  # noqa: FBT003
            assert index.reader().rank(leaf, 5).total == 0
            assert index.reader().match(leaf).tolist() == []

    def test_query_syntax_means_nothing(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", body="salmon"), put("2", body="river"))
        for text in ("salmon AND", 'body:"salmon', "salmon*", "-salmon", "+salmon^2 )", "[salmon TO"):
            assert index.reader().rank(Lexical("body", text), 5).seq_nos.tolist() == [1], text

    def test_english_stems_and_standard_does_not(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", title="farming the farms", body="farming the farms"))
        reader = index.reader()
        assert reader.match(Lexical("title", "farmed")).tolist() == [1]
        assert reader.match(Lexical("body", "farmed")).tolist() == []
        assert reader.match(Lexical("body", "FARMS")).tolist() == [1]
        assert reader.match(Lexical("title", "the")).tolist() == []
        assert reader.match(Lexical("body", "the")).tolist() == [1]

    @pytest.mark.parametrize("name", ["title", "body"])
    def test_text_without_spaces_is_found_by_its_parts(self, store: IndexStore, name: str) -> None:
        index = new_index(store)
        texts = ["我住在北京市中心", "データベースを作る", "ภาษาไทย", "서울에 산다", "中文abc混合"]
        written(index, *(put(str(n), **{name: text}) for n, text in enumerate(texts)))
        for place, part in enumerate(["北京", "ベース", "ไทย", "서울에", "abc"]):
            best = index.reader().rank(Lexical(name, part, all_words=True), 5)
            assert best.seq_nos.tolist() == [place + 1], part

    def test_equal_bm25_scores_come_by_age_at_the_cut_too(self, store: IndexStore) -> None:
        index = new_index(store)
        for first in range(0, 60, 20):
            written(index, *(put(str(n), body="salmon farm", lang="en") for n in range(first, first + 20)))
        reader = index.reader()
        for where in (None, Terms("lang", ("en",)), AllOf((Not(Terms("lang", ("de",))),))):
            for depth in (1, 5, 33, 60, 100):
                ranking = reader.rank(Lexical("body", "salmon"), depth, where)
                assert ranking.seq_nos.tolist() == list(range(1, 61))[:depth]
                assert ranking.total == 60

    def test_an_index_with_texts_alone_ranks(self, store: IndexStore) -> None:
        index = new_index(store, IndexSchema({"t": FieldSpec(FieldKind.TEXT, "english")}))
        written(index, Put(Document("1", b"{}", {"t": ["salmon", "farms"]})))
        assert index.reader().rank(Lexical("t", "farm"), 3).total == 1
