# ruff: noqa: D101, D102, S101 - a test's name says what it shows; assertions are the purpose
"""Readers see one moment each while writes go on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING

from termwise.storage.conformance.reference import new_index, put, vector, written
from termwise.storage.types import Everything, Lexical, Sparse, Terms

if TYPE_CHECKING:
    from termwise.storage.base import IndexStore, SparseIndex

_BATCH = 4
_ROUNDS = 25


def _search_until(index: SparseIndex, done: Event) -> int:
    """Search by every path, and check that all paths of a reader tell of the same whole batches."""
    leaf, newest, seen = Sparse("vec", vector({"a": 1})), 0, 0
    while not done.is_set() or seen == 0:
        reader = index.reader()
        total = reader.rank(leaf, 3).total
        assert total % _BATCH == 0, "half a batch shows"
        assert total >= newest, "a later reader shows less"
        assert len(reader.match(Everything())) == total
        assert reader.rank(Lexical("body", "salmon"), 3).total == total
        assert reader.rank(leaf, 3, Terms("lang", ("en",))).total == total
        ranking = reader.rank(leaf, 5)
        scores = [document.sparse["vec"].weights[0] for document in reader.fetch(ranking.seq_nos)]
        assert ranking.scores.tolist() == scores
        newest, seen = total, seen + 1
    return seen


class ConcurrencyConformance:
    def test_readers_see_whole_batches_while_writes_go_on(self, store: IndexStore) -> None:
        index, done = new_index(store), Event()
        with ThreadPoolExecutor(3) as threads:
            searches = [threads.submit(_search_until, index, done) for _ in range(3)]
            try:
                for number in range(_ROUNDS):
                    keys = [f"{number}-{place}" for place in range(_BATCH)]
                    old = [f"{number - 1}-{place}" for place in range(_BATCH)] if number % 5 == 4 else []  # noqa: PLR2004
                    puts = [put(key, body="salmon", lang="en", vec={"a": 1 + number}) for key in (*keys, *old)]
                    written(index, *puts)
            finally:
                done.set()
            assert all(search.result() for search in searches)
        assert index.reader().statistics().document_count == _BATCH * _ROUNDS

    def test_indices_are_written_at_the_same_time(self, store: IndexStore) -> None:
        indices = [new_index(store) for _ in range(12)]

        def fill(index: SparseIndex) -> int:
            for number in range(5):
                written(index, put(str(number), vec={"a": 1 + number}))
            return index.reader().rank(Sparse("vec", vector({"a": 1})), 9).total

        with ThreadPoolExecutor(6) as threads:
            assert list(threads.map(fill, indices)) == [5] * 12
