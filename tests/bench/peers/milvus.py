"""Milvus Lite (PyPI `pymilvus`, `milvus-lite`, Apache-2.0): the local form of Milvus, in Python, over a folder.

Through its client, so a local call by gRPC is in its figures, as it is in `termwise grpc`. An exact
SPARSE_INVERTED_INDEX with the inner product. The full Milvus is another engine and was not measured.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from peers.base import Answer, Built, Lane, PeerMissingError, Truth, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vectors import Collection, Query

_BATCH = 1_000
_NAME = "bench"


class Milvus:
    """Exact scores by Milvus Lite."""

    name = "milvus-lite"

    def build(self, collection: Collection, folder: Path) -> Built:
        """Insert all documents by batches, then load the collection once."""
        kind, client = _connect(folder)
        schema = client.create_schema(auto_id=False)
        schema.add_field("number", kind.INT64, is_primary=True)
        schema.add_field("vector", kind.SPARSE_FLOAT_VECTOR)
        parameters = client.prepare_index_params()
        parameters.add_index("vector", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        client.create_collection(_NAME, schema=schema, index_params=parameters)
        matrix = collection.documents
        seconds = 0.0
        for start in range(0, matrix.shape[0], _BATCH):
            rows = [
                {"number": row, "vector": _vector(matrix.indices[part], matrix.data[part])}
                for row in range(start, min(start + _BATCH, matrix.shape[0]))
                for part in [slice(matrix.indptr[row], matrix.indptr[row + 1])]
            ]
            began = time.perf_counter()
            client.insert(_NAME, rows)
            seconds += time.perf_counter() - began
        began = time.perf_counter()
        client.flush(_NAME)
        seconds += time.perf_counter() - began
        client.close()
        return Built(seconds, size_of(folder))

    def open(self, collection: Collection, folder: Path) -> None:
        """Load the collection."""
        del collection
        _, self._client = _connect(folder)
        self._client.load_collection(_NAME)

    def lanes(self, queries: Sequence[Query], k: int, truth: Truth) -> list[Lane]:
        """Give one lane."""
        del truth

        def search(vector: dict[int, float]) -> Any:
            return self._client.search(
                _NAME, [vector], anns_field="vector", limit=k, search_params={"metric_type": "IP"}
            )

        return [Lane("milvus-lite", [_vector(*query) for query in queries], search, _read, "SPARSE_INVERTED_INDEX")]

    def memory_bytes(self) -> None:
        """Leave it to the growth of the process, which its server shares."""

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


def _connect(folder: Path) -> tuple[Any, Any]:
    try:
        from pymilvus import DataType, MilvusClient  # noqa: PLC0415 - optional
    except ImportError as error:
        raise PeerMissingError(f"{error}; install requirements/bench.txt") from error
    return DataType, MilvusClient(str(folder / "milvus.db"))


def _vector(tokens: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> dict[int, float]:
    return dict(zip(tokens.tolist(), weights.tolist(), strict=True))


def _read(answers: Any) -> Answer:
    hits = answers[0]
    return np.array([hit["number"] for hit in hits], np.int64), np.array([hit["distance"] for hit in hits])
