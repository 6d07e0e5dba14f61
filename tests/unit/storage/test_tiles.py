from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from termwise.storage.tantivy.kernels import _compile
from termwise.storage.tantivy.tiles import TILE, SparseTiles, Vocabulary
from termwise.storage.types import SparseVector, sparse_vector

vectors = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([0.5, 1.0, 2.0, 3.5]), max_size=4).map(
    lambda weights: sparse_vector(list(weights), list(weights.values()))
)
steps = st.lists(st.tuples(st.lists(vectors, max_size=9), st.lists(st.integers(1, 60), max_size=9)), max_size=12)


def walk(held: dict[int, SparseVector], query: SparseVector) -> list[tuple[float, int]]:
    scores = []
    for seq_no, vector in held.items():
        weights = dict(zip(vector.tokens, vector.weights.tolist(), strict=True))
        products = [w * weights[t] for t, w in zip(query.tokens, query.weights.tolist(), strict=True) if t in weights]
        if products:
            scores.append((-sum(products), seq_no))
    return sorted(scores)


@settings(max_examples=150, deadline=None)
@given(steps=steps, query=vectors, depth=st.integers(1, 12))
def test_changed_tiles_rank_like_a_walk_over_what_is_left(
    steps: list[tuple[list[SparseVector], list[int]]], query: SparseVector, depth: int
) -> None:
    tiles, held, newest = SparseTiles(Vocabulary()), {}, 0
    moments = []
    for added, removed in steps:
        gone = np.unique(np.array(removed, np.int64))
        numbers = np.arange(newest + 1, newest + 1 + len(added), dtype=np.int64)
        gone = gone[gone <= newest]
        tiles = tiles.changed(gone, numbers, added)
        newest += len(added)
        held = {n: v for n, v in held.items() if n not in gone.tolist()} | dict(
            zip(numbers.tolist(), added, strict=True)
        )
        moments.append((tiles, held))
    for moment, left in moments:  # each moment stays as it was
        expected = walk(left, query)
        seq_nos, scores, total = moment.rank(query, depth)
        assert total == len(expected)
        assert list(zip((-scores).tolist(), seq_nos.tolist(), strict=True)) == expected[:depth]
        assert moment.document_count == len(left)
        even = np.array([n for n in left if n % 2 == 0], np.int64)
        seq_nos, _, total = moment.rank(query, depth, moment.masks(even))
        narrowed = [seq_no for _, seq_no in expected if seq_no % 2 == 0]
        assert (seq_nos.tolist(), total) == (narrowed[:depth], len(narrowed))
        given = moment.score(query, np.arange(newest + 2))
        assert {n: -s for n, s in enumerate(given.tolist()) if s == s} == {n: s for s, n in expected}  # noqa: PLR0124 - NaN


@pytest.fixture(scope="module")
def large() -> tuple[SparseTiles, list[SparseVector]]:
    rng = np.random.default_rng(3)
    weights = rng.integers(1, 100, (2 * TILE + 500, 2)).astype(np.float32)
    tokens = [f"t{number}" for number in range(50)]
    held = [
        SparseVector((tokens[n % 50], "all") if n % 3 else ("all",), weights[n, : 2 if n % 3 else 1])
        for n in range(len(weights))
    ]
    tiles = SparseTiles(Vocabulary()).changed(np.empty(0, np.int64), np.arange(1, len(held) + 1), held)
    return tiles, held


@pytest.mark.parametrize("depth", [1, 10, 5000])
def test_several_tiles_rank_as_one(large: tuple[SparseTiles, list[SparseVector]], depth: int) -> None:
    tiles, held = large
    assert len(tiles.tiles) == 3
    for query in (sparse_vector(["all", "t7"], [1, 2]), sparse_vector(["t3"], [1]), sparse_vector(["all"], [1])):
        expected = walk(dict(enumerate(held, 1)), query)
        seq_nos, scores, total = tiles.rank(query, depth)
        assert total == len(expected)
        assert list(zip((-scores).tolist(), seq_nos.tolist(), strict=True)) == expected[:depth]


def test_mostly_deleted_tiles_give_their_memory_back(large: tuple[SparseTiles, list[SparseVector]]) -> None:
    tiles, _ = large
    left = tiles.changed(np.arange(1, 2 * TILE - 99), np.empty(0, np.int64), [])
    assert sum(len(tile) for tile in left.tiles) == left.document_count == 600
    assert sum(len(tile.docs) for tile in left.tiles) < 1200
    assert tiles.document_count == 2 * TILE + 500


def test_small_writes_leave_few_tiles() -> None:
    tiles = SparseTiles(Vocabulary())
    for number in range(1, 1001):
        tiles = tiles.changed(np.empty(0, np.int64), np.array([number]), [sparse_vector(["a"], [number])])
    assert len(tiles.tiles) <= 10
    assert tiles.rank(sparse_vector(["a"], [1]), 3)[0].tolist() == [1000, 999, 998]


def test_kernels_compile_where_nothing_can_be_cached() -> None:
    scope: dict[str, object] = {}
    exec("def double(x):\n    return 2 * x", scope)  # noqa: S102 - a function without a file has no place for a cache
    assert _compile("i8(i8)", scope["double"])(21) == 42
