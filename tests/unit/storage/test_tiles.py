from __future__ import annotations

import math

import numpy as np
import pytest
from exact_scores import NONE, any_weights, batch, check, plain_weights, vectors, walk
from hypothesis import example, given, settings
from hypothesis import strategies as st

from termwise.storage.tantivy.compiling import compile_kernel
from termwise.storage.tantivy.sealing import join, seal
from termwise.storage.tantivy.tile import restore
from termwise.storage.tantivy.tiles import TILE, SparseTiles, Vocabulary, make_tile
from termwise.storage.types import SparseVector, sparse_vector

adding = st.lists(vectors(plain_weights), max_size=9)
removing = st.lists(st.integers(1, 60), max_size=9)
steps = st.lists(st.tuples(adding, removing, st.booleans()), max_size=12)


@settings(max_examples=150, deadline=None)
@given(steps=steps, query=vectors(plain_weights), depth=st.integers(1, 12))
def test_changed_tiles_rank_like_a_walk_over_what_is_left(
    steps: list[tuple[list[SparseVector], list[int], bool]], query: SparseVector, depth: int
) -> None:
    tiles, held, newest = SparseTiles(Vocabulary()), {}, 0
    moments = []
    for added, removed, sealing in steps:
        gone = np.unique(np.array(removed, np.int64))
        numbers = np.arange(newest + 1, newest + 1 + len(added), dtype=np.int64)
        gone = gone[gone <= newest]
        tiles = tiles.changed(gone, batch(numbers, added))
        if sealing and tiles.tiles:
            tiles = SparseTiles(tiles.vocabulary, (*tiles.tiles[:-1], seal(tiles.tiles[-1:])))
        newest += len(added)
        held = {n: v for n, v in held.items() if n not in gone.tolist()} | dict(
            zip(numbers.tolist(), added, strict=True)
        )
        moments.append((tiles, held))
    for moment, left in moments:  # each moment stays as it was
        expected = walk(left, query)
        check(moment, query, depth, expected)
        assert moment.document_count == len(left)
        given = moment.score(query, np.arange(newest + 2))
        assert {n: -s for n, s in enumerate(given.tolist()) if s == s} == {n: s for s, n in expected}  # noqa: PLR0124 - NaN


@settings(max_examples=200, deadline=None)
@given(
    held=st.lists(vectors(any_weights), min_size=1, max_size=30),
    query=vectors(any_weights),
    depth=st.integers(1, 12),
    sealed=st.booleans(),
)
def test_any_normal_weight_scores_to_the_last_bit(
    held: list[SparseVector], query: SparseVector, depth: int, sealed: bool
) -> None:
    numbers = np.arange(1, len(held) + 1)
    tiles = SparseTiles(Vocabulary()).changed(NONE, batch(numbers, held))
    if sealed:
        tiles = SparseTiles(tiles.vocabulary, (seal(tiles.tiles),))
    check(tiles, query, depth, walk(dict(enumerate(held, 1)), query))


def moved(vector: SparseVector, place: int, ulps: int) -> SparseVector:
    """Move one weight by some of the steps that float32 has there."""
    weights = vector.weights.copy()
    weights.view(np.int32)[place % len(weights)] += ulps
    return SparseVector(vector.tokens, weights)


def between(least: int, most: int) -> st.SearchStrategy[float]:
    """Draw float32 numbers of all 24 bits, so that sums of them round, by their power of 2."""
    return st.builds(math.ldexp, st.integers(2**23, 2**24 - 1), st.integers(least - 23, most - 23))


@settings(max_examples=200, deadline=None)
@given(
    greatest=st.tuples(*[between(-2, 1)] * 3, *[between(-2, 14)] * 5),
    one=st.dictionaries(st.sampled_from("abc"), between(-2, 1), min_size=1),
    tied=st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 3)), min_size=1, max_size=2), min_size=2, max_size=3
    ),
    query=st.permutations("abcdefgh").flatmap(
        lambda tokens: st.lists(between(-1, 1), min_size=2, max_size=8).map(
            lambda weights: SparseVector(tuple(tokens[: len(weights)]), np.array(weights, np.float32))
        )
    ),
    depth=st.integers(1, 3),
)
@example(
    greatest=(2, 2, 2, 16384, 16384, 16384, 16384, 16384),
    one={"a": 2},
    tied=[[(0, 0)], [(0, 1)]],
    query=SparseVector(("a", "d"), np.array([3.50001, 2], np.float32)),
    depth=1,
)
@example(  # what the others hold, less what they hold, comes to less than nothing
    greatest=(0.001, 1, 1, 10000.001, 3333.3333, 777.7777, 16000.123, 1),
    one={"a": 0.0001},
    tied=[[(0, 0)], [(0, 1)]],
    query=SparseVector(tuple("adefg"), np.array([1, 1.1, 1.3, 1.7, 1.9], np.float32)),
    depth=2,
)
def test_a_narrow_filter_tells_near_ties_of_many_blocks_apart(
    greatest: tuple[float, ...],
    one: dict[str, float],
    tied: list[list[tuple[int, int]]],
    query: SparseVector,
    depth: int,
) -> None:
    """Each tile is a block in which others hold every token, far more often and with weights of other magnitudes."""
    vocabulary = Vocabulary()
    others = [sparse_vector(list("abcdefgh"), greatest)] * 500
    tiles, held = [], {}
    for block, changes in enumerate(tied):
        first = 1000 * block + 1
        near = [moved(sparse_vector(list(one), list(one.values())), place, ulps) for place, ulps in changes]
        held |= dict(enumerate(near, first))
        tiles.append(make_tile(batch(np.arange(first, first + 500 + len(near)), near + others), vocabulary))
    ranked, expected = SparseTiles(vocabulary, tuple(tiles)), walk(held, query)
    permitted = ranked.permit(np.array(list(held), np.int64))
    for count in (None, 0, 1):
        seq_nos, scores, total, counted = ranked.rank(query, depth, permitted, count=count)
        assert list(zip((-scores).tolist(), seq_nos.tolist(), strict=True)) == expected[:depth]
        assert total == len(expected) if counted else (count or 0) <= total <= len(expected)


def skewed(count: int, seed: int) -> list[SparseVector]:
    """Make vectors with frequent and rare tokens, and weights of which many are equal."""
    rng = np.random.default_rng(seed)
    shares = np.array([0.7, 0.4, 0.2, 0.13, *(0.9 / np.arange(8, 44))])
    present = rng.random((count, len(shares))) < shares
    weights = np.where(
        rng.random((count, len(shares))) < 0.3, 0.5, np.exp(rng.standard_normal((count, len(shares))))
    ).astype(np.float32)
    held = []
    for row, values in zip(present, weights, strict=True):
        places = np.flatnonzero(row)
        places = places[np.argsort(-values[places], kind="stable")]
        held.append(SparseVector(tuple(f"t{place}" for place in places), values[places]))
    return held


@pytest.fixture(scope="module")
def large() -> tuple[SparseTiles, dict[int, SparseVector]]:
    """A sealed tile of many blocks with dead documents, an open one, and a small one."""
    held = dict(enumerate(skewed(TILE + 21_000, 3), 1))
    tiles = SparseTiles(Vocabulary()).changed(NONE, batch(np.array(list(held)), list(held.values())))
    tiles = SparseTiles(tiles.vocabulary, (seal(tiles.tiles[:1]), *tiles.tiles[1:]))
    gone = np.arange(1, len(held), 7)
    fresh = dict(zip(range(len(held) + 1, len(held) + 101), skewed(100, 4), strict=True))
    tiles = tiles.changed(gone, batch(np.array(list(fresh)), list(fresh.values())))
    left = set(gone.tolist())
    return tiles, {n: vector for n, vector in (held | fresh).items() if n not in left}


QUERIES = [
    {"t0": 1.0},
    {"t0": 0.1, "t1": 0.2, "t2": 0.3, "t3": 0.4, "t20": 2.0, "t40": 3.0},
    {f"t{n}": 1 + n / 10 for n in range(40)},
    {"t39": 1.0, "absent": 2.0},
    {"absent": 2.0},
]


@pytest.mark.parametrize("query", QUERIES)
def test_blocks_and_tiles_rank_as_one(
    large: tuple[SparseTiles, dict[int, SparseVector]], query: dict[str, float]
) -> None:
    tiles, held = large
    assert [tile.sealed for tile in tiles.tiles] == [True, False, False]
    vector = sparse_vector(list(query), list(query.values()))
    expected = walk(held, vector)
    few = np.array(sorted(held)[::997], np.int64)
    narrowed = [n for _, n in expected if n in set(few.tolist())]
    for depth in (1, 10, 300, 20_000):
        check(tiles, vector, depth, expected)
        seq_nos, _, total, _ = tiles.rank(vector, depth, tiles.permit(few))
        assert (seq_nos.tolist(), total) == (narrowed[:depth], len(narrowed))


def test_a_tile_cut_for_another_block_size_is_cut_again(large: tuple[SparseTiles, dict[int, SparseVector]]) -> None:
    tiles, _ = large
    whole = seal([tiles.tiles[0]])
    old = np.zeros((len(whole.cuts), 9), np.uint32)
    names = ("seq_nos", "starts", "docs", "weights", "maxima", "minima", "rows", "gaps")
    arrays = {name: getattr(whole, name) for name in names}
    for array in arrays.values():
        array.flags.writeable = False
    vocabulary = Vocabulary()
    words = [tiles.vocabulary.words[number] for number in whole.tokens.tolist()]
    restored = SparseTiles(vocabulary, (restore(vocabulary, words, cuts=old, **arrays),))
    expected = SparseTiles(tiles.vocabulary, (whole,))
    for query in QUERIES:
        vector = sparse_vector(list(query), list(query.values()))
        for ours, theirs in zip(restored.rank(vector, 50), expected.rank(vector, 50), strict=True):
            assert np.array_equal(ours, theirs)


def test_as_many_ties_as_there_are_documents() -> None:
    held = [sparse_vector(["a", "b"], [0.3, 0.7])] * 30_000
    tiles = SparseTiles(Vocabulary()).changed(NONE, batch(np.arange(1, 30_001), held))
    for ranked in (tiles, SparseTiles(tiles.vocabulary, (seal(tiles.tiles),))):
        for count in (None, 0):
            seq_nos, _, _, _ = ranked.rank(sparse_vector(["a", "b"], [0.1, 0.9]), 7, count=count)
            assert seq_nos.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_joined_and_sealed_tiles_hold_what_is_alive(large: tuple[SparseTiles, dict[int, SparseVector]]) -> None:
    tiles, held = large
    for made in (join(tiles.tiles[1:]), seal(tiles.tiles[1:])):
        assert made.seq_nos.tolist() == [n for n in sorted(held) if n > TILE]
        assert int(made.starts[-1]) == sum(len(vector) for n, vector in held.items() if n > TILE)


def test_mostly_deleted_tiles_give_their_memory_back(large: tuple[SparseTiles, dict[int, SparseVector]]) -> None:
    tiles, held = large
    left = tiles.changed(np.arange(1, TILE + 20_000))
    assert [len(tile) for tile in left.tiles] == [sum(TILE + 20_000 <= n <= TILE + 21_000 for n in held), 100]
    assert tiles.document_count == len(held)


def test_small_writes_leave_few_tiles() -> None:
    tiles = SparseTiles(Vocabulary())
    for number in range(1, 1001):
        tiles = tiles.changed(NONE, batch(np.array([number]), [sparse_vector(["a"], [number])]))
    assert len(tiles.tiles) <= 10
    assert tiles.rank(sparse_vector(["a"], [1]), 3)[0].tolist() == [1000, 999, 998]


def test_kernels_compile_where_nothing_can_be_cached() -> None:
    scope: dict[str, object] = {}
    exec("def double(x):\n    return 2 * x", scope)  # noqa: S102 - a function without a file has no place for a cache
    assert compile_kernel("i8(i8)", scope["double"])(21) == 42
