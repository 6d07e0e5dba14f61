from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.errors import InvalidArgumentError
from termwise.server.indices.body import MAX_DEPTH, dump_json, is_deeper, parse_body

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=4))
def test_what_is_written_is_read_again(body: dict[str, Any]) -> None:
    assert parse_body(dump_json(body), "source") == body


def test_integers_keep_every_digit() -> None:
    body = parse_body(b'{"small": 9007199254740993, "large": 123456789012345678901234567890}', "source")
    assert body == {"small": 9007199254740993, "large": 123456789012345678901234567890}
    assert dump_json(body) == b'{"small":9007199254740993,"large":123456789012345678901234567890}'


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"12",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": [{"b": 1, "b": 1}]}',
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b'{"a": 1} {}',
        b"\xef\xbb\xbf{}",
        b"{" * 100_000,
        b'{"a":' * 1000 + b"1" + b"}" * 1000,
        b'{"a":' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
    ],
    ids=lambda source: repr(source[:20]),
)
def test_bad_bodies_are_refused_by_name(source: bytes) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_body(source, "document.source_json")
    assert caught.value.violations[0].field == "document.source_json"
    assert len(caught.value.message) < 300


def test_the_deepest_body_is_taken() -> None:
    source = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert dump_json(parse_body(source, "source")) == source


@given(json_values, st.integers(0, 6))
def test_depth_is_that_of_the_nesting(value: Any, levels: int) -> None:
    def depth(value: Any) -> int:
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        if isinstance(value, list):
            return 1 + max(map(depth, value), default=0)
        return 0

    assert is_deeper(value, levels) == (depth(value) > levels)


def test_a_key_that_stands_twice_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="'year'"):
        parse_body(json.dumps({"title": 1}).encode()[:-1] + b', "year": 1, "year": 2}', "source")
