"""Measures sparse search and writing of the tantivy backend, and checks every ranking against scipy.

    python tests/bench/bench_sparse.py [--vectors FILE.npz] [--documents 100000] [--no-exact-path]

FILE.npz holds documents as `indptr`, `indices`, `data` (CSR) and `tokens` (strings by index), and queries, where it has
any, as `query_indptr`, `query_indices`, `query_data`. Without a file, vectors are SYNTHETIC: token frequencies follow
Zipf's law, 140 tokens a document, 30 a query; figures from them say so.
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
import scipy.sparse
from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.types import Document, FieldKind, FieldSpec, IndexSchema, Put, Sparse, SparseVector, Terms

_VOCABULARY = 30_000
_BATCH = 1_000


def synthetic(documents: int, queries: int) -> tuple[list[str], scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]:
    """Draw vectors whose tokens follow Zipf's law."""
    rng = np.random.default_rng(7)
    chances = 1 / (np.arange(_VOCABULARY) + 5.0)
    chances /= chances.sum()

    def draw(rows: int, tokens: int) -> scipy.sparse.csr_matrix:
        starts, indices = [0], []
        for _ in range(rows):
            indices.append(np.unique(rng.choice(_VOCABULARY, int(tokens * 1.35), p=chances))[:tokens])
            starts.append(starts[-1] + len(indices[-1]))
        flat = np.concatenate(indices)
        weights = (rng.gamma(2, 0.5, len(flat)) + 0.01).astype(np.float32)
        return scipy.sparse.csr_matrix((weights, flat, starts), shape=(rows, _VOCABULARY))

    return [f"token{number}" for number in range(_VOCABULARY)], draw(documents, 140), draw(queries, 30)


def load(path: Path, documents: int, queries: int) -> tuple[list[str], Any, Any]:
    """Read vectors from a file; where it has no queries, documents cut to their 30 heaviest tokens take that part."""
    content = np.load(path, allow_pickle=False)
    tokens = [str(token) for token in content["tokens"]]
    width = len(tokens)
    matrix = scipy.sparse.csr_matrix((content["data"], content["indices"], content["indptr"]))
    matrix.resize((matrix.shape[0], width))
    if "query_data" in content:
        parts = (content["query_data"], content["query_indices"], content["query_indptr"])
        asked = scipy.sparse.csr_matrix(parts)
        asked.resize((asked.shape[0], width))
        return tokens, matrix[:documents], asked[:queries]
    rows = []
    for row in np.linspace(0, matrix.shape[0] - 1, queries).astype(int):
        line = matrix[row].tocoo()
        best = np.argsort(-line.data)[:30]
        rows.append(scipy.sparse.csr_matrix((line.data[best], ([0] * len(best), line.col[best])), shape=(1, width)))
    return tokens, matrix[:documents], scipy.sparse.vstack(rows).tocsr()


def vector(tokens: np.ndarray[Any, Any], row: scipy.sparse.csr_matrix) -> SparseVector:
    """Make a vector of one row."""
    order = np.lexsort((tokens[row.indices], -row.data))
    return SparseVector(tuple(tokens[row.indices[order]].tolist()), row.data[order].astype(np.float32))


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
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where the index goes; a temporary folder by default")
    parser.add_argument("--no-exact-path", action="store_true")
    options = parser.parse_args()
    sizes = options.documents, options.queries
    tokens, documents, queries = load(options.vectors, *sizes) if options.vectors else synthetic(*sizes)
    names = np.array(tokens, dtype=object)
    label = options.vectors.name if options.vectors else "SYNTHETIC vectors (Zipf)"
    length = documents.nnz / documents.shape[0]
    print(f"{label}: {documents.shape[0]:,} documents of {length:.0f} tokens, {queries.shape[0]} queries", end=" ")
    print(f"of {queries.nnz / queries.shape[0]:.0f} tokens")

    folder = Path(tempfile.mkdtemp(dir=options.folder))
    start = time.perf_counter()
    store = TantivyStore(folder, exact_path=not options.no_exact_path)
    print(f"kernels: {time.perf_counter() - start:.2f} s to load or compile")
    fields = {"vec": FieldSpec(FieldKind.SPARSE_VECTOR), "part": FieldSpec(FieldKind.INTEGER)}
    store.create("bench", IndexSchema(fields))
    index = store.open("bench")
    puts = [
        Put(Document(str(n), b'{"n": 1}', columns={"part": [n % 10]}, sparse={"vec": vector(names, documents[n])}))
        for n in range(documents.shape[0])
    ]
    start = time.perf_counter()
    for first in range(0, len(puts), _BATCH):
        index.write(puts[first : first + _BATCH])
    took = time.perf_counter() - start
    print(f"write: {len(puts) / took:,.0f} documents/s in batches of {_BATCH:,}")

    leaves = [Sparse("vec", vector(names, queries[row])) for row in range(queries.shape[0])]
    reader = index.reader()
    truth = (documents.astype(np.float64) @ queries.T.astype(np.float64)).toarray()
    for row, leaf in enumerate(leaves):
        check(reader.rank(leaf, 10), truth[:, row])
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
