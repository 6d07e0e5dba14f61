"""splade-index (PyPI, MIT): a product by column in compiled numba, with its own partial sort. Exact, in float32.

Its `retrieve` encodes texts by a sentence-transformers model; here vectors are at hand, so its numba function is
called below that, as `retrieve` does, with one thread. Memory is that of its arrays; it keeps them on disk
compressed, which is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from peers.base import Answer, Lane, PeerMissingError, Truth
from peers.columns import Columns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vectors import Collection, Query


class SpladeIndex(Columns):
    """Exact scores by numba."""

    name = "splade-index"

    def open(self, collection: Collection, folder: Path) -> None:
        """Make what its `index` makes."""
        super().open(collection, folder)
        try:
            from splade_index.numba.retrieve_utils import _retrieve_numba_functional  # noqa: PLC0415 - optional
        except ImportError as error:
            raise PeerMissingError(f"{error}; install requirements/bench.txt") from error
        self._retrieve = _retrieve_numba_functional
        columns = collection.columns
        names = {"data": columns.data, "indices": columns.indices, "indptr": columns.indptr}
        self._scores = names | {"num_docs": columns.shape[0]}

    def lanes(self, queries: Sequence[Query], k: int, truth: Truth) -> list[Lane]:
        """Give one lane."""
        del truth
        prepared = [([tokens], [weights]) for tokens, weights in queries]

        def search(query: tuple[list[Any], list[Any]]) -> Answer:
            return self._retrieve(*query, self._scores, k=k, show_progress=False, n_threads=1)  # type: ignore[no-any-return]

        return [Lane("splade-index", prepared, search, lambda hits: (hits[0][0].astype(np.int64), hits[1][0]), "numba")]
