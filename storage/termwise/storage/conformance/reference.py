# ruff: noqa: S101 - assertions are the purpose
"""What the suite compares backends with: plain walks over all documents, and helpers to fill an index."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from termwise.storage.analysis import analyze
from termwise.storage.errors import OperationError
from termwise.storage.types import (
    AllOf,
    AnyOf,
    Condition,
    Delete,
    Document,
    Everything,
    Exists,
    FieldKind,
    FieldSpec,
    Ids,
    IndexSchema,
    Lexical,
    Not,
    Nothing,
    Operation,
    Put,
    Range,
    Ranking,
    SparseVector,
    Terms,
    Written,
    sparse_vector,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from termwise.storage.base import IndexStore, SparseIndex

SCHEMA = IndexSchema(
    {
        "title": FieldSpec(FieldKind.TEXT, "english"),
        "body": FieldSpec(FieldKind.TEXT),
        "lang": FieldSpec(FieldKind.KEYWORD),
        "year": FieldSpec(FieldKind.INTEGER),
        "price": FieldSpec(FieldKind.NUMBER),
        "draft": FieldSpec(FieldKind.BOOLEAN),
        "made": FieldSpec(FieldKind.DATE),
        "a.dotted name": FieldSpec(FieldKind.KEYWORD),
        "vec": FieldSpec(FieldKind.SPARSE_VECTOR),
        "other": FieldSpec(FieldKind.SPARSE_VECTOR),
    }
)
"""A field of every kind."""

_names = count()


def new_index(store: IndexStore, schema: IndexSchema = SCHEMA) -> SparseIndex:
    """Make and open an index of a fresh name."""
    name = f"index-{next(_names)}"
    store.create(name, schema)
    return store.open(name)


def vector(weights: Mapping[str, float]) -> SparseVector:
    """Make a vector from token and weight."""
    return sparse_vector(list(weights), list(weights.values()))


def put(id_: str, *, title: str | None = None, body: str | None = None, vec: Any = None, **columns: Any) -> Put:
    """Write a document; every column has one value, and `vec` is token and weight."""
    texts = {name: [text] for name, text in (("title", title), ("body", body)) if text is not None}
    sparse = {} if vec is None else {"vec": vector(vec)}
    return Put(Document(id_, b"{}", texts, {name: [value] for name, value in columns.items()}, sparse))


def chunked(id_: str, *vectors: Mapping[str, float], lang: str = "en") -> Put:
    """Write a document whose field `vec` has several vectors, each token and weight."""
    return Put(Document(id_, b"{}", columns={"lang": [lang]}, chunks={"vec": [vector(each) for each in vectors]}))


def written(index: SparseIndex, *operations: Operation) -> list[int]:
    """Write operations that must all work, and give their seq_nos."""
    seq_nos = []
    for outcome in index.write(operations):
        assert isinstance(outcome, Written), outcome
        seq_nos.append(outcome.seq_no)
    return seq_nos


@dataclass
class Model:
    """What an index should hold: documents by id, with their seq_nos."""

    schema: IndexSchema = SCHEMA
    documents: dict[str, tuple[int, Document]] = field(default_factory=dict)

    def write(self, index: SparseIndex, operations: Sequence[Operation]) -> None:
        """Write to the index and follow its outcomes."""
        for operation, outcome in zip(operations, index.write(operations), strict=True):
            if isinstance(outcome, OperationError):
                continue
            if isinstance(operation, Delete):
                del self.documents[operation.id]
            else:
                self.documents[outcome.id] = outcome.seq_no, operation.document

    def alive(self) -> dict[int, Document]:
        """Give documents by seq_no, ascending."""
        return dict(sorted(self.documents.values(), key=lambda pair: pair[0]))

    def match(self, condition: Condition) -> list[int]:
        """List the seq_nos of the documents that match."""
        return [seq_no for seq_no, document in self.alive().items() if self.holds(document, condition)]

    def holds(self, document: Document, condition: Condition) -> bool:  # noqa: C901, PLR0911 - a table, flat
        """Tell whether a document matches."""
        match condition:
            case Everything():
                return True
            case Nothing():
                return False
            case Terms(name, values):
                return any(value in values for value in document.columns.get(name, ()))
            case Range():
                return any(_between(condition, value) for value in document.columns.get(condition.field, ()))
            case Exists(name):
                held = document.texts.get(name) or document.columns.get(name)
                return bool(held) or name in document.vectors()
            case Ids(ids):
                return document.id in ids
            case Not(inner):
                return not self.holds(document, inner)
            case AllOf(conditions):
                return all(self.holds(document, part) for part in conditions)
            case AnyOf(conditions, minimum):
                return [self.holds(document, part) for part in conditions].count(True) >= minimum
            case Lexical():
                words = analyze(self.schema.fields[condition.field].analyzer, condition.text)
                counts = self.words(document, condition.field)
                found = [word in counts for word in words]
                return bool(words) and (all(found) if condition.all_words else any(found))
            case _:
                held_tokens = {token for each in document.vectors().get(condition.field, ()) for token in each.tokens}
                return bool(set(condition.vector.tokens) & held_tokens)

    def words(self, document: Document, name: str) -> Counter[str]:
        """Count the words of a text field."""
        analyzer = self.schema.fields[name].analyzer
        return Counter(word for text in document.texts.get(name, ()) for word in analyze(analyzer, text))

    def dot_products(self, name: str, query: SparseVector) -> dict[int, float]:
        """Score every document that shares a token by its best vector, in float64."""
        factors = dict(zip(query.tokens, query.weights.tolist(), strict=True))
        scores: dict[int, float] = {}
        for seq_no, document in self.alive().items():
            for held in document.vectors().get(name, ()):
                products = [
                    factors[token] * weight
                    for token, weight in zip(held.tokens, held.weights.tolist(), strict=True)
                    if token in factors
                ]
                if products:
                    score = min(math.fsum(products), float(np.finfo(np.float32).max))
                    scores[seq_no] = max(score, scores.get(seq_no, 0.0))
        return scores

    def bm25(self, leaf: Lexical) -> dict[int, float]:
        """Score every document by the formula in `Lexical`, in float64. No document may have been deleted."""
        counts = {seq_no: self.words(document, leaf.field) for seq_no, document in self.alive().items()}
        average = sum(words.total() for words in counts.values()) / max(len(counts), 1)
        queried = analyze(self.schema.fields[leaf.field].analyzer, leaf.text)
        scores = {}
        for seq_no, words in counts.items():
            found = [word for word in queried if word in words]
            if found and (not leaf.all_words or len(found) == len(queried)):
                scores[seq_no] = sum(_bm25_term(word, words, counts.values(), average) for word in found)
        return scores


def _between(condition: Range, value: Any) -> bool:
    lower = (condition.gte is None or value >= condition.gte) and (condition.gt is None or value > condition.gt)
    return (
        lower and (condition.lte is None or value <= condition.lte) and (condition.lt is None or value < condition.lt)
    )


def _bm25_term(word: str, words: Counter[str], all_words: Iterable[Counter[str]], average: float) -> float:
    holding = [word in other for other in all_words]
    frequency = sum(holding)
    rarity = math.log(1 + (len(holding) - frequency + 0.5) / (frequency + 0.5))
    norm = 1.2 * (0.25 + 0.75 * one_byte_length(words.total()) / average)
    return 2.2 * rarity * words[word] / (words[word] + norm)


def one_byte_length(length: int) -> int:
    """Round a length down to what Lucene's byte can hold: 4 significant bits, counted from 24 upwards."""
    if length < 24:  # noqa: PLR2004 - Lucene's constant
        return length
    rest = length - 24
    shift = max(rest.bit_length() - 4, 0)
    return 24 + (rest >> shift << shift)


def check_ranking(
    ranking: Ranking, scores: Mapping[int, float], depth: int, tolerance: float, count: int | None = None
) -> None:
    """Check a ranking against the true scores of all documents that match.

    `tolerance` is relative, for rounding; the ranking's own `max_error` comes on top. `count` is what was asked for.
    """
    listed, given = ranking.seq_nos.tolist(), ranking.scores.tolist()
    if ranking.counted:
        assert ranking.total == len(scores)
    else:
        assert count is not None
        assert max(count, len(listed)) <= ranking.total <= len(scores)
    assert ranking.exhausted == (ranking.counted and len(listed) == len(scores))
    assert ranking.counted or len(listed) == depth
    assert len(listed) == len(given) == len(set(listed)) == min(depth, len(scores))
    assert ranking.seq_nos.dtype == np.int64
    assert ranking.scores.dtype == np.float32
    pairs = list(zip(given, listed, strict=True))
    assert pairs == sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    for seq_no, score in zip(listed, given, strict=True):
        assert abs(score - scores[seq_no]) <= _slack(scores[seq_no], tolerance, ranking.max_error)
    for seq_no in set(scores) - set(listed):
        last = listed[-1]
        if scores[seq_no] == scores[last]:
            assert ranking.max_error or seq_no > last, f"{seq_no} ties with {last} and was written earlier"
        else:
            assert scores[seq_no] <= scores[last] + 2 * _slack(scores[last], tolerance, ranking.max_error)


def _slack(score: float, tolerance: float, max_error: float) -> float:
    return abs(score) * tolerance + max_error + 1e-37  # products below the smallest normal float32 lose digits
