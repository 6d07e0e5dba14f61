from __future__ import annotations

import datetime as dt
import json
import math
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from termwise.client import Document, InvalidArgumentError, SparseVector
from termwise.client.messages import document_message
from termwise.client.parsing import parse, to_plain
from termwise.v1 import indices_pb2, pipeline_pb2, search_pb2

WORDS = st.text(min_size=1, max_size=8)
BOOST = st.floats(0, 100, width=32)
VALUES = st.text(max_size=5) | st.floats(-1e6, 1e6) | st.booleans()
LEAVES = st.one_of(
    st.fixed_dictionaries({"match": st.fixed_dictionaries({"field": WORDS, "text": WORDS}, optional={"boost": BOOST})}),
    st.fixed_dictionaries({"term": st.fixed_dictionaries({"field": WORDS, "value": VALUES})}),
    st.fixed_dictionaries({"terms": st.fixed_dictionaries({"field": WORDS, "values": st.lists(VALUES, min_size=1)})}),
    st.fixed_dictionaries({"range": st.fixed_dictionaries({"field": WORDS, "gte": st.integers(-999, 999)})}),
    st.fixed_dictionaries({"ids": st.fixed_dictionaries({"ids": st.lists(WORDS, min_size=1)})}),
)
QUERIES = st.recursive(
    LEAVES,
    lambda inner: st.fixed_dictionaries(
        {
            "boolean": st.dictionaries(
                st.sampled_from(["must", "should", "filter", "must_not"]), st.lists(inner, min_size=1)
            )
        }
    ),
    max_leaves=8,
)


@given(QUERIES)
def test_a_dict_means_what_its_proto3_json_means(query: dict[str, Any]) -> None:
    message = parse(query, search_pb2.Query, "query")

    assert message == json_format.Parse(json.dumps(query), search_pb2.Query())
    assert parse(to_plain(message), search_pb2.Query, "query") == message
    assert parse(json_format.MessageToDict(message), search_pb2.Query, "query") == message, "camelCase works too"
    assert parse(message, search_pb2.Query, "query") is message


@pytest.mark.parametrize(
    ("query", "path", "says"),
    [
        ({"matches": {}}, "query", 'there is no "matches"; did you mean "match"?'),
        ({"boolean": {"should": [{}, {"match": {"fields": "x"}}]}}, "query.boolean.should[1].match", '"fields"'),
        ({"match": {"field": 3}}, "query.match.field", "expected a string, got int"),
        ({"match": {"operator": "OR"}}, "query.match.operator", 'did you mean "OPERATOR_OR"?'),
        ({"match": []}, "query.match", "expected an object, got list"),
        ({"match": "salmon"}, "query.match", "expected an object, got str"),
        ({"boolean": {"should": {"match": {}}}}, "query.boolean.should", "expected a list, got dict"),
        ({"boolean": {"should": [3]}}, "query.boolean.should[0]", "expected an object, got int"),
        ({"ids": {"ids": "12"}}, "query.ids.ids", "expected a list, got str"),
        ({"match": {"boost": [1]}}, "query.match.boost", "expected a single value"),
        ({"match": {"boost": "much"}}, "query", "much"),
        ({"match": {}, "term": {}}, "query", "multiple"),
        ({"term": {"value": object()}}, "query.term.value", "expected a JSON value, got object"),
        ({3: 4}, "query", 'there is no "3"'),
        ([], "query", "expected an object, got list"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(query: Any, path: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(query, search_pb2.Query, "query")

    assert caught.value.field_violations[0].field == path
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_nesting_beyond_what_protobuf_parses_is_refused_before_sending() -> None:
    query: dict[str, Any] = {"match_all": {}}
    for _ in range(1000):
        query = {"boolean": {"must": [query]}}

    with pytest.raises(InvalidArgumentError, match="nested deeper than"):
        parse(query, search_pb2.Query, "query")


def test_python_values_beside_jsons_own_are_understood() -> None:
    moment = dt.datetime(2024, 5, 1, 12, 0, tzinfo=dt.UTC)
    ranged = parse({"range": {"field": "day", "gte": moment}}, search_pb2.Query, "query")
    naive = parse({"range": {"field": "day", "gte": moment.replace(tzinfo=None)}}, search_pb2.Query, "query")
    vector = parse(
        {"sparse_vector": {"field": "v", "vector": SparseVector(("a", "b"), (2.0, 1.0))}}, search_pb2.Query, "query"
    )
    nested = parse({"boolean": {"must": (search_pb2.Query(ids={"ids": ["1"]}),)}}, search_pb2.Query, "query")

    assert ranged.range.gte.string_value == naive.range.gte.string_value == "2024-05-01T12:00:00Z"
    assert list(vector.sparse_vector.vector.tokens) == ["a", "b"]
    assert nested.boolean.must[0].ids.ids == ["1"]


def test_maps_are_checked_too() -> None:
    mapping = {"properties": {"title": {"text": {"analyzer": "english"}}, "n": {"integer": {}}}}
    assert parse(mapping, indices_pb2.Mapping, "mapping").properties["title"].text.analyzer == "english"

    with pytest.raises(InvalidArgumentError, match=r'mapping\.properties\["n"\]: there is no "int"'):
        parse({"properties": {"n": {"int": {}}}}, indices_pb2.Mapping, "mapping")
    with pytest.raises(InvalidArgumentError, match=r"mapping\.properties: expected an object, got list"):
        parse({"properties": []}, indices_pb2.Mapping, "mapping")


def test_a_value_of_any_json_type_passes_through() -> None:
    pipeline = {"processors": [{"set": {"field": "a", "value": {"b": [1, None, "x"]}}}]}

    message = parse(pipeline, pipeline_pb2.IngestPipeline, "pipeline")

    assert to_plain(message) == {"processors": [{"set": {"field": "a", "value": {"b": [1.0, None, "x"]}}}]}


JSON_OBJECTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@given(JSON_OBJECTS)
def test_a_body_travels_as_json_text_with_every_digit(body: dict[str, Any]) -> None:
    as_document = document_message(Document(body, "1"), "document")
    as_dict = document_message({"id": "1", "source": body}, "document")

    assert json.loads(as_document.source_json) == body
    assert as_document == as_dict


def test_json_text_travels_as_it_is() -> None:
    assert document_message(Document('{"n":  12345678901234567890}'), "d").source_json == '{"n":  12345678901234567890}'


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (Document({"x": math.nan}), "d.source"),
        (Document({"x": object()}), "d.source"),
        (Document({"x": "\ud800"}), "d.source"),
        (Document([1]), "d.source"),  # type: ignore[arg-type]
        (Document({}, 7), "d.id"),  # type: ignore[arg-type]
        (Document({}, "1", {"v": {"a": "heavy"}}), 'd.sparse_vectors["v"]'),  # type: ignore[dict-item]
        (Document({}, "1", {"v": ["a"]}), 'd.sparse_vectors["v"]'),  # type: ignore[dict-item]
        ({"id": "1", "body": {}}, "d"),
        ({"id": "1", "source": [1]}, "d.source"),
        ("text", "d"),
    ],
)
def test_what_is_no_document_is_refused_by_field(document: Any, path: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        document_message(document, "d")

    assert caught.value.field_violations[0].field == path
