"""Termwise's tantivy backend through its public storage port, in this process: `reader.rank` of one sparse leaf.

The call returns the version numbers and exact float32 scores of the k best; as with Lucene, matches beyond the k best
are not counted. The vectors of queries are made beforehand. State "updated": 20 % of the documents were given the
vector of another, and 10 % deleted, in batches through the same port, in the process that measures and without a
restart. Readers are taken when queries begin, so that tiles may have been sealed in the background, as in a service.
"""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from peers.base import Answer, Built, Lane, Truth, changes, size_of
from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.types import (
    Delete,
    Document,
    FieldKind,
    FieldSpec,
    IndexSchema,
    Put,
    Sparse,
    SparseVector,
    Written,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from termwise.storage.types import Operation
    from vectors import Collection, Query

_BATCH = 1_000
_NAME = "bench"


class Termwise:
    """The exact path of the embedded backend."""

    name = "termwise"

    def __init__(self, *, updated: bool = True) -> None:
        """Say whether a second index is kept, with updates and deletes."""
        self._with_updates = updated

    def build(self, collection: Collection, folder: Path) -> Built:
        """Write all documents in batches; seconds are those inside the port."""
        store = TantivyStore(_made(folder / "fresh"))
        store.create(_NAME, IndexSchema({"vec": FieldSpec(FieldKind.SPARSE_VECTOR)}))
        index = store.open(_NAME)
        puts = Puts(collection)
        count, seconds = collection.documents.shape[0], 0.0
        for start in range(0, count, _BATCH):
            batch = [puts.put(n, n) for n in range(start, min(start + _BATCH, count))]
            began = time.perf_counter()
            index.write(batch)
            seconds += time.perf_counter() - began
        began = time.perf_counter()
        store.close()
        return Built(seconds + time.perf_counter() - began, size_of(folder))

    def open(self, collection: Collection, folder: Path) -> None:
        """Open the index, and where wanted a copy of it in which documents are updated and deleted."""
        if self._with_updates:
            shutil.rmtree(folder / "updated", ignore_errors=True)
            shutil.copytree(folder / "fresh", folder / "updated")
        puts = Puts(collection)
        self._words = puts.words
        count = collection.documents.shape[0]
        self._stores = [TantivyStore(folder / "fresh")]
        self._indices = {"fresh": self._stores[0].open(_NAME)}
        self._numbers = {"fresh": np.arange(-1, count)}
        if not self._with_updates:
            return
        self._stores.append(TantivyStore(folder / "updated"))
        index = self._stores[1].open(_NAME)
        numbers = self._numbers["fresh"].copy()
        sources, alive = changes(count)
        updated = np.flatnonzero(sources != np.arange(count)).tolist()
        operations: list[Operation] = [puts.put(n, int(sources[n])) for n in updated]
        operations += [Delete(str(n)) for n in np.flatnonzero(~alive)]
        for start in range(0, len(operations), _BATCH):
            for outcome in index.write(operations[start : start + _BATCH]):
                assert isinstance(outcome, Written), outcome
                numbers.resize(max(outcome.seq_no + 1, len(numbers)), refcheck=False)
                numbers[outcome.seq_no] = int(outcome.id)
        self._indices["updated"] = index
        self._numbers["updated"] = numbers

    def lanes(self, queries: Sequence[Query], k: int, truth: Truth) -> list[Lane]:
        """Give a lane a state."""
        del truth
        leaves = [Sparse("vec", SparseVector(tuple(self._words[tokens]), weights)) for tokens, weights in queries]
        return [
            Lane("termwise", leaves, self._call(state, k), self._read(state), "exact path", state, exact=True)
            for state in self._indices
        ]

    def memory_bytes(self) -> None:
        """Leave it to the growth of the process."""

    def close(self) -> None:
        """Close the indices."""
        self._indices.clear()
        for store in self._stores:
            store.close()

    def _call(self, state: str, k: int) -> Callable[[Sparse], Any]:
        rank = self._indices[state].reader().rank
        return lambda leaf: rank(leaf, k, count=1)

    def _read(self, state: str) -> Callable[[Any], Answer]:
        numbers = self._numbers[state]
        return lambda ranking: (numbers[ranking.seq_nos], ranking.scores)


class Puts:
    """Makes writes of a collection's vectors."""

    def __init__(self, collection: Collection) -> None:
        """Rank the words once: sorting numbers is faster than sorting strings."""
        self.words = np.array(collection.vocabulary, dtype=object)
        self._ranks = np.empty(len(self.words), np.int64)
        self._ranks[np.argsort(self.words)] = np.arange(len(self.words))
        self._matrix = collection.documents

    def put(self, number: int, row: int) -> Put:
        """Make a write of document `number` with the vector of a row, heaviest first and ties by token."""
        part = slice(self._matrix.indptr[row], self._matrix.indptr[row + 1])
        ids, weights = self._matrix.indices[part], self._matrix.data[part].astype(np.float32)
        order = np.lexsort((self._ranks[ids], -weights))
        vector = SparseVector(tuple(self.words[ids[order]].tolist()), weights[order])
        return Put(Document(str(number), b"{}", sparse={"vec": vector}))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
