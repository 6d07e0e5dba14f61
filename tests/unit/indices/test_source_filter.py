from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.indices.source_filter import SourceFilter, matches

keys = st.sampled_from(["a", "b", "ab", "a.b", ""])
bodies = st.dictionaries(
    keys,
    st.recursive(
        st.none() | st.integers(0, 3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=3,
)
patterns = st.text("ab.*", max_size=5)


def slow_matches(pattern: str, path: str) -> bool:
    """A pattern names a path where it fits the path up to some dot, or all of it."""
    expression = re.compile("".join(".*" if each == "*" else re.escape(each) for each in pattern), re.DOTALL)
    ends = [place for place, each in enumerate(path) if each == "."] + [len(path)]
    return any(expression.fullmatch(path[:end]) for end in ends)


def slow_apply(body: dict[str, Any], chosen: SourceFilter) -> dict[str, Any]:
    """Look at each leaf (a scalar, or an empty container) on its own; drop containers that lose everything."""

    def keep(path: str) -> bool:
        included = not chosen.includes or any(slow_matches(pattern, path) for pattern in chosen.includes)
        return included and not any(slow_matches(pattern, path) for pattern in chosen.excludes)

    def walk(value: Any, path: str) -> list[Any]:
        """Give what is left of a value: a list of it, or an empty one."""
        if isinstance(value, dict) and value:
            left = {key: kept[0] for key, child in value.items() if (kept := walk(child, f"{path}.{key}"))}
            return [left] if left else []
        if isinstance(value, list) and value:
            elements = [kept[0] for child in value if (kept := walk(child, path))]
            return [elements] if elements else []
        return [value] if keep(path) else []

    return {key: kept[0] for key, child in body.items() if (kept := walk(child, key))}


@given(bodies, st.lists(patterns, max_size=2), st.lists(patterns, max_size=2))
def test_a_filter_keeps_what_a_slow_one_keeps(body: dict[str, Any], includes: list[str], excludes: list[str]) -> None:
    chosen = SourceFilter(includes, excludes)
    assert chosen.apply(body) == (slow_apply(body, chosen) if chosen else body)


@given(patterns, st.text("ab.", max_size=8))
def test_patterns_match_as_a_regular_expression_does(pattern: str, path: str) -> None:
    assert matches(pattern, path) == slow_matches(pattern, path)


@pytest.mark.parametrize(
    ("includes", "excludes", "expected"),
    [
        (["title"], [], {"title": "t"}),
        (["author"], [], {"author": {"name": "n", "mail": "m"}}),
        (["author.*"], ["author.mail"], {"author": {"name": "n"}}),
        (["*.name"], [], {"author": {"name": "n"}, "parts": [{"name": 1}, {"name": 2}]}),
        ([], ["parts", "author"], {"title": "t"}),
        (["nothing"], [], {}),
        (["parts.page"], [], {"parts": [{"page": 3}]}),
    ],
)
def test_parts_of_a_body(includes: list[str], excludes: list[str], expected: dict[str, Any]) -> None:
    body = {"title": "t", "author": {"name": "n", "mail": "m"}, "parts": [{"name": 1}, {"name": 2, "page": 3}]}
    assert SourceFilter(includes, excludes).apply(body) == expected


def test_an_empty_filter_gives_the_text_as_it_is() -> None:
    source = b'{ "b":1,  "a" : 1e0 }'
    assert SourceFilter().apply_to_source(source) == source
    assert json.loads(SourceFilter(["b"]).apply_to_source(source)) == {"b": 1}


def test_a_pattern_of_many_stars_does_not_hang() -> None:
    began = time.process_time()
    assert not matches("*a" * 200 + "*b", "a" * 20_000)
    assert time.process_time() - began < 1
