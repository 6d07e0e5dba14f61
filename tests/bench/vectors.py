"""Sparse vectors to measure with: real ones of 100,000 Wikipedia passages where those are at hand, else synthetic ones.

Real vectors are made once, by the default model, and kept in the user's cache. The collection is looked for in
`$TERMWISE_BENCH_DATA`, then in `../shared/data`.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from default_model import fetch_default_model
from termwise.server.inference.base import ExpansionConfig, Side
from termwise.server.inference.loader import load_encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TERMWISE_BENCH_DATA", ROOT.parent / "shared" / "data"))
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "termwise" / "bench"
QUERY_TOKENS = 30
BATCH = 256


@dataclass(frozen=True)
class Collection:
    """Documents and queries over one vocabulary: `documents` is CSR float32 of shape [documents, vocabulary]."""

    label: str
    vocabulary: list[str]
    documents: Any
    queries: list[tuple[np.ndarray, np.ndarray]]


def load(count: int, *, real: bool = True) -> Collection:
    """Give `count` documents: real ones where wanted and to be had, else synthetic ones."""
    passages = DATA / "wiki-100k" / "corpus.jsonl.gz"
    if not real or not passages.exists():
        return synthetic(count)
    file = CACHE / "wiki-100k-splade-tiny.npz"
    if not file.exists():
        encode(passages, fetch_default_model(), file)
    documents = sparse.load_npz(file)[:count].tocsr()
    vocabulary = (CACHE / "vocabulary.txt").read_text().split("\n")
    return Collection("wiki-100k", vocabulary, documents, list(real_queries()))


def encode(passages: Path, model: Path, file: Path) -> None:
    """Encode all passages and keep the matrix."""
    print("encoding wiki-100k once; this takes minutes", file=sys.stderr)
    encoder = load_encoder(model, ExpansionConfig(max_tokens=512), threads=1)
    with gzip.open(passages, "rt") as lines:
        texts = [f"{row['title']} {row['text']}".strip() for row in map(json.loads, lines)]
    indptr, indices, values, words = [0], [], [], {}
    for start in range(0, len(texts), BATCH):
        for expansion in encoder.encode(encoder.tokenize(texts[start : start + BATCH], Side.DOCUMENT), Side.DOCUMENT):
            words.update(zip(expansion.token_ids.tolist(), expansion.tokens, strict=True))
            indices.append(expansion.token_ids.astype(np.int32))
            values.append(expansion.weights)
            indptr.append(indptr[-1] + len(expansion.token_ids))
        if start % (BATCH * 40) == 0:
            print(f"  {start:,} of {len(texts):,}", file=sys.stderr)
    size = encoder.vocabulary_size
    matrix = sparse.csr_matrix(
        (np.concatenate(values), np.concatenate(indices), np.asarray(indptr)), shape=(len(texts), size)
    )
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "vocabulary.txt").write_text("\n".join(words.get(i, f"[unseen{i}]") for i in range(size)))
    sparse.save_npz(file.with_suffix(".part.npz"), matrix, compressed=False)
    file.with_suffix(".part.npz").rename(file)


def real_queries() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give real query expansions over BERT's vocabulary, cut to the heaviest 30 tokens; shorter ones are left out."""
    with gzip.open(DATA / "elser-query-vectors" / "queries.json.gz", "rt") as file:
        rows = json.load(file)
    for row in rows:
        pairs = sorted(((float(w), int(t)) for t, w in row["text_expansion_elser"].items()), reverse=True)[
            :QUERY_TOKENS
        ]
        if len(pairs) == QUERY_TOKENS:
            yield np.array([t for _, t in pairs]), np.array([w for w, _ in pairs], np.float32)


def synthetic(count: int, tokens: int = 140, size: int = 30_522) -> Collection:
    """Make documents whose tokens follow Zipf's law; figures from them are labelled synthetic."""
    rng = np.random.default_rng(7)
    frequency = 1 / (np.arange(size) + 50.0)
    frequency /= frequency.sum()
    draws = rng.choice(size, size=(count, tokens), p=frequency)
    values = rng.lognormal(-0.7, 0.7, size=draws.shape).astype(np.float32)
    documents = sparse.csr_matrix(
        (values.ravel(), draws.ravel(), np.arange(0, draws.size + 1, tokens)), shape=(count, size)
    )
    documents.sum_duplicates()
    queries = [
        (
            rng.choice(size, QUERY_TOKENS, replace=False, p=frequency),
            rng.lognormal(0, 0.5, QUERY_TOKENS).astype(np.float32),
        )
        for _ in range(200)
    ]
    return Collection("synthetic", [f"t{i}" for i in range(size)], documents, queries)
