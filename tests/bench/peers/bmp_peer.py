"""BMP, block-max pruning (PyPI `bmp`, Apache-2.0): blocks of documents in the order of their upper bounds.

Its index holds a weight in 8 bits and a query's weights in 5; recall against exact scores is what that leaves. `bmp`
is its safe setting (alpha 1, beta 1), `bmp approximate` the fastest of its documented approximations (alpha ends the
search early, beta leaves out light query tokens) with recall of .98 or more, where there is one, swept on the queries
that are then timed. Blocks of 32 documents, as its package has it. The paper's authors order documents by recursive
graph bisection first, which the package does not do; here they stand in the collection's order, for every engine. Its
index is read into memory as a whole: memory is the growth of the process.

A. Mallia, T. Suel, N. Tonellotto. Faster Learned Sparse Retrieval with Block-Max Pruning. SIGIR 2024.
"""

from __future__ import annotations

import time
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from peers.base import Answer, Built, Lane, PeerMissingError, Truth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vectors import Collection, Query

BAR = 0.98
BLOCK = 32
TRIED = 40
LARGEST_WEIGHT = 255
LARGEST_QUERY_WEIGHT = 32
"""BMP scales a query so that its heaviest token weighs as much."""
ALPHAS = (0.9, 0.8, 0.7, 0.6)
BETAS = (1.0, 0.8, 0.6)


class Bmp:
    """Search by blocks."""

    name = "bmp"

    def build(self, collection: Collection, folder: Path) -> Built:
        """Index 8-bit weights; seconds are those inside BMP."""
        module = _module()
        matrix = collection.documents
        scale = LARGEST_WEIGHT / matrix.data.max()
        words = [str(token) for token in range(matrix.shape[1])]
        indexer = module.Indexer(str(folder / "index"), bsize=BLOCK, compress_range=False)
        seconds = 0.0
        for row in range(matrix.shape[0]):
            part = slice(matrix.indptr[row], matrix.indptr[row + 1])
            weights = np.maximum(np.rint(matrix.data[part] * scale), 1).astype(np.int64).tolist()
            tokens = [words[token] for token in matrix.indices[part].tolist()]
            vector = dict(zip(tokens, weights, strict=True))
            began = time.perf_counter()
            indexer.add_document(str(row), vector)
            seconds += time.perf_counter() - began
        began = time.perf_counter()
        indexer.finish()
        return Built(seconds + time.perf_counter() - began, (folder / "index").stat().st_size)

    def open(self, collection: Collection, folder: Path) -> None:
        """Load the index."""
        self._searcher = _module().Searcher(str(folder / "index"))
        self._known = set(np.flatnonzero(np.bincount(collection.documents.indices)).tolist())

    def lanes(self, queries: Sequence[Query], k: int, truth: Truth) -> list[Lane]:
        """Give the safe lane, and an approximate one where one is good enough."""
        prepared = [self._scaled(query) for query in queries]
        lanes = [Lane("bmp", prepared, self._call(k, 1.0, 1.0), _read, "alpha 1, beta 1")]
        safe, good = self._time(prepared, truth, k, (1.0, 1.0)), []
        for setting in product(ALPHAS, BETAS):
            took, recall = self._time(prepared, truth, k, setting)
            if took < safe[0] and recall >= BAR:
                good.append((took, setting))
        if good:
            _, (alpha, beta) = min(good)
            call, settings = self._call(k, alpha, beta), f"alpha {alpha:g}, beta {beta:g}"
            lanes.append(Lane("bmp approximate", prepared, call, _read, settings))
        return lanes

    def memory_bytes(self) -> None:
        """Leave it to the growth of the process."""

    def close(self) -> None:
        """Forget the index."""
        del self._searcher

    def _time(self, prepared: list[Any], truth: Truth, k: int, setting: tuple[float, float]) -> tuple[float, float]:
        """Give the median time and the mean recall of a setting over some queries."""
        call = self._call(k, *setting)
        times, recalls = [], []
        for number, query in enumerate(prepared[:TRIED]):
            began = time.perf_counter()
            hits = call(query)
            times.append(time.perf_counter() - began)
            recalls.append(truth.recall(number, _read(hits)[0], k))
        return float(np.median(times)), float(np.mean(recalls))

    def _scaled(self, query: Query) -> dict[str, float]:
        tokens, weights = query
        scale = LARGEST_QUERY_WEIGHT / weights.max()
        known = [(t, w) for t, w in zip(tokens.tolist(), weights.tolist(), strict=True) if t in self._known]
        return {str(token): weight * scale for token, weight in known}

    def _call(self, k: int, alpha: float, beta: float) -> Callable[[Any], Any]:
        search = self._searcher.search
        return lambda query: search(query, k, alpha, beta)


def _module() -> Any:
    try:
        import bmp  # noqa: PLC0415 - optional
    except ImportError as error:
        raise PeerMissingError(f"{error}; install requirements/bench.txt") from error
    return bmp


def _read(hits: Any) -> Answer:
    ids, scores = hits
    return np.array([int(document) for document in ids], np.int64), np.array(scores)
