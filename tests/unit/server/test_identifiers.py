from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.errors import InvalidArgumentError
from termwise.server.identifiers import check_identifier

ALLOWED = "abcdefghijklmnopqrstuvwxyz0123456789._-"


@pytest.mark.parametrize("value", [".splade_tiny", "a", "for-search.2", "x" * 255])
def test_names(value: str) -> None:
    assert check_identifier(value, "model_id") == value


@pytest.mark.parametrize("value", ["", "A", "a b", "x" * 256, "a/b", "..", ".", "ä", "a\n", "a\x00"])
def test_what_is_no_name_is_refused_by_field(value: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_identifier(value, "model_id")
    assert caught.value.violations[0].field == "model_id"
    assert len(caught.value.message) < 300


@given(st.text(max_size=300))
def test_exactly_the_allowed_characters(value: str) -> None:
    good = 1 <= len(value) <= 255 and all(c in ALLOWED for c in value) and value not in {".", ".."}
    try:
        assert check_identifier(value, "f") == value
    except InvalidArgumentError:
        assert not good
    else:
        assert good
