from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from termwise.storage.tantivy.batches import numbered, spelled_terms
from termwise.storage.tantivy.codec import (
    BUCKETS_PER_OCTAVE,
    decode_vectors,
    encode_vector,
    encode_vectors,
    escaped,
    parse_term,
    sparse_terms,
)
from termwise.storage.types import SMALLEST_WEIGHT, SparseVector, sparse_vector

tokens = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
weights = st.floats(SMALLEST_WEIGHT, float(np.finfo(np.float32).max), width=32)
vectors = st.dictionaries(tokens, weights, max_size=12).map(lambda held: sparse_vector(list(held), list(held.values())))


@given(st.lists(st.tuples(st.integers(0, 65535), vectors), max_size=4))
@example([(0, sparse_vector(["\0", "a", "\1"], [1, 2, 3])), (7, sparse_vector([], []))])
@example([(3, sparse_vector(["\0"], [1]))])
def test_vectors_come_back_as_they_went(held: list[tuple[int, SparseVector]]) -> None:
    assert decode_vectors(encode_vectors((number, encode_vector(vector)) for number, vector in held)) == held


@given(vectors)
def test_terms_carry_the_token_and_bound_the_weight(vector: SparseVector) -> None:
    for term, token, weight in zip(sparse_terms("0\0", vector), vector.tokens, vector.weights.tolist(), strict=True):
        prefix, _, rest = term.partition("\0")
        found, bucket = parse_term(rest)
        assert (prefix, found) == ("0", token)
        exponent = np.log2(weight) * BUCKETS_PER_OCTAVE
        assert bucket == pytest.approx(exponent - 0.5, abs=0.5 + 1e-9)


@given(st.lists(vectors, max_size=5))
@example([sparse_vector(["a b", "\1", "c\0"], [1, 2, 3]), sparse_vector([], []), sparse_vector(["\n", "é"], [1, 2])])
def test_spelled_terms_are_the_terms(held: list[SparseVector]) -> None:
    texts = spelled_terms("7\0", numbered([encode_vector(vector) for vector in held]))
    for text, vector in zip(texts, held, strict=True):
        tokens = tuple(map(escaped, vector.tokens))
        assert text == "".join(f"{term} " for term in sparse_terms("7\0", SparseVector(tokens, vector.weights)))


@given(st.lists(tokens, unique=True))
def test_escaped_tokens_stay_apart_and_whole(names: list[str]) -> None:
    written = [escaped(name) for name in names]
    assert len(set(written)) == len(names)
    assert not set("".join(written)) & set(" \t\n\f\r")
