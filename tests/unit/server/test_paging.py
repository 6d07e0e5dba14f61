from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.errors import InvalidArgumentError
from termwise.server.rpc.paging import after_token, page, page_size, page_token

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=255)


@given(NAMES)
def test_a_token_leads_back_to_its_id(name: str) -> None:
    assert after_token(page_token(name, "ListIndices"), "ListIndices") == name


@given(NAMES)
def test_a_token_of_another_call_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        after_token(page_token(name, "ListIndices"), "ListPipelines")
    assert caught.value.violations[0].field == "page_token"


@given(st.text(min_size=1, max_size=40))
def test_foreign_text_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError):
        after_token(token, "ListIndices")


def test_no_token_is_the_first_page() -> None:
    assert after_token("", "ListIndices") == ""


@given(st.integers(-(2**31), 2**31 - 1))
def test_page_sizes(value: int) -> None:
    if 0 <= value <= 1_000:
        assert page_size(value) == (value or 100)
    else:
        with pytest.raises(InvalidArgumentError) as caught:
            page_size(value)
        assert caught.value.violations[0].field == "page_size"


@given(st.sets(NAMES, max_size=30), st.integers(1, 7))
def test_pages_put_together_are_the_list(names: set[str], size: int) -> None:
    everything = sorted(names)
    read: list[str] = []
    token = ""
    for _ in range(len(everything) + 1):
        after = after_token(token, "L")
        found = [name for name in everything if name > after][: size + 1]
        items, token = page(found, size, "L", str)
        assert len(items) <= size
        read += items
        if not token:
            break
    assert read == everything
    assert not token
