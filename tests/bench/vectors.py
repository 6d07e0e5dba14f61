"""Sparse vectors to measure with: real ones of Wikipedia passages where those are at hand, else synthetic ones.

- Up to 100,000 documents: SPLADE vectors of as many real Wikipedia passages by the default model, `wiki-100k`.
- Above: the same passages, then resampled ones, `wiki-100k resampled (synthetic)`. A resampled document keeps each
  token of one real passage with probability .9 and takes each token of another with probability .1, so that lengths
  and document frequencies stay as they are; every weight is then multiplied by a lognormal factor (sigma .2).
- Queries `short`: real search titles of Wikipedia through the query side of the default model, as long as they come.
  Queries `long`: the 150 heaviest tokens of passages of another real collection, msmarco-dl5k, which is not indexed.
- Without the collections: documents and queries drawn by Zipf's law, `synthetic`.

Vectors are made once and kept in the user's cache. The collections are looked for in `$TERMWISE_BENCH_DATA`, then in
`../shared/data`.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from default_model import fetch_default_model
from termwise.server.inference.base import ExpansionConfig, Side
from termwise.server.inference.loader import load_encoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TERMWISE_BENCH_DATA", ROOT.parent / "shared" / "data"))
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "termwise" / "bench"
REAL = 100_000
VOCABULARY = 30_522
LONG = 150
BATCH = 256
CHUNK = 10_000
KEPT = 0.9
JITTER = 0.2
QUERIES = 500

Kind = Literal["short", "long"]
Query = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]
"""Tokens (int32, distinct) and weights (float32), heaviest first."""


@dataclass(frozen=True)
class Collection:
    """Documents and queries over one vocabulary: `documents` is CSR float32 of shape [documents, vocabulary].

    Above 100,000 documents its arrays are memory-mapped. `queries` are the short ones.
    """

    label: str
    vocabulary: list[str]
    documents: Any
    queries: list[Query]
    long_queries: list[Query]

    @cached_property
    def columns(self) -> Any:
        """The documents by column: CSC, made once."""
        return self.documents.tocsc()

    def of(self, kind: Kind) -> list[Query]:
        """Give the queries of a kind."""
        return self.queries if kind == "short" else self.long_queries


def load(count: int, *, real: bool = True) -> Collection:
    """Give `count` documents: real ones where wanted and to be had, else synthetic ones."""
    passages = DATA / "wiki-100k" / "corpus.jsonl.gz"
    if not real or not passages.exists():
        return synthetic(count)
    documents, label = real_documents(passages), "wiki-100k"
    if count <= REAL:
        documents = documents[:count].tocsr()
    else:
        documents, label = resampled(documents, count), "wiki-100k resampled (synthetic)"
    vocabulary = (CACHE / "vocabulary.txt").read_text().split("\n")
    return Collection(label, vocabulary, documents, queries("short"), queries("long"))


def queries(kind: Kind) -> list[Query]:
    """Give real queries, at most `QUERIES` of them; the collections must be there."""
    file = CACHE / f"queries-{kind}.npz"
    if not file.exists():
        source, side = (search_titles(), Side.QUERY) if kind == "short" else (foreign_passages(), Side.DOCUMENT)
        encode(source, side, file)
    matrix = sparse.load_npz(file)
    rows = (row(matrix, n) for n in range(matrix.shape[0]))
    if kind == "short":
        return list(islice((pair for pair in rows if len(pair[0])), QUERIES))
    return list(islice(((t[:LONG], w[:LONG]) for t, w in rows if len(t) >= LONG), QUERIES))


def row(matrix: Any, n: int) -> Query:
    """Give a row's tokens and weights, heaviest first."""
    part = slice(matrix.indptr[n], matrix.indptr[n + 1])
    tokens, weights = matrix.indices[part], matrix.data[part]
    order = np.lexsort((tokens, -weights))
    return tokens[order].astype(np.int32), weights[order].astype(np.float32)


def search_titles() -> Iterator[str]:
    """Give titles of Wikipedia pages that people searched for, the most wanted first."""
    with (DATA / "wiki-100k" / "queries.csv").open(newline="") as file:
        yield from islice((line["query"] for line in csv.DictReader(file)), QUERIES + 50)


def foreign_passages() -> Iterator[str]:
    """Give passages of another collection; half of them have 150 tokens or more."""
    with (DATA / "msmarco-dl5k" / "corpus.jsonl").open() as lines:
        rows = map(json.loads, lines)
        yield from islice((f"{row['title']} {row['text']}".strip() for row in rows), 4 * QUERIES)


def real_documents(passages: Path) -> Any:
    """Give all 100,000 passages, encoded before or now."""
    file = CACHE / "wiki-100k-splade-tiny.npz"
    if not file.exists():
        print("encoding wiki-100k once; this takes minutes", file=sys.stderr)
        with gzip.open(passages, "rt") as lines:
            texts = [f"{row['title']} {row['text']}".strip() for row in map(json.loads, lines)]
        words = encode(texts, Side.DOCUMENT, file)
        (CACHE / "vocabulary.txt").write_text("\n".join(words.get(i, f"[unseen{i}]") for i in range(VOCABULARY)))
    matrix = sparse.load_npz(file)
    matrix.sort_indices()
    return matrix


def encode(source: Iterable[str], side: Side, file: Path) -> dict[int, str]:
    """Encode texts by the default model and keep the matrix; give the tokens met, by number."""
    encoder = load_encoder(fetch_default_model(), ExpansionConfig(max_tokens=512), threads=1)
    texts = list(source)
    indptr, indices, values = [0], [], []
    words: dict[int, str] = {}
    for start in range(0, len(texts), BATCH):
        for expansion in encoder.encode(encoder.tokenize(texts[start : start + BATCH], side), side):
            words.update(zip(expansion.token_ids.tolist(), expansion.tokens, strict=True))
            indices.append(expansion.token_ids.astype(np.int32))
            values.append(expansion.weights)
            indptr.append(indptr[-1] + len(expansion.token_ids))
        if start % (BATCH * 40) == 0 and start:
            print(f"  {start:,} of {len(texts):,}", file=sys.stderr)
    parts = (np.concatenate(values), np.concatenate(indices), np.asarray(indptr))
    matrix = sparse.csr_matrix(parts, shape=(len(texts), VOCABULARY))
    matrix.sort_indices()
    CACHE.mkdir(parents=True, exist_ok=True)
    sparse.save_npz(file.with_suffix(".part.npz"), matrix, compressed=False)
    file.with_suffix(".part.npz").rename(file)
    return words


def resampled(real: Any, count: int) -> Any:
    """Give `count` documents, those after the real ones resampled: made once, by chunks, and memory-mapped."""
    folder = CACHE / f"wiki-{count}-resampled"
    if not folder.exists():
        print(f"resampling {count:,} documents once", file=sys.stderr)
        scratch = folder.with_suffix(".part")
        scratch.mkdir(parents=True, exist_ok=True)
        rng, lengths = np.random.default_rng(7), []
        with (scratch / "indices.bin").open("wb") as indices, (scratch / "data.bin").open("wb") as data:
            for start in range(0, count, CHUNK):
                size = min(CHUNK, count - start)
                fresh = real[start : start + size].tocsr() if start < real.shape[0] else resample(real, size, rng)
                lengths.append(np.diff(fresh.indptr))
                indices.write(fresh.indices.astype(np.int32).tobytes())
                data.write(fresh.data.astype(np.float32).tobytes())
        np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int32).tofile(scratch / "indptr.bin")
        scratch.rename(folder)
    types = {"data": np.float32, "indices": np.int32, "indptr": np.int32}
    data, indices, indptr = (np.memmap(folder / f"{name}.bin", types[name], "r") for name in types)
    return sparse.csr_matrix((data, indices, indptr), shape=(count, real.shape[1]), copy=False)


def resample(real: Any, size: int, rng: np.random.Generator) -> Any:
    """Make `size` documents, each of a real one and a little of another."""
    one, other = (real[np.sort(rng.integers(0, real.shape[0], size))].tocsr() for _ in range(2))
    other = other[rng.permutation(size)].tocsr()
    for part, kept in ((one, KEPT), (other, 1 - KEPT)):
        part.data *= rng.random(part.nnz, dtype=np.float32) < kept
        part.eliminate_zeros()
    made = one.maximum(other).tocsr()
    made.sort_indices()
    made.data *= np.exp(JITTER * rng.standard_normal(made.nnz, dtype=np.float32))
    return made[rng.permutation(size)].tocsr()


def synthetic(count: int, tokens: int = 140, size: int = VOCABULARY) -> Collection:
    """Make documents whose tokens follow Zipf's law; figures from them are labelled synthetic."""
    rng = np.random.default_rng(7)
    frequency = 1 / (np.arange(size) + 50.0)
    frequency /= frequency.sum()
    edges = np.cumsum(frequency)
    draws = np.searchsorted(edges, rng.random((count, tokens), dtype=np.float32) * edges[-1]).astype(np.int32)
    draws = np.minimum(draws, size - 1)
    values = np.exp(0.7 * rng.standard_normal(draws.shape, dtype=np.float32) - 0.7)
    documents = sparse.csr_matrix(
        (values.ravel(), draws.ravel(), np.arange(0, draws.size + 1, tokens)), shape=(count, size)
    )
    documents.sum_duplicates()

    def made(length: int) -> list[Query]:
        weights = -np.sort(-rng.lognormal(0, 0.5, (200, length)), axis=1).astype(np.float32)
        return [(rng.choice(size, length, replace=False, p=frequency).astype(np.int32), w) for w in weights]

    return Collection("synthetic", [f"t{i}" for i in range(size)], documents, made(20), made(LONG))
