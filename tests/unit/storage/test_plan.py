"""The tantivy plan under a budget of postings says how far off it may be."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from termwise.storage.tantivy.plan import best_dot, postings_budget, rank_sparse
from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.types import Document, FieldKind, FieldSpec, IndexSchema, Put, SparseVector, Terms, sparse_vector

SCHEMA = IndexSchema({"v": FieldSpec(FieldKind.SPARSE_VECTOR), "k": FieldSpec(FieldKind.KEYWORD)})
weights = st.floats(2**-7, 100, width=32)
vectors = st.dictionaries(st.sampled_from("abcdefgh"), weights, max_size=8).map(
    lambda held: sparse_vector(list(held), list(held.values()))
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(vectors, min_size=1, max_size=1), min_size=1, max_size=30)
    | st.lists(st.lists(vectors, min_size=1, max_size=4), min_size=1, max_size=30),
    vectors,
    st.integers(1, 6),
    st.integers(1, 60),
    st.booleans(),
)
def test_nothing_that_is_missing_beats_what_is_given_by_more_than_the_error(
    held: list[list[SparseVector]], query: SparseVector, depth: int, budget: int, narrow: bool
) -> None:
    with TemporaryDirectory() as folder:
        store = TantivyStore(Path(folder), exact_path=False)
        store.create("i", SCHEMA)
        index = store.open("i")
        index.write(
            [Put(Document(str(n), b"{}", columns={"k": ["xy"[n % 2]]}, chunks={"v": v})) for n, v in enumerate(held)]
        )
        reader = index.reader()
        where = Terms("k", ("x",)) if narrow else None
        rank = partial(rank_sparse, reader, reader._conditions, index._layout.places["v"], query, depth, where)
        ranking, counted = rank(budget=budget, count=1), rank(budget=budget)
        store.close()
    scores = np.array([best_dot(query, v) for n, v in enumerate(held) if not (narrow and n % 2)])
    matching = np.sort(scores[~np.isnan(scores)])[::-1]
    assert counted.total == len(matching)
    assert len(ranking.seq_nos) == min(depth, len(matching))
    assert ranking.counted or 1 <= ranking.total <= len(matching)
    exact = np.array([best_dot(query, held[seq_no - 1]) for seq_no in ranking.seq_nos.tolist()], np.float32)
    assert np.array_equal(exact, ranking.scores)
    for best, found in zip(matching, ranking.scores, strict=False):
        assert best <= found + ranking.max_error * (1 + 1e-6) + 1e-6 * best


def test_a_budget_grows_with_documents_and_tokens() -> None:
    assert postings_budget(10, 10) == 100_000
    assert postings_budget(1_000_000, 10) == 500_000
    assert postings_budget(1_000_000, 150) == 2_500_000
