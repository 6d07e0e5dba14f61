"""What scipy and splade-index share: an index that is the matrix of documents by column, float32, never on disk."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from peers.base import Built

if TYPE_CHECKING:
    from pathlib import Path

    from vectors import Collection


class Columns:
    """Scores from the collection's own columns, which the benchmark holds once for all who read them."""

    def build(self, collection: Collection, folder: Path) -> Built:
        """Time the conversion; the matrix is not kept, since it takes less than loading."""
        del folder
        began = time.perf_counter()
        collection.documents.tocsc()
        return Built(time.perf_counter() - began)

    def open(self, collection: Collection, folder: Path) -> None:
        """Take the collection's columns."""
        del folder
        self.collection = collection

    def memory_bytes(self) -> int:
        """Give the arrays' bytes."""
        columns = self.collection.columns
        return int(columns.data.nbytes + columns.indices.nbytes + columns.indptr.nbytes)

    def close(self) -> None:
        """Forget the matrix."""
        del self.collection
