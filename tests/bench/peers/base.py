"""What a peer is to the benchmark: something that is built on disk, opened, and gives lanes to run queries in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vectors import Collection, Query

Answer = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]
"""Document numbers (int64) and the engine's own scores, best first."""


class PeerMissingError(Exception):
    """A peer cannot be had here; the message says why."""


@dataclass(frozen=True)
class Lane:
    """An engine in one setting, with the queries in the form that it wants.

    `search` is what is timed, `read` turns its result into an answer outside the timed part. `state` is "updated"
    where the documents are those after the updates (see `Truth`).
    """

    engine: str
    prepared: Sequence[Any]
    search: Callable[[Any], Any]
    read: Callable[[Any], Answer]
    settings: str = ""
    state: str = "fresh"
    exact: bool = False


@dataclass(frozen=True)
class Built:
    """What building took, in seconds of one thread where the engine lets one choose, and bytes on disk.

    Seconds are None where the machine had other work meanwhile.
    """

    index_s: float | None
    disk_bytes: int | None = None


class Peer(Protocol):
    """An engine. `build` runs in a process of its own; all else in the process that measures."""

    name: str

    def build(self, collection: Collection, folder: Path) -> Built:
        """Index all documents, and leave the index in `folder`."""
        ...

    def open(self, collection: Collection, folder: Path) -> None:
        """Open what `build` left."""
        ...

    def lanes(self, queries: Sequence[Query], k: int, truth: Truth) -> list[Lane]:
        """Prepare queries; a peer with parameters chooses them here, on these very queries, to its own best."""
        ...

    def memory_bytes(self) -> int | None:
        """Give the engine's own figure of its memory, None where growth of the process is the better measure."""
        ...

    def close(self) -> None:
        """Release files, threads and processes."""
        ...


class Truth:
    """Exact scores in float64, and recall against them.

    A document found is one whose true score is at least the k-th best, up to float32 rounding: ties count as found.
    """

    TOLERANCE = 2e-6

    def __init__(self, collection: Collection, queries: Sequence[Query], depths: Sequence[int]) -> None:
        """Score every document for every query; only the k-th best scores are kept."""
        self._documents = collection.documents
        self._queries = queries
        self.alive: np.ndarray[Any, Any] | None = None
        self._columns = collection.columns
        self._kth: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
        self._depths = depths
        self._fill("fresh")

    def update(self, sources: np.ndarray[Any, Any], alive: np.ndarray[Any, Any]) -> None:
        """Say what the updated index holds: document i has the vector of document `sources[i]`, where `alive[i]`."""
        self._sources, self.alive = sources, alive
        self._fill("updated")

    def scores(self, number: int, state: str = "fresh") -> np.ndarray[Any, Any]:
        """Give a query's scores of all documents; minus infinity for dead ones."""
        tokens, weights = self._queries[number]
        scores = np.zeros(self._documents.shape[0])
        columns = self._columns
        for token, weight in zip(tokens, weights.astype(np.float64), strict=True):
            part = slice(columns.indptr[token], columns.indptr[token + 1])
            scores[columns.indices[part]] += columns.data[part] * weight
        if state == "fresh":
            return scores
        return np.where(self.alive, scores[self._sources], -np.inf)

    def own(self, number: int, ids: np.ndarray[Any, Any], state: str = "fresh") -> np.ndarray[Any, Any]:
        """Give a query's scores of some documents."""
        rows = ids if state == "fresh" else self._sources[ids]
        tokens, weights = self._queries[number]
        dense = np.zeros(self._documents.shape[1])
        dense[tokens] = weights
        scores = self._documents[rows] @ dense
        return scores if state == "fresh" else np.where(self.alive[ids], scores, -np.inf)

    def recall(self, number: int, ids: np.ndarray[Any, Any], k: int, state: str = "fresh") -> float:
        """Give the share of the k best documents that are among `ids`."""
        if not len(ids):
            return 0.0
        least = self._kth[state, k][number]
        found = np.count_nonzero(self.own(number, np.unique(ids)[:k], state) >= least * (1 - self.TOLERANCE))
        return found / k

    def check(self, number: int, answer: Answer, k: int, state: str = "fresh") -> None:
        """Raise ValueError where an answer is not the best k documents with their dot products, in order."""
        ids, scores = answer
        own = self.own(number, ids, state)
        if len(ids) != k or len(np.unique(ids)) != k or self.recall(number, ids, k, state) < 1:
            raise ValueError(f"query {number}: not the best {k} documents")
        if not np.allclose(scores, own, rtol=1e-5) or (np.diff(scores) > 0).any():
            raise ValueError(f"query {number}: scores {scores} instead of {own}")

    def _fill(self, state: str) -> None:
        kth = {k: np.empty(len(self._queries)) for k in self._depths}
        for number in range(len(self._queries)):
            scores = self.scores(number, state)
            deepest = max(self._depths)
            best = np.sort(np.partition(scores, len(scores) - deepest)[-deepest:])[::-1]
            for k in self._depths:
                kth[k][number] = best[k - 1]
        self._kth |= {(state, k): values for k, values in kth.items()}


def size_of(folder: Path) -> int:
    """Give the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def changes(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Choose updates of 20 % of the documents and deletes of 10 %.

    Gives `sources` (int64, the document whose vector each document has afterwards) and `alive` (bool).
    """
    rng = np.random.default_rng(11)
    order = rng.permutation(count)
    updated, deleted = order[: count // 5], order[count // 5 : count // 5 + count // 10]
    sources = np.arange(count)
    sources[updated] = np.roll(updated, 1)
    alive = np.ones(count, bool)
    alive[deleted] = False
    return sources, alive
