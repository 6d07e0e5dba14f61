from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.ingest.paths import ABSENT, get_path, remove_path, set_path

keys = st.sampled_from(["a", "b", "c", "a.b", "b.c"])
bodies = st.dictionaries(
    keys,
    st.recursive(st.none() | st.integers(0, 9), lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=6),
    max_size=3,
)
paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join)


def slow_values(body: dict[str, Any], path: str) -> list[Any]:
    """Give every value whose keys, joined by dots, are the path."""
    found = []
    for key, value in body.items():
        if key == path:
            found.append(value)
        if isinstance(value, dict) and path.startswith(f"{key}."):
            found += slow_values(value, path[len(key) + 1 :])
    return found


@given(bodies, paths)
def test_a_value_is_found_where_one_is(body: dict[str, Any], path: str) -> None:
    values = slow_values(body, path)
    found = get_path(body, path)
    assert any(found is value for value in values) if values else found is ABSENT


@given(bodies, paths)
def test_what_is_set_is_found(body: dict[str, Any], path: str) -> None:
    before = copy.deepcopy(body)
    value = object()
    try:
        set_path(body, path, value)
    except ValueError:
        assert body == before
        assert not slow_values(body, path)
    else:
        assert get_path(body, path) is value
        if not slow_values(before, path):
            assert remove_path(body, path) is value
            assert not slow_values(body, path)


@given(bodies, paths)
def test_removing_takes_one_value(body: dict[str, Any], path: str) -> None:
    count = len(slow_values(body, path))
    removed = remove_path(body, path)
    assert (removed is ABSENT) == (count == 0)
    assert len(slow_values(body, path)) == max(0, count - 1)


def test_objects_on_the_way_are_made() -> None:
    body: dict[str, Any] = {"a": None}
    set_path(body, "a.b.c", 1)
    assert body == {"a": {"b": {"c": 1}}}
    set_path(body, "a.b.d", 2)
    assert body == {"a": {"b": {"c": 1, "d": 2}}}


def test_nothing_is_set_below_a_value() -> None:
    body: dict[str, Any] = {"a": {"b": "text"}, "c": [{"d": 1}]}
    with pytest.raises(ValueError, match=r'"a\.b\.c" cannot be set, since "a\.b" is no object'):
        set_path(body, "a.b.c", 1)
    with pytest.raises(ValueError, match='"c" is no object'):
        set_path(body, "c.d", 1)
    assert body == {"a": {"b": "text"}, "c": [{"d": 1}]}
