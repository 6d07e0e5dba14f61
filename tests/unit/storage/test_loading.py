"""Vectors as they are stored become the same tiles as when they were written."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from termwise.storage.tantivy.batches import numbered
from termwise.storage.tantivy.codec import encode_vector, encode_vectors, read_vectors
from termwise.storage.tantivy.loading import Loading
from termwise.storage.tantivy.tiles import TILE, SparseTiles, Vocabulary
from termwise.storage.types import SparseVector, sparse_vector

ASCII = "".join(map(chr, range(128)))
tokens = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4) | st.sampled_from(
    ["a", "b", "aé", ASCII, ASCII + "\x80"]
)
vectors = st.dictionaries(tokens, st.sampled_from([0.5, 1.0, 2.0]), max_size=6).map(
    lambda held: sparse_vector(list(held), list(held.values()))
)


def load(held: list[SparseVector], chunks: int = 1) -> SparseTiles:
    """Load documents of so many vectors each."""
    with ThreadPoolExecutor(1) as worker:
        loading = Loading(worker, vocabulary := Vocabulary())
        for first in range(0, len(held), chunks):
            data = encode_vectors((0, encode_vector(vector)) for vector in held[first : first + chunks])
            loading.add(1 + first // chunks, [encoded for _, encoded in read_vectors(data)])
        return SparseTiles(vocabulary, tuple(loading.finish()))


@given(st.lists(vectors, max_size=12), vectors)
@example(
    [sparse_vector([ASCII, "é", "a"], [1, 2, 3]), sparse_vector([], []), sparse_vector(["a"], [1])],
    sparse_vector(["a"], [1]),
)
def test_loaded_tiles_rank_as_written_ones(held: list[SparseVector], query: SparseVector) -> None:
    nothing, numbers = np.empty(0, np.int64), np.arange(1, len(held) + 1)
    batch = numbered([encode_vector(vector) for vector in held]).batch(numbers, np.ones(len(held), np.bool_))
    written, loaded = SparseTiles(Vocabulary()).changed(nothing, batch), load(held)
    assert loaded.document_count == written.document_count
    assert int(loaded.frequencies.sum()) == int(written.frequencies.sum())
    assert set(loaded.vocabulary) == set(written.vocabulary)
    for vector in (query, *held):
        for ours, theirs in zip(loaded.rank(vector, 5), written.rank(vector, 5), strict=True):
            assert np.array_equal(ours, theirs)


def test_more_tokens_than_the_table_first_holds() -> None:
    names = [f"t{number}" for number in range(200_000)]
    tiles = load([sparse_vector(names[first : first + 50_000], [1] * 50_000) for first in range(0, 200_000, 50_000)])
    assert len(tiles.vocabulary) == 200_000
    assert tiles.rank(sparse_vector(["t0", "t199999"], [1, 2]), 5)[0].tolist() == [4, 1]


def test_loaded_documents_fill_tiles() -> None:
    pair = [sparse_vector(["even", "all"], [2, 1]), sparse_vector(["odd", "all"], [3, 1])]
    tiles = load([pair[number % 2] for number in range(TILE + 500)])
    assert [len(tile) for tile in tiles.tiles] == [TILE, 500]
    seq_nos, scores, total, _ = tiles.rank(sparse_vector(["odd"], [1]), 3)
    assert (seq_nos.tolist(), scores.tolist(), total) == ([2, 4, 6], [3, 3, 3], TILE // 2 + 250)


def test_loaded_chunks_stay_with_their_document() -> None:
    chunks, documents = 7, 12_000
    held = [sparse_vector(["all", f"n{n % 7}"], [1, 2 + n // 7]) for n in range(documents * chunks)]
    tiles = load(held, chunks)
    assert max(len(tile) for tile in tiles.tiles) <= TILE
    assert len(tiles.tiles) == 2
    assert (tiles.document_count, tiles.vector_count) == (documents, documents * chunks)
    for number in range(7):
        seq_nos, scores, total, _ = tiles.rank(sparse_vector([f"n{number}", "all"], [2, 1]), 2)
        assert (seq_nos.tolist(), total) == ([documents, documents - 1], documents)
        assert scores.tolist() == [2 * documents + 3, 2 * documents + 1]
