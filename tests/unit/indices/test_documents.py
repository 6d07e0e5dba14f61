from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.errors import InvalidArgumentError
from termwise.server.indices.body import dump_json
from termwise.server.indices.documents import Paths, check_id, parse_document
from termwise.server.indices.mapping import FieldMapping, Mapping
from termwise.storage.types import Document, FieldKind, SparseVector, sparse_vector

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYWORD = FieldMapping(FieldKind.KEYWORD)
MAPPING = Mapping(
    {
        "title": FieldMapping(FieldKind.TEXT, fields={"raw": KEYWORD}),
        "author.name": KEYWORD,
        "year": FieldMapping(FieldKind.INTEGER),
        "price": FieldMapping(FieldKind.NUMBER),
        "draft": FieldMapping(FieldKind.BOOLEAN),
        "published": FieldMapping(FieldKind.DATE),
        "vector": FieldMapping(FieldKind.SPARSE_VECTOR),
    }
)


def parse(body: dict[str, Any], mapping: Mapping = MAPPING, sparse: dict[str, SparseVector] | None = None) -> Document:
    return parse_document(mapping, "1", dump_json(body), body, sparse or {}, Paths())


def test_each_kind_of_field() -> None:
    document = parse(
        {
            "title": ["One", "Two"],
            "author": [{"name": "Ann"}, {"name": ["Bob", None, "Cy"]}],
            "year": "1999",
            "price": 2,
            "draft": "true",
            "published": "1970-01-01T00:00:01Z",
            "other": {"stays": "where it is"},
            "vector": {"b": 1.5, "a": 2, "none": None, "text": "0.5"},
        }
    )
    assert document.texts == {"title": ["One", "Two"]}
    assert document.columns == {
        "title.raw": ["One", "Two"],
        "author.name": ["Ann", "Bob", "Cy"],
        "year": [1999],
        "price": [2.0],
        "draft": [True],
        "published": [1_000_000],
    }
    assert document.sparse == {"vector": sparse_vector(["a", "b", "text"], [2, 1.5, 0.5])}
    assert b"where it is" in document.source


def test_null_and_empty_arrays_are_no_value() -> None:
    document = parse({"title": None, "year": [], "price": [None, [None]], "author": None, "vector": [None]})
    assert (document.texts, document.columns, document.sparse) == ({}, {}, {})


def test_vectors_of_an_array_are_joined_by_the_largest_weight() -> None:
    document = parse({"vector": [{"a": 1, "b": 5}, {"a": 3}, {}]})
    assert document.sparse == {"vector": sparse_vector(["b", "a"], [5, 3])}
    assert parse({"vector": {}}).sparse == {"vector": sparse_vector([], [])}


def test_vectors_beside_the_body() -> None:
    vector = sparse_vector(["a"], [1])
    assert parse({}, sparse={"vector": vector}).sparse == {"vector": vector}
    with pytest.raises(InvalidArgumentError) as caught:
        parse({"vector": {"a": 1}}, sparse={"vector": vector})
    assert caught.value.violations[0].field == 'document.sparse_vectors["vector"]'
    with pytest.raises(InvalidArgumentError, match='did you mean "vector"') as caught:
        parse({}, sparse={"vectr": vector})
    assert caught.value.violations[0].field == 'document.sparse_vectors["vectr"]'


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"title": 5}, "title"),
        ({"title": {"raw": "x"}}, "title"),
        ({"title.raw": "x"}, "title.raw"),
        ({"title": "x" * 32_767}, "title"),
        ({"author": "Ann"}, "author"),
        ({"author": [{"name": "Ann"}, 5]}, "author"),
        ({"author": {"name": {"first": "Ann"}}}, "author.name"),
        ({"author.name": {"first": "Ann"}}, "author.name"),
        ({"author": {"name.first": "Ann"}}, "author.name.first"),
        ({"year": 1.5}, "year"),
        ({"year": 2**63}, "year"),
        ({"year": [1, "x"]}, "year"),
        ({"price": "a lot"}, "price"),
        ({"draft": 1}, "draft"),
        ({"published": "soon"}, "published"),
        ({"vector": "text"}, "vector"),
        ({"vector": 1}, "vector"),
        ({"vector": {"a": 0}}, "vector"),
        ({"vector": {"a": -1}}, "vector"),
        ({"vector": {"a": 1e-40}}, "vector"),
        ({"vector": {"a": 1e39}}, "vector"),
        ({"vector": {"a": "x"}}, "vector"),
        ({"vector": {"a": [1]}}, "vector"),
        ({"vector": {"": 1}}, "vector"),
        ({"vector": {"x" * 70_000: 1}}, "vector"),
        ({"vector.a": 1}, "vector.a"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_conflicts_name_the_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(body)
    assert [violation.field for violation in caught.value.violations] == [f"document.source.{field}"]
    assert len(caught.value.message) < 300


def test_a_strict_mapping_takes_no_other_fields() -> None:
    strict = Mapping(MAPPING.properties, strict=True)
    parse({"title": "x", "author": {"name": "Ann"}}, strict)
    for body, field in (
        ({"titel": "x"}, "titel"),
        ({"titel": None}, "titel"),
        ({"author": {"age": 5}}, "author.age"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            parse(body, strict)
        assert caught.value.violations[0].field == f"document.source.{field}"


keys = st.sampled_from(["a", "b", "c", "a.b", "b.c"])
bodies = st.dictionaries(
    keys,
    st.recursive(
        st.none() | st.sampled_from(["x", "y"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)
PATHS = ["a", "b", "a.b", "b.c", "a.b.c", "c.a"]
CHOICES = [
    chosen
    for size in range(4)
    for chosen in itertools.combinations(PATHS, size)
    if not any(two.startswith(f"{one}.") for one in chosen for two in chosen)
]


def nodes_of(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Give every node of a body with its full path; arrays, and what is null in them, as None."""
    if isinstance(value, list):
        yield path, None
        for each in value:
            yield from nodes_of(each, path)
        return
    yield path, value
    if isinstance(value, dict):
        for key, child in value.items():
            yield from nodes_of(child, f"{path}.{key}" if path else key)


def slow_columns(fields: tuple[str, ...], body: dict[str, Any], *, strict: bool) -> dict[str, list[Any]] | None:
    """Look at each node on its own; None where one of them conflicts."""
    columns: dict[str, list[Any]] = {}
    for path, value in list(nodes_of(body, ""))[1:]:
        below = any(path.startswith(f"{field}.") for field in fields)
        above = any(field.startswith(f"{path}.") for field in fields)
        scalar = not isinstance(value, dict)
        conflict = below or (path in fields and not scalar) or (above and scalar and value is not None)
        if conflict or (strict and path not in fields and not above):
            return None
        if path in fields and value is not None:
            columns.setdefault(path, []).append(value)
    return columns


@given(st.sampled_from(CHOICES), bodies, st.booleans())
def test_dotted_paths_find_what_a_slow_walk_finds(fields: tuple[str, ...], body: dict[str, Any], strict: bool) -> None:
    mapping = Mapping(dict.fromkeys(fields, KEYWORD), strict=strict)
    try:
        found: Any = parse(body, mapping).columns
    except InvalidArgumentError:
        found = None
    assert found == slow_columns(fields, body, strict=strict)


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.floats(1e-30, 1e30), max_size=6))
def test_vectors_hold_float32_weights_heaviest_first(weights: dict[str, float]) -> None:
    vector = parse({"vector": weights}).sparse["vector"]
    assert dict(zip(vector.tokens, vector.weights.tolist(), strict=True)) == {
        token: float(np.float32(weight)) for token, weight in weights.items()
    }
    assert list(vector.weights) == sorted(vector.weights, reverse=True)


def test_ids() -> None:
    assert check_id("é" * 256, "document.id") == "é" * 256
    for bad in ("", "é" * 257, "x" * 10_000):
        with pytest.raises(InvalidArgumentError) as caught:
            check_id(bad, "document.id")
        assert caught.value.violations[0].field == "document.id"
        assert len(caught.value.message) < 200
