"""What an encoder's faster arithmetic costs: its vectors and its ranking beside those of float32, on collections.

Every document and judged query of a collection is encoded in each precision, and every query is answered exactly, by
dot product over all documents. NDCG@10 counts linear gains.

    python tests/bench/bench_drift.py [COLLECTION...] [--model DIR] [--quick] [--format table|json]
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from default_model import fetch_default_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

NAMES = ("adi", "med", "cranfield", "cacm")
DATA = Path(os.environ.get("TERMWISE_BENCH_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
DEPTH = 10


@dataclass(frozen=True)
class Vectors:
    """A collection's vectors in one precision, a row a text."""

    documents: Any
    queries: Any


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="*", type=Path, help="folders in BEIR's layout")
    parser.add_argument("--model", type=Path, help="folder of the model; the default model is fetched otherwise")
    parser.add_argument("--quick", action="store_true", help="the smallest collection alone")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    names = NAMES[:1] if arguments.quick else NAMES
    folders = arguments.collections or [DATA / name for name in names if (DATA / name).is_dir()]
    model = arguments.model or fetch_default_model()
    name = arguments.model.name if arguments.model else "default"
    for row in measure(model, name, folders):
        if arguments.format == "json":
            print(json.dumps(row), flush=True)
        else:
            print(
                "  ".join(f"{key} {value}" for key, value in row.items() if key not in {"bench", "model"}), flush=True
            )


def measure(model: Path, name: str, folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Give a row a collection and precision that is not float32."""
    import torch  # noqa: PLC0415 - after the environment is set

    from termwise.cli.beir import read_collection  # noqa: PLC0415
    from termwise.server.errors import FailedPreconditionError  # noqa: PLC0415
    from termwise.server.inference.base import ExpansionConfig  # noqa: PLC0415
    from termwise.server.inference.loader import load_encoder  # noqa: PLC0415

    torch.set_num_threads(1)
    encoders: dict[str, Any] = {}
    for precision in ("float32", "bfloat16", "int8"):
        try:
            encoders[precision] = load_encoder(model, ExpansionConfig(), precision=precision)
        except FailedPreconditionError as error:
            if precision == "float32":
                raise
            yield {"bench": "drift", "model": name, "precision": precision, "refused": str(error)}
    for folder in folders:
        collection = read_collection(folder)
        exact = encode(encoders["float32"], collection)
        best = ndcg(exact, collection)
        for precision, encoder in encoders.items():
            if precision == "float32":
                continue
            vectors = encode(encoder, collection)
            found = ndcg(vectors, collection)
            far = [compare(*pair) for pair in zip((*vectors_of(vectors),), (*vectors_of(exact),), strict=True)]
            yield {
                "bench": "drift",
                "model": name,
                "collection": collection.name,
                "precision": precision,
                "ndcg@10": round(found, 4),
                "ndcg@10_float32": round(best, 4),
                "loss": round(best - found, 4),
                "worst_cosine": round(min(cosine for cosine, _ in far), 5),
                "largest_weight_difference": round(max(difference for _, difference in far), 4),
            }


def vectors_of(vectors: Vectors) -> tuple[Any, Any]:
    """Give documents and queries."""
    return vectors.documents, vectors.queries


def encode(encoder: Any, collection: Any) -> Vectors:
    """Encode a collection."""
    from termwise.server.inference.base import Side  # noqa: PLC0415

    matrices = []
    for texts, side in ((collection.documents, Side.DOCUMENT), (collection.queries, Side.QUERY)):
        expansions = encoder.encode(encoder.tokenize(list(texts.values()), side), side)
        starts = np.cumsum([0, *(len(each.token_ids) for each in expansions)])
        weights = np.concatenate([each.weights for each in expansions])
        ids = np.concatenate([each.token_ids for each in expansions])
        matrices.append(sparse.csr_array((weights, ids, starts), shape=(len(expansions), encoder.vocabulary_size)))
    return Vectors(*matrices)


def compare(actual: Any, expected: Any) -> tuple[float, float]:
    """Give the least cosine of two matrices' rows, and the largest difference of a weight."""
    products = np.asarray((actual * expected).sum(axis=1))
    norms = np.sqrt(np.asarray((actual**2).sum(axis=1)) * np.asarray((expected**2).sum(axis=1)))
    some = norms > 0
    return float((products[some] / norms[some]).min()), float(abs(actual - expected).max())


def ndcg(vectors: Vectors, collection: Any) -> float:
    """Give the mean NDCG@10; equal scores rank in the collection's order, and a document that shares no token never."""
    scores: NDArray[np.float32] = (vectors.queries @ vectors.documents.T).toarray()
    keys = list(collection.documents)
    discounts = 1 / np.log2(np.arange(2, DEPTH + 2))
    found = []
    for row, query in zip(scores, collection.queries, strict=True):
        relevance = collection.judgements[query]
        order = [number for number in np.argsort(-row, kind="stable")[:DEPTH] if row[number] > 0]
        gains = [max(0, relevance.get(keys[number], 0)) for number in order]
        ideal = sorted((max(0, each) for each in relevance.values()), reverse=True)[:DEPTH]
        best = float(np.dot(ideal, discounts[: len(ideal)]))
        found.append(float(np.dot(gains, discounts[: len(gains)])) / best if best else 0.0)
    return float(np.mean(found))


if __name__ == "__main__":
    main()
