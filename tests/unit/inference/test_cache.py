"""The cache of expansions against a list that is searched from end to end."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.inference.base import Expansion, Side
from termwise.server.inference.cache import ExpansionCache, Key, cache_key, entry_bytes


def expansion(terms: int) -> Expansion:
    ids = np.arange(terms, dtype=np.int64)
    return Expansion(("word",) * terms, ids, np.ones(terms, dtype=np.float32), terms, truncated=False)


class SlowCache:
    """Expansions in a list, the one asked for last at the end."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: list[tuple[Key, Expansion]] = []

    def get(self, key: Key) -> Expansion | None:
        found = [entry for entry in self.entries if entry[0] == key]
        self.entries = [entry for entry in self.entries if entry[0] != key] + found
        return found[0][1] if found else None

    def put(self, key: Key, value: Expansion) -> None:
        if entry_bytes(key, value) <= self.size:
            self.entries = [*(entry for entry in self.entries if entry[0] != key), (key, value)]
        while sum(entry_bytes(*entry) for entry in self.entries) > self.size:
            del self.entries[0]


_KEYS = st.integers(0, 7).map(lambda number: cache_key(f"text {number}", list(Side)[number % 2]))
_STEP = st.one_of(
    st.tuples(st.just("get"), _KEYS, st.just(0)),
    st.tuples(st.just("put"), _KEYS, st.integers(0, 60)),
    st.tuples(st.just("clear"), _KEYS, st.just(0)),
)


@given(size=st.integers(0, 6000), steps=st.lists(_STEP, max_size=60))
def test_it_keeps_what_was_asked_for_last(size: int, steps: list[tuple[str, Key, int]]) -> None:
    cache, slow = ExpansionCache(size), SlowCache(size)
    for step, key, terms in steps:
        if step == "get":
            assert cache.get(key) is slow.get(key)
        elif step == "put":
            value = expansion(terms)
            cache.put(key, value)
            slow.put(key, value)
        else:
            cache.clear()
            slow.entries.clear()
        assert len(cache) == len(slow.entries)
        assert cache.used_bytes == sum(entry_bytes(*entry) for entry in slow.entries) <= size
    for key, value in slow.entries:
        assert cache.get(key) is value


@given(left=st.text(max_size=200), right=st.text(max_size=200))
def test_different_texts_and_sides_have_different_keys(left: str, right: str) -> None:
    assert (cache_key(left, Side.QUERY) == cache_key(right, Side.QUERY)) == (left == right)
    assert cache_key(left, Side.QUERY) != cache_key(left, Side.DOCUMENT)


@pytest.mark.parametrize("text", ["a text of some length, as queries have", "\U0001f41f" * 50, "long " * 100])
def test_it_takes_no_more_memory_than_it_says(text: str) -> None:
    size = 2_000_000
    cache = ExpansionCache(size)
    for terms in (0, 5, 150):
        cache.clear()
        tracemalloc.start()
        for number in range(5_000):
            cache.put(cache_key(f"{text}, {number}", Side.QUERY), expansion(terms))
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 0.5 * size < taken < 1.1 * size, terms


def test_a_part_of_an_array_counts_as_the_whole_that_it_keeps() -> None:
    whole = expansion(1000)
    part = Expansion(whole.tokens[:5], whole.token_ids[:5], whole.weights[:5], 5, truncated=False)
    assert entry_bytes((Side.QUERY, "a text"), part) > 12_000
