"""Tiles whose documents have several vectors rank them by the best, wherever they lie."""

from __future__ import annotations

import numpy as np
import pytest
from exact_scores import NONE, any_weights, batch_of_chunks, check, plain_weights, vectors, walk_chunks
from hypothesis import given, settings
from hypothesis import strategies as st

from termwise.storage.tantivy.postings import BLOCK
from termwise.storage.tantivy.rows import followers, lay_out, rows_needed
from termwise.storage.tantivy.sealing import join, seal
from termwise.storage.tantivy.tiles import TILE, SparseTiles, Vocabulary
from termwise.storage.types import MAX_CHUNKS, SparseVector, sparse_vector

Chunks = dict[int, list[SparseVector]]

documents = st.lists(vectors(plain_weights), min_size=1, max_size=5)
steps = st.lists(st.tuples(st.lists(documents, max_size=7), st.lists(st.integers(1, 40), max_size=9), st.booleans()))


@settings(max_examples=150, deadline=None)
@given(steps=steps, query=vectors(plain_weights), depth=st.integers(1, 12))
def test_changed_tiles_of_chunks_rank_like_a_walk_over_what_is_left(
    steps: list[tuple[list[list[SparseVector]], list[int], bool]], query: SparseVector, depth: int
) -> None:
    tiles, held, newest = SparseTiles(Vocabulary()), Chunks(), 0
    for added, removed, sealing in steps:
        gone = np.unique(np.array([number for number in removed if number <= newest], np.int64))
        fresh = dict(enumerate(added, newest + 1))
        tiles = tiles.changed(gone, batch_of_chunks(fresh))
        if sealing and tiles.tiles:
            tiles = SparseTiles(tiles.vocabulary, (*tiles.tiles[:-1], seal(tiles.tiles[-1:])))
        newest += len(added)
        held = {n: each for n, each in held.items() if n not in gone.tolist()} | fresh
        expected = walk_chunks(held, query)
        check(tiles, query, depth, expected)
        assert tiles.document_count == len(held)
        assert tiles.vector_count == sum(map(len, held.values()))
        given = tiles.score(query, np.arange(newest + 2))
        assert {n: -s for n, s in enumerate(given.tolist()) if s == s} == {n: s for s, n in expected}  # noqa: PLR0124 - NaN


@settings(max_examples=150, deadline=None)
@given(
    held=st.lists(st.lists(vectors(any_weights), min_size=1, max_size=4), min_size=1, max_size=20),
    query=vectors(any_weights),
    depth=st.integers(1, 12),
    sealed=st.booleans(),
)
def test_any_normal_weight_of_chunks_scores_to_the_last_bit(
    held: list[list[SparseVector]], query: SparseVector, depth: int, sealed: bool
) -> None:
    numbered = dict(enumerate(held, 1))
    tiles = SparseTiles(Vocabulary()).changed(NONE, batch_of_chunks(numbered))
    if sealed:
        tiles = SparseTiles(tiles.vocabulary, (seal(tiles.tiles),))
    check(tiles, query, depth, walk_chunks(numbered, query))


def skewed(count: int, seed: int) -> Chunks:
    """Make documents of 1 to 6 vectors, some of many, with frequent and rare tokens, and many equal weights."""
    rng = np.random.default_rng(seed)
    shares = np.array([0.7, 0.4, 0.2, 0.13, *(0.9 / np.arange(8, 44))])
    result: Chunks = {}
    for number in range(1, count + 1):
        size = int(rng.integers(1, 7)) if number % 500 else 700
        present = rng.random((size, len(shares))) < shares
        weights = np.exp(rng.standard_normal(present.shape)).astype(np.float32)
        weights[rng.random(present.shape) < 0.3] = 0.5
        result[number] = []
        for row, values in zip(present, weights, strict=True):
            places = np.flatnonzero(row)
            places = places[np.argsort(-values[places], kind="stable")]
            result[number].append(SparseVector(tuple(f"t{place}" for place in places), values[places]))
    return result


@pytest.fixture(scope="module")
def large() -> tuple[SparseTiles, Chunks]:
    """A sealed tile of two blocks with dead documents, an open one of two, and documents of one vector."""
    held = skewed(22_000, 5)
    tiles = SparseTiles(Vocabulary()).changed(NONE, batch_of_chunks(held))
    tiles = SparseTiles(tiles.vocabulary, (seal(tiles.tiles[:1]), *tiles.tiles[1:]))
    gone = np.arange(1, len(held), 7)
    fresh = {len(held) + n: each[:1] for n, each in skewed(100, 6).items()}
    tiles = tiles.changed(gone, batch_of_chunks(fresh))
    left = set(gone.tolist())
    return tiles, {n: each for n, each in (held | fresh).items() if n not in left}


def test_no_document_is_in_two_blocks(large: tuple[SparseTiles, Chunks]) -> None:
    tiles, held = large
    assert [tile.sealed for tile in tiles.tiles] == [True, False, False]
    assert len(tiles.tiles[0]) > BLOCK
    assert any(len(tile.gaps) for tile in tiles.tiles)
    found = []
    for tile in tiles.tiles:
        assert len(tile) <= TILE
        for border in range(BLOCK, len(tile), BLOCK):
            assert tile.seq_nos[border] != tile.seq_nos[border - 1]
        found += tile.documents(alive=True).tolist()
    assert found == list(held)


@pytest.mark.parametrize(
    "query",
    [
        {"t0": 1.0},
        {"t0": 0.1, "t1": 0.2, "t2": 0.3, "t3": 0.4, "t20": 2.0, "t40": 3.0},
        {f"t{n}": 1 + n / 10 for n in range(40)},
        {"t39": 1.0, "absent": 2.0},
        {"absent": 2.0},
    ],
)
def test_blocks_and_tiles_of_chunks_rank_as_one(large: tuple[SparseTiles, Chunks], query: dict[str, float]) -> None:
    tiles, held = large
    vector = sparse_vector(list(query), list(query.values()))
    expected = walk_chunks(held, vector)
    few = np.array(sorted(held)[::997], np.int64)
    narrowed = [n for _, n in expected if n in set(few.tolist())]
    for depth in (1, 10, 300, 20_000):
        check(tiles, vector, depth, expected)
        for count in (None, 0, 5):
            seq_nos, _, total, counted = tiles.rank(vector, depth, tiles.permit(few), count=count)
            assert seq_nos.tolist() == narrowed[:depth]
            assert total == len(narrowed) if counted else (count or 0) <= total <= len(narrowed)


def test_joined_and_sealed_tiles_hold_the_chunks_of_what_is_alive(large: tuple[SparseTiles, Chunks]) -> None:
    tiles, held = large
    for made in (join(tiles.tiles[1:]), seal(tiles.tiles[1:])):
        numbers = made.documents(alive=True).tolist()
        assert numbers == [n for n in held if n >= numbers[0]]
        assert made.live == sum(len(held[n]) for n in numbers)
        assert int(made.starts[-1]) == sum(len(vector) for n in numbers for vector in held[n])


@given(st.lists(st.integers(1, MAX_CHUNKS) | st.just(1), min_size=1, max_size=20), st.integers(0, BLOCK))
def test_rows_are_laid_out_whole_and_no_more_than_is_needed(sizes: list[int], before: int) -> None:
    sizes = [1] * before + sizes
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    rows = lay_out(numbers)
    assert np.array_equal(rows.seq_nos[rows.places], numbers)
    assert (np.diff(rows.places) > 0).all()
    assert set(rows.gaps.tolist()).isdisjoint(rows.places.tolist())
    assert len(rows.gaps) + len(rows.places) == len(rows.seq_nos)
    follows = followers(rows.seq_nos)
    assert len(follows) == (len(rows.seq_nos) if max(sizes) > 1 else 0)
    if len(follows):
        assert np.array_equal(np.flatnonzero(follows == 0), rows.places[np.diff(numbers, prepend=-1) > 0])
    firsts, lasts = (rows.places[np.diff(numbers, **edge) > 0] for edge in ({"prepend": -1}, {"append": len(sizes)}))
    assert np.array_equal(firsts // BLOCK, lasts // BLOCK)
    if rows_needed(sum(sizes), max(sizes)) <= TILE:
        assert len(rows.seq_nos) <= rows_needed(sum(sizes), max(sizes))
