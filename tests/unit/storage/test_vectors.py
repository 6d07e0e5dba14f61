"""Making sparse vectors: sorted, checked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.storage.types import MAX_TOKEN_BYTES, SMALLEST_WEIGHT, sparse_vector

few_weights = st.sampled_from([0.25, 0.5, 1.0, 1.5, SMALLEST_WEIGHT, float(np.finfo(np.float32).max)])
any_weights = st.one_of(few_weights, st.floats(0.01, 100))
given_tokens = st.dictionaries(st.text("aäb\0", min_size=1, max_size=3), any_weights, max_size=8)


@given(given_tokens, st.booleans())
def test_vectors_are_sorted_by_weight_then_token(weights: dict[str, float], rising: bool) -> None:
    pairs = sorted(weights.items(), key=lambda pair: pair[1], reverse=not rising)
    made = sparse_vector([token for token, _ in pairs], [weight for _, weight in pairs])
    expected = sorted(((float(np.float32(weight)), token) for token, weight in pairs), key=lambda p: (-p[0], p[1]))
    assert list(zip(made.weights.tolist(), made.tokens, strict=True)) == expected
    assert made.weights.dtype == np.float32
    assert not made.weights.flags.writeable


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e39, SMALLEST_WEIGHT / 2])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_weights_that_cannot_be_kept_are_named(weight: float, place: int) -> None:
    weights = [3.0, 2.0, 1.0]
    weights[place] = weight
    with pytest.raises(ValueError, match=f"Token 't{place}' weighs"):
        sparse_vector(["t0", "t1", "t2"], weights)


@pytest.mark.parametrize("token", ["", "x" * (MAX_TOKEN_BYTES + 1), "ü" * (MAX_TOKEN_BYTES // 2 + 1)])
def test_tokens_that_cannot_be_kept_are_refused(token: str) -> None:
    with pytest.raises(ValueError, match="tokens are 1 to"):
        sparse_vector(["a", token], [2.0, 1.0])


def test_the_longest_token_is_kept_and_a_token_stands_once() -> None:
    longest = "x" * MAX_TOKEN_BYTES
    assert sparse_vector([longest, "ü" * (MAX_TOKEN_BYTES // 2)], [1, 2]).tokens[1] == longest
    with pytest.raises(ValueError, match="'a' stands more than once"):
        sparse_vector(["a", "b", "a"], [3, 2, 1])


def test_a_given_array_stays_as_it_is() -> None:
    weights = np.array([1.0, 2.0], np.float32)
    sparse_vector(["a", "b"], weights)
    assert weights.tolist() == [1.0, 2.0]
    assert weights.flags.writeable
