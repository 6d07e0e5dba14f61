from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from termwise.storage.tantivy.batches import numbered, spelled_terms
from termwise.storage.tantivy.codec import (
    BUCKETS_PER_OCTAVE,
    buckets_of,
    decode_vectors,
    encode_vector,
    encode_vectors,
    escaped,
    parse_term,
    sparse_terms,
    times_counted,
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
        assert (prefix, found, times_counted(bucket)) == ("0", token, 1)
        exponent = np.log2(weight) * BUCKETS_PER_OCTAVE
        assert int(bucket) == pytest.approx(exponent - 0.5, abs=0.5 + 1e-9)


@given(st.lists(vectors, max_size=5))
@example([sparse_vector(["a b", "\1", "c\0"], [1, 2, 3]), sparse_vector([], []), sparse_vector(["\n", "é"], [1, 2])])
def test_spelled_terms_are_the_terms(held: list[SparseVector]) -> None:
    ones = np.ones(len(held), np.int64)
    texts = spelled_terms("7\0", numbered([encode_vector(vector) for vector in held]), ones)
    for text, vector in zip(texts, held, strict=True):
        tokens = tuple(map(escaped, vector.tokens))
        assert text == "".join(f"{term} " for term in sparse_terms("7\0", SparseVector(tokens, vector.weights)))


@given(st.lists(st.lists(vectors, min_size=1, max_size=6), max_size=4))
def test_terms_of_chunks_bound_and_count_them(held: list[list[SparseVector]]) -> None:
    sizes = np.array([len(each) for each in held], np.int64)
    texts = spelled_terms("7\0", numbered([encode_vector(vector) for each in held for vector in each]), sizes)
    for text, each in zip(texts, held, strict=True):
        found: dict[str, list[str]] = {}
        for term in text.split(" ")[:-1]:
            token, ending = parse_term(term.removeprefix("7\0"))
            found.setdefault(token, []).append(ending)
        expected = {}
        for token in {token for vector in each for token in vector.tokens}:
            weights = [dict(zip(vector.tokens, vector.weights, strict=True)).get(token) for vector in each]
            present = np.array([weight for weight in weights if weight is not None], np.float32)
            expected[escaped(token)] = len(present), int(buckets_of(present).max())
        counted = {token: (sum(map(times_counted, endings)), int(endings[0])) for token, endings in found.items()}
        assert counted == expected


@given(st.lists(tokens, unique=True))
def test_escaped_tokens_stay_apart_and_whole(names: list[str]) -> None:
    written = [escaped(name) for name in names]
    assert len(set(written)) == len(names)
    assert not set("".join(written)) & set(" \t\n\f\r")
