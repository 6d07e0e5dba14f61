"""Measures sparse search and writing of the tantivy backend, and checks every ranking against scipy.

    make bench-storage ARGS="[--documents 100000] [--synthetic] [--no-exact-path]"

Where the real collection is not at hand (see `vectors`), vectors are synthetic, and figures from them say so.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import vectors
from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.types import Document, FieldKind, FieldSpec, IndexSchema, Put, Sparse, SparseVector, Terms

_BATCH = 1_000


def vector(words: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> SparseVector:
    """Make a vector; `tokens` are places in `words`."""
    order = np.lexsort((words[tokens], -weights))
    return SparseVector(tuple(words[tokens[order]].tolist()), weights[order].astype(np.float32))


def check(ranking: Any, scores: np.ndarray[Any, Any]) -> None:
    """Compare a ranking with float64 scores of all documents; document i has seq_no i + 1."""
    best = np.sort(scores)[::-1][: len(ranking.seq_nos)]
    own = scores[ranking.seq_nos - 1]
    assert np.allclose(ranking.scores, own, rtol=2e-6), "scores differ from scipy's"
    assert np.allclose(own, best, rtol=2e-6), "the best documents differ from scipy's"
    assert ranking.total == np.count_nonzero(scores > 0)


def timed(call: Any, queries: list[Any]) -> str:
    """Time a call by query, in the median and the 95th percentile of three rounds."""
    times = []
    for _ in range(3):
        for query in queries:
            start = time.perf_counter()
            call(query)
            times.append((time.perf_counter() - start) * 1000)
    return f"p50 {statistics.median(times):.3f} ms, p95 {np.percentile(times, 95):.3f} ms"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where the index goes; a temporary folder by default")
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--no-exact-path", action="store_true")
    options = parser.parse_args()
    collection = vectors.load(options.documents, real=not options.synthetic)
    documents, queries = collection.documents, collection.queries[: options.queries]
    words = np.array(collection.vocabulary, dtype=object)
    length = documents.nnz / documents.shape[0]
    print(f"{collection.label}: {documents.shape[0]:,} documents of {length:.0f} tokens, {len(queries)} queries")

    folder = Path(tempfile.mkdtemp(dir=options.folder))
    start = time.perf_counter()
    store = TantivyStore(folder, exact_path=not options.no_exact_path)
    print(f"kernels: {time.perf_counter() - start:.2f} s to load or compile")
    fields = {"vec": FieldSpec(FieldKind.SPARSE_VECTOR), "part": FieldSpec(FieldKind.INTEGER)}
    store.create("bench", IndexSchema(fields))
    index = store.open("bench")

    def row(n: int) -> SparseVector:
        part = slice(documents.indptr[n], documents.indptr[n + 1])
        return vector(words, documents.indices[part], documents.data[part])

    puts = [
        Put(Document(str(n), b'{"n": 1}', columns={"part": [n % 10]}, sparse={"vec": row(n)}))
        for n in range(documents.shape[0])
    ]
    start = time.perf_counter()
    for first in range(0, len(puts), _BATCH):
        index.write(puts[first : first + _BATCH])
    took = time.perf_counter() - start
    print(f"write: {len(puts) / took:,.0f} documents/s in batches of {_BATCH:,}")

    leaves = [Sparse("vec", vector(words, tokens, weights)) for tokens, weights in queries]
    reader = index.reader()
    columns = documents.astype(np.float64).tocsc()
    for leaf, (tokens, weights) in zip(leaves, queries, strict=True):
        check(reader.rank(leaf, 10), columns[:, tokens] @ weights)
    print(f"exact: top 10 of {len(leaves)} queries equal scipy's")
    part = Terms("part", (3,))
    start = time.perf_counter()
    reader.rank(leaves[0], 10, part)
    print(f"first search with a new filter (10 % match): {(time.perf_counter() - start) * 1000:.1f} ms")
    print("rank, depth 10:", timed(lambda leaf: reader.rank(leaf, 10), leaves))
    print("rank, depth 10, filtered:", timed(lambda leaf: reader.rank(leaf, 10, part), leaves))
    print("rank, depth 1,000:", timed(lambda leaf: reader.rank(leaf, 1000), leaves))
    print("score of 100:", timed(lambda leaf: reader.score(leaf, np.arange(1, 101)), leaves))
    single = timed(lambda put: index.write([put]), puts[:10])
    print("write of one document:", single)
    store.close()
    start = time.perf_counter()
    store = TantivyStore(folder, exact_path=not options.no_exact_path)
    store.open("bench")
    print(f"open: {time.perf_counter() - start:.2f} s")
    store.close()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
