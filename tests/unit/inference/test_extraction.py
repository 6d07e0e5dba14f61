from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.inference.extraction import SMALLEST_WEIGHT, Vocabulary, extract

_TOKENS = [f"{number * 7919 % 60:02d}-{number}" for number in range(60)]
_VOCABULARY = Vocabulary(_TOKENS)
# Few distinct values, so that ties are common.
_LOGITS = st.one_of(st.sampled_from([-3.0, -0.0, 0.0, 1e-45, 1e-38, 0.5, 1.0, 1.5, 20.0]), st.floats(-4, 30, width=32))


@given(
    logits=st.lists(_LOGITS, min_size=60, max_size=60),
    max_terms=st.integers(0, 10),
    min_weight=st.sampled_from([0.0, 0.25, 0.9]),
)
def test_extraction_equals_the_obvious_way(logits: list[float], max_terms: int, min_weight: float) -> None:
    row = np.array(logits, dtype=np.float32)
    ids, weights = extract(row, _VOCABULARY, max_terms=max_terms, min_weight=min_weight)

    expected = []
    for number, logit in enumerate(row):
        weight = np.float32(np.log1p(logit)) if logit > 0 else np.float32(0)
        if weight >= max(np.float32(min_weight), SMALLEST_WEIGHT):
            expected.append((-float(weight), _TOKENS[number], number))
    expected.sort()
    if max_terms:
        expected = expected[:max_terms]
    assert ids.tolist() == [number for _, _, number in expected]
    assert _VOCABULARY.tokens(ids) == tuple(token for _, token, _ in expected)
    assert all(
        math.isclose(actual, -negative, rel_tol=1e-6)
        for actual, (negative, _, _) in zip(weights.tolist(), expected, strict=True)
    )
    assert weights.dtype == np.float32
