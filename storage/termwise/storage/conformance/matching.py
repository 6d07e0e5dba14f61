# ruff: noqa: D101, D102, S101 - a test's name says what it shows; assertions are the purpose
"""Conditions match exactly the documents that they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from termwise.storage.conformance.reference import SCHEMA, Model, new_index, put, vector, written
from termwise.storage.errors import SchemaError
from termwise.storage.types import (
    AllOf,
    AnyOf,
    Condition,
    Delete,
    Document,
    Everything,
    Exists,
    FieldKind,
    Ids,
    Lexical,
    Not,
    Nothing,
    Operation,
    Put,
    Range,
    Sparse,
    Terms,
)

if TYPE_CHECKING:
    from termwise.storage.base import IndexStore

_VALUES: dict[str, list[Any]] = {
    "lang": ["en", "de", "", "e", "en-GB", "日本", "EN", "a\0b", "z" * 300],
    "a.dotted name": ["x", "a.b", 'say "hi" AND (x:y)*'],
    "year": [-(2**63), -1, 0, 1, 1999, 2**53 + 1, 2**63 - 1],
    "price": [-1e300, -0.5, 0.0, 5e-324, 0.1, 2.5, 1e300],
    "draft": [True, False],
    "made": [-1, 0, 1_700_000_000_123_456, 1_700_000_000_123_457],
}
_TOKENS = ["a", "b", "a\0", "a\x001", "\0", " "]
_WORDS = ["salmon", "river", "farm", "the", "北京"]
_KEYS = [str(number) for number in range(12)]

_vectors = st.dictionaries(st.sampled_from(_TOKENS), st.sampled_from([0.5, 1.0, 3.0]), max_size=3).map(vector)
_texts = st.lists(st.lists(st.sampled_from(_WORDS), max_size=4).map(" ".join), max_size=2)
_columns = st.fixed_dictionaries(
    {}, optional={name: st.lists(st.sampled_from(values), max_size=3) for name, values in _VALUES.items()}
)
_documents = st.builds(
    Document,
    id=st.sampled_from(_KEYS),
    source=st.just(b"{}"),
    texts=st.fixed_dictionaries({}, optional={"title": _texts, "body": _texts}),
    columns=_columns,
    sparse=st.fixed_dictionaries({}, optional={"vec": _vectors}),
    chunks=st.fixed_dictionaries({}, optional={"other": st.lists(_vectors, max_size=3)}),
)
operations: st.SearchStrategy[list[Operation]] = st.lists(
    st.one_of(st.builds(Put, _documents), st.builds(Put, _documents), st.builds(Delete, st.sampled_from(_KEYS))),
    max_size=12,
)


@st.composite
def _terms(draw: st.DrawFn) -> Terms:
    name = draw(st.sampled_from(sorted(_VALUES)))
    return Terms(name, tuple(draw(st.lists(st.sampled_from(_VALUES[name]), max_size=3))))


@st.composite
def _ranges(draw: st.DrawFn) -> Range:
    name = draw(st.sampled_from(sorted(_VALUES)))
    bounds = st.none() | st.sampled_from(_VALUES[name])
    return Range(name, draw(bounds), draw(bounds), draw(bounds), draw(bounds))


_words = st.lists(st.sampled_from(_WORDS), max_size=3).map(" ".join)
conditions: st.SearchStrategy[Condition] = st.recursive(
    st.one_of(
        st.just(Everything()),
        st.just(Nothing()),
        _terms(),
        _ranges(),
        st.builds(Exists, st.sampled_from(sorted(SCHEMA.fields))),
        st.builds(Ids, st.lists(st.sampled_from([*_KEYS, "none"]), max_size=3).map(tuple)),
        st.builds(Lexical, st.sampled_from(["title", "body"]), _words, st.booleans()),
        st.builds(Sparse, st.sampled_from(["vec", "other"]), _vectors),
    ),
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(AllOf, st.lists(inner, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple), st.integers(1, 3)),
    ),
    max_leaves=6,
)
many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class MatchingConformance:
    @many
    @given(batches=st.lists(operations, max_size=3), wanted=st.lists(conditions, min_size=1, max_size=8))
    @example(batches=[], wanted=[Everything()])
    def test_conditions_match_what_a_walk_matches(
        self, store: IndexStore, batches: list[list[Operation]], wanted: list[Condition]
    ) -> None:
        index, model = new_index(store), Model()
        for batch in batches:
            model.write(index, batch)
        reader = index.reader()
        for condition in wanted:
            assert reader.match(condition).tolist() == model.match(condition), condition
        store.drop(next(name for name in store.list() if store.open(name) is index))

    def test_ranges_leave_out_exclusive_bounds(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, *(put(str(number), year=number, price=number / 2) for number in range(5)))
        reader = index.reader()
        assert reader.match(Range("year", gt=1, lte=3)).tolist() == [3, 4]
        assert reader.match(Range("year", gte=1, lt=3)).tolist() == [2, 3]
        assert reader.match(Range("price", gt=0.5, lt=1.5)).tolist() == [3]
        assert reader.match(Range("price", gte=1)).tolist() == [3, 4, 5]
        assert reader.match(Range("year", gt=3, lt=2)).tolist() == []

    def test_one_value_must_meet_all_bounds(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, Put(Document("1", b"{}", columns={"year": [1, 9]})))
        assert index.reader().match(Range("year", gte=4, lte=5)).tolist() == []

    def test_integers_are_exact_beyond_doubles(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", year=2**53), put("2", year=2**53 + 1))
        reader = index.reader()
        assert reader.match(Terms("year", (2**53 + 1,))).tolist() == [2]
        assert reader.match(Range("year", gt=2**53)).tolist() == [2]
        assert reader.match(Terms("year", (2**70,))).tolist() == []
        assert reader.match(Range("year", gt=-(2**70), lt=2**70)).tolist() == [1, 2]

    def test_both_zeros_are_one_number(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", price=-0.0), put("2", price=0.0))
        assert index.reader().match(Terms("price", (0.0,))).tolist() == [1, 2]
        assert index.reader().match(Terms("price", (-0.0,))).tolist() == [1, 2]
        assert index.reader().match(Range("price", lt=0.0)).tolist() == []

    def test_empty_texts_and_vectors_exist(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", title="", vec={}), put("2"), Put(Document("3", b"{}", {"title": []}, {"lang": []})))
        for name in ("title", "vec"):
            assert index.reader().match(Exists(name)).tolist() == [1]
        assert index.reader().match(Exists("lang")).tolist() == []

    def test_keywords_are_whole_and_exact(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, put("1", lang="New York"), put("2", lang="new york"), put("3", lang="New"))
        assert index.reader().match(Terms("lang", ("New York",))).tolist() == [1]

    def test_many_values_and_ids_are_fine(self, store: IndexStore) -> None:
        index = new_index(store)
        written(index, *(put(str(number), lang=f"v{number}") for number in range(50)))
        reader = index.reader()
        assert len(reader.match(Terms("lang", tuple(f"v{number}" for number in range(10_000))))) == 50  # noqa: PLR2004
        assert len(reader.match(Ids(tuple(str(number) for number in range(10_000))))) == 50  # noqa: PLR2004

    @pytest.mark.parametrize(
        "condition",
        [
            Terms("nowhere", ("a",)),
            Terms("title", ("a",)),
            Terms("vec", ("a",)),
            Terms("year", ("a",)),
            Terms("draft", (1,)),
            Range("title", gte="a"),
            Range("vec", gte="a"),
            Range("lang", gte=1),
            Exists("nowhere"),
            Not(AllOf((AnyOf((Exists("nowhere"),)),))),
            Lexical("lang", "a"),
            Lexical("vec", "a"),
            Sparse("title", vector({"a": 1})),
        ],
    )
    def test_conditions_that_cannot_be_served_are_refused(self, store: IndexStore, condition: Condition) -> None:
        reader = new_index(store).reader()
        with pytest.raises(SchemaError):
            reader.match(condition)
        for leaf in (Sparse("vec", vector({"a": 1})), Lexical("title", "a")):
            with pytest.raises(SchemaError):
                reader.rank(leaf, 1, where=condition)

    def test_the_kinds_of_the_schema_are_all_here(self) -> None:
        assert {spec.kind for spec in SCHEMA.fields.values()} == set(FieldKind)
