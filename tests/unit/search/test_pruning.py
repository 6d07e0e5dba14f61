"""Pruning against figures computed by hand, and against the rule written out token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.search.pruning import kept_tokens, prune
from termwise.server.search.query import PruningConfig
from termwise.storage.types import TokenStatistics, sparse_vector


def statistics(documents: int, tokens: int, postings: int, frequencies: list[int]) -> TokenStatistics:
    return TokenStatistics(documents, tokens, postings, np.array(frequencies, dtype=np.int64))


# 100 documents, 50 distinct tokens, 500 postings: a token is in .1 of the documents on average (500 / 100 / 50), so it
# is frequent from df = 50 on with the default ratio of 5 (50 / 100 = 5 * .1, and "less" is strict).
FIELD = (100, 50, 500)


@pytest.mark.parametrize(
    ("frequency", "weight", "kept"),
    [
        (49, 0.01, True),  # light, but rare
        (51, 0.01, False),  # frequent and light
        (51, 0.41, True),  # frequent, but heavy: over .4 of the heaviest
        (51, 0.39, False),
        (0, 0.9, False),  # in no document
    ],
)
def test_a_token_is_left_out_that_is_frequent_and_light(frequency: int, weight: float, kept: bool) -> None:
    weights = np.array([1.0, weight], dtype=np.float32)
    keep = kept_tokens(weights, statistics(*FIELD, [1, frequency]), PruningConfig())
    assert keep.tolist() == [True, kept]
    inverse = kept_tokens(weights, statistics(*FIELD, [1, frequency]), PruningConfig(only_pruned=True))
    assert inverse.tolist() == [False, not kept]


def test_both_comparisons_are_strict() -> None:
    # Figures that float32 holds: avg = 64 / 8 / 16 = .5, so a ratio of 2 puts the limit at 1; .5 of 1 is .5.
    config = PruningConfig(frequency_ratio=2.0, weight_ratio=0.5)
    weights = np.array([1.0, 0.5], dtype=np.float32)
    assert kept_tokens(weights, statistics(8, 16, 64, [8, 8]), config).tolist() == [True, False]
    assert kept_tokens(weights, statistics(8, 16, 64, [8, 7]), config).tolist() == [True, True]


@pytest.mark.parametrize("only_pruned", [False, True])
def test_a_field_without_tokens_matches_nothing(only_pruned: bool) -> None:
    vector = sparse_vector(["a", "b"], [1, 2])
    config = PruningConfig(only_pruned=only_pruned)
    assert len(prune(vector, statistics(0, 0, 0, [0, 0]), config)) == 0
    assert len(prune(vector, statistics(3, 0, 0, [0, 0]), config)) == 0


def test_what_is_left_stays_a_sorted_vector() -> None:
    vector = sparse_vector(["a", "b", "c"], [0.1, 2, 1])
    left = prune(vector, statistics(*FIELD, [5, 5, 90]), PruningConfig(weight_ratio=0.1))
    assert left == sparse_vector(["b", "c"], [2, 1])
    dropped = prune(vector, statistics(*FIELD, [5, 5, 90]), PruningConfig(weight_ratio=0.9, only_pruned=True))
    assert dropped.tokens == ("a",)


@given(
    st.lists(st.tuples(st.floats(0.125, 5, width=32), st.integers(0, 200)), min_size=1, max_size=10),
    st.integers(200, 400),
    st.integers(1, 1_000),
    st.integers(0, 50_000),
    st.floats(1, 100, width=32),
    st.floats(0, 1, width=32),
    st.booleans(),
)
def test_the_rule_written_out_gives_the_same(
    tokens: list[tuple[float, int]],
    documents: int,
    distinct: int,
    postings: int,
    ratio: float,
    light: float,
    only_pruned: bool,
) -> None:
    single = np.float32
    best = max(single(weight) for weight, _ in tokens)
    average = single(postings) / single(documents) / single(distinct)
    expected = []
    for weight, frequency in tokens:
        rare = single(frequency) / single(documents) < single(ratio) * average
        heavy = single(weight) > single(light) * best
        keep = frequency > 0 and bool(rare or heavy)
        expected.append(average != 0 and keep != only_pruned)
    got = kept_tokens(
        np.array([weight for weight, _ in tokens], dtype=np.float32),
        statistics(documents, distinct, postings, [frequency for _, frequency in tokens]),
        PruningConfig(ratio, light, only_pruned),
    )
    assert got.tolist() == expected
