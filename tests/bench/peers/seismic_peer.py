"""Seismic (PyPI `pyseismic-lsr`, MIT): clustered inverted lists with summaries; approximate, tuned here to recall .98.

The wheel of PyPI is used; its authors say that one compiled for the processor at hand is faster. `SeismicIndexRaw` is
searched, which takes token numbers and so spares Seismic the mapping of strings. Its authors advise some 3,500
postings a list for 8.8 million documents, a tenth of what is there; two indices are built here, of one posting in
eight and one in two (documents / 1,000 and documents / 250 a list), and `query_cut`, `heap_factor` and `sorted` are
swept on the very queries that are then timed: `seismic` is the fastest setting with recall of .98 or more, which each
row names. Building uses all cores. Memory is the size of the index that was chosen for k = 10; both are never needed
at once.

Its licence asks for a citation:

- S. Bruch, F. M. Nardini, C. Rulli, R. Venturini. Efficient Inverted Indexes for Approximate Retrieval over Learned
  Sparse Representations. SIGIR 2024.
- The same. Pairing Clustered Inverted Indexes with k-NN Graphs for Fast Approximate Retrieval over Learned Sparse
  Representations. CIKM 2024.
- The same and L. Venuta. Investigating the Scalability of Approximate Sparse Retrieval Algorithms to Massive Datasets.
  ECIR 2025.
- S. Bruch, M. Fontana, F. M. Nardini, C. Rulli, R. Venturini. Forward Index Compression for Learned Sparse Retrieval.
  ECIR 2026.
- S. Bruch, F. M. Nardini, C. Rulli, R. Venturini, L. Venuta. Efficient Sketching and Nearest Neighbor Search Algorithms
  for Sparse Vector Sets. arXiv:2509.24815.
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
TRIED = 80
GLIMPSE = 15
LARGE = 300_000
"""From here on only the light index is built: the deep one takes most of the time and of the memory."""
# name: documents a posting of the lists' average length, centroid fraction, summary energy
INDICES = {"light": (1000, 0.2, 0.5), "deep": (250, 0.1, 0.4)}
CUTS = {"short": (6, 8, 10, 16), "long": (10, 20, 40, 80)}
HEAP_FACTORS = (0.6, 0.7, 0.8, 0.9)


class Seismic:
    """Approximate search at the fastest setting of enough recall."""

    name = "seismic"

    def build(self, collection: Collection, folder: Path) -> Built:
        """Build and save both indices; seconds are those of the lighter one."""
        module = _module()
        write_raw(collection.documents, folder / "documents.bin")
        seconds = []
        names = INDICES if collection.documents.shape[0] < LARGE else ["light"]
        for name in names:
            ratio, centroids, energy = INDICES[name]
            began = time.perf_counter()
            index = module.SeismicIndexRaw.build(
                str(folder / "documents.bin"),
                n_postings=max(50, collection.documents.shape[0] // ratio),
                centroid_fraction=centroids,
                summary_energy=energy,
                max_fraction=6.0,
                min_cluster_size=2,
            )
            seconds.append(time.perf_counter() - began)
            index.save(str(folder / name))
            del index
        (folder / "documents.bin").unlink()
        return Built(seconds[0], (folder / "light").stat().st_size)

    def open(self, collection: Collection, folder: Path) -> None:
        """Load both indices."""
        del collection
        module = _module()
        self._folder = folder
        self._chosen: dict[tuple[int, int], str] = {}
        self._indices = {
            name: module.SeismicIndexRaw.load(str(folder / name)) for name in INDICES if (folder / name).exists()
        }

    def lanes(self, queries: Sequence[Query], k: int, truth: Truth) -> list[Lane]:
        """Sweep the settings on these queries."""
        kind = "long" if len(queries[0][0]) >= max(CUTS["long"]) else "short"
        order = [np.argsort(tokens) for tokens, _ in queries]
        prepared = [(t[o].astype(np.int32), w[o]) for (t, w), o in zip(queries, order, strict=True)]
        tried: list[tuple[float, float, str, tuple[int, float, bool]]] = []
        fastest = np.inf
        for name, setting in product(self._indices, product(CUTS[kind], HEAP_FACTORS, (True, False))):
            took, recall = self._time(prepared, truth, k, (name, setting), 2 * fastest)
            tried.append((took, recall, name, setting))
            if recall >= BAR:
                fastest = min(fastest, took)
        good = sorted(one for one in tried if one[1] >= BAR) or sorted(tried, key=lambda one: -one[1])
        # Queries beyond those tried may need a little more.
        for _, _, name, setting in good:
            call = self._call(name, k, *setting)
            recall = np.mean([truth.recall(n, _read(call(query))[0], k) for n, query in enumerate(prepared)])
            if recall >= BAR or good[0][1] < BAR:
                break
        cut, factor, in_order = setting
        self._chosen[len(queries[0][0]), k] = name
        settings = f"{name} index, query_cut {cut}, heap_factor {factor}, sorted {in_order}"
        return [Lane("seismic", prepared, call, _read, settings)]

    def memory_bytes(self) -> int:
        """Give the size of the index of the first lane."""
        name = next(iter(self._chosen.values()), "light")
        return (self._folder / name).stat().st_size

    def close(self) -> None:
        """Forget the indices."""
        self._indices.clear()

    def _time(
        self, prepared: list[Any], truth: Truth, k: int, choice: tuple[str, tuple[int, float, bool]], most: float
    ) -> tuple[float, float]:
        """Give the median time and the mean recall of a setting; what is slower than `most` is left early."""
        call = self._call(choice[0], k, *choice[1])
        times: list[float] = []
        recalls: list[float] = []
        for number, query in enumerate(prepared[:TRIED]):
            began = time.perf_counter()
            hits = call(query)
            times.append(time.perf_counter() - began)
            recalls.append(truth.recall(number, _read(hits)[0], k))
            if number == GLIMPSE and (np.median(times) > most or np.mean(recalls) < BAR - 0.05):
                return float(np.median(times)), 0.0
        return float(np.median(times)), float(np.mean(recalls))

    def _call(self, name: str, k: int, cut: int, factor: float, in_order: bool) -> Callable[[Any], Any]:
        search = self._indices[name].search
        return lambda query: search(query[0], query[1], k, cut, factor, 0, in_order)


def write_raw(matrix: Any, file: Path) -> None:
    """Write Seismic's inner format: the number of rows, then by row its length, its components and its values."""
    with file.open("wb") as out:
        out.write(np.uint32(matrix.shape[0]).tobytes())
        for row in range(matrix.shape[0]):
            part = slice(matrix.indptr[row], matrix.indptr[row + 1])
            out.write(np.uint32(part.stop - part.start).tobytes())
            out.write(matrix.indices[part].astype(np.uint32).tobytes())
            out.write(matrix.data[part].astype(np.float32).tobytes())


def _module() -> Any:
    try:
        import seismic  # noqa: PLC0415 - optional
    except ImportError as error:
        raise PeerMissingError(f"{error}; install requirements/bench.txt") from error
    return seismic


def _read(hits: Any) -> Answer:
    return np.array([document for _, document in hits], np.int64), np.array([score for score, _ in hits])
