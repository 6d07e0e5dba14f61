"""The reference backend: plain Python over dictionaries, for tests and small indices. Nothing outlives the process.

It is written to be obviously right, not fast: every search walks every document.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from termwise.storage.analysis import analyze
from termwise.storage.checks import (
    Column,
    check_condition,
    check_depth,
    check_document,
    check_schema,
    condition_values,
    field_of,
    refusal,
)
from termwise.storage.errors import IndexExistsError, IndexMissingError
from termwise.storage.types import (
    AllOf,
    AnyOf,
    Condition,
    Delete,
    Everything,
    Exists,
    FieldKind,
    Ids,
    IndexSchema,
    IndexStatistics,
    Leaf,
    Lexical,
    Not,
    Nothing,
    Operation,
    Outcome,
    Put,
    Range,
    Ranking,
    Result,
    Sparse,
    SparseFieldStatistics,
    StoredDocument,
    Terms,
    TokenStatistics,
    Written,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from termwise.storage.types import Document

_K1: Final = np.float32(1.2)
_B: Final = np.float32(0.75)
_LARGEST: Final = np.finfo(np.float32).max


def _length_steps() -> list[int]:
    """List the 256 lengths that one byte can hold: exact to 40, then ever coarser (Lucene's SmallFloat)."""
    steps = list(range(24))
    for code in range(256 - 24):
        bits, shift = code & 7, code >> 3
        steps.append(24 + (bits if shift == 0 else (bits | 8) << (shift - 1)))
    return steps


LENGTH_STEPS: Final = np.array(_length_steps(), dtype=np.int64)
"""Lengths that one byte can hold, ascending; a length counts as the largest step that is not above it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """A document, cut and indexed."""

    seq_no: int
    document: Document
    words: Mapping[str, Counter[str]]
    columns: Mapping[str, tuple[Column, ...]]
    vectors: Mapping[str, tuple[Mapping[str, np.float32], ...]]
    """Weights by token, a vector each."""


class MemoryReader:
    """Reads a frozen set of rows."""

    def __init__(self, schema: IndexSchema, rows: Mapping[str, _Row], last_seq_no: int) -> None:
        """Take rows by document id; they must not change any more."""
        self._schema = schema
        self._rows = rows
        self._last_seq_no = last_seq_no

    @cached_property
    def _by_seq_no(self) -> dict[int, _Row]:
        return {row.seq_no: row for row in sorted(self._rows.values(), key=lambda row: row.seq_no)}

    def get(self, ids: Sequence[str]) -> list[StoredDocument | None]:
        """See `IndexReader.get`."""
        return [_stored(self._rows[id_]) if id_ in self._rows else None for id_ in ids]

    def fetch(
        self, seq_nos: NDArray[np.int64], *, source: bool = True, sparse: Collection[str] | None = None
    ) -> list[StoredDocument]:
        """See `IndexReader.fetch`."""
        return [_stored(self._by_seq_no[seq_no], source=source, sparse=sparse) for seq_no in seq_nos.tolist()]

    def rank(self, leaf: Leaf, depth: int, where: Condition | None = None, *, count: int | None = None) -> Ranking:
        """See `IndexReader.rank`. It counts no further than it is asked to, so that callers meet that case."""
        check_depth(depth, count)
        scores = self._scores(leaf)
        if where is not None:
            check_condition(self._schema, where)
            scores = {n: score for n, score in scores.items() if self._matches(self._by_seq_no[n], where)}
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:depth]
        total = len(scores) if count is None else max(len(best), min(count, len(scores)))
        return Ranking(
            np.array([seq_no for seq_no, _ in best], dtype=np.int64),
            np.array([score for _, score in best], dtype=np.float32),
            total,
            counted=total == len(scores),
        )

    def score(self, leaf: Leaf, seq_nos: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `IndexReader.score`."""
        scores = self._scores(leaf)
        return np.array([scores.get(seq_no, np.nan) for seq_no in seq_nos.tolist()], dtype=np.float32)

    def match(self, where: Condition) -> NDArray[np.int64]:
        """See `IndexReader.match`."""
        check_condition(self._schema, where)
        return np.array([n for n, row in self._by_seq_no.items() if self._matches(row, where)], dtype=np.int64)

    def token_statistics(self, field: str, tokens: Sequence[str]) -> TokenStatistics:
        """See `IndexReader.token_statistics`."""
        field_of(self._schema, field, {FieldKind.SPARSE_VECTOR})
        vectors = [vector for row in self._rows.values() for vector in row.vectors.get(field, ())]
        frequencies = Counter(token for vector in vectors for token in vector)
        return TokenStatistics(
            document_count=len(vectors),
            token_count=len(frequencies),
            posting_count=frequencies.total(),
            frequencies=np.array([frequencies[token] for token in tokens], dtype=np.int64),
        )

    def statistics(self) -> IndexStatistics:
        """See `IndexReader.statistics`."""
        sparse = {}
        for name, spec in self._schema.fields.items():
            if spec.kind is FieldKind.SPARSE_VECTOR:
                counts = self.token_statistics(name, ())
                sparse[name] = SparseFieldStatistics(counts.document_count, counts.token_count, counts.posting_count)
        return IndexStatistics(len(self._rows), 0, self._last_seq_no, sparse)

    def _scores(self, leaf: Leaf) -> dict[int, np.float32]:
        check_condition(self._schema, leaf)
        if isinstance(leaf, Lexical):
            return self._bm25(leaf)
        queried = dict(zip(leaf.vector.tokens, leaf.vector.weights, strict=True))
        scores: dict[int, np.float32] = {}
        for seq_no, row in self._by_seq_no.items():
            found = [_dot(queried, vector) for vector in row.vectors.get(leaf.field, ())]
            matched = [score for score in found if score is not None]
            if matched:
                scores[seq_no] = max(matched)
        return scores

    def _bm25(self, leaf: Lexical) -> dict[int, np.float32]:
        """Score by tantivy's formula in tantivy's precision, float32 throughout."""
        words = analyze(field_of(self._schema, leaf.field).analyzer, leaf.text)
        counts = {n: row.words.get(leaf.field, Counter()) for n, row in self._by_seq_no.items()}
        total = np.float32(len(counts))
        average = np.float32(sum(count.total() for count in counts.values())) / max(total, np.float32(1))
        scores: dict[int, np.float32] = {}
        matched: Counter[int] = Counter()
        for word in words:
            frequency = np.float32(sum(word in count for count in counts.values()))
            rarity = (total - frequency + np.float32(0.5)) / (frequency + np.float32(0.5))
            weight = np.log(np.float32(1) + rarity) * (np.float32(1) + _K1)
            for seq_no, count in counts.items():
                if word in count:
                    length = LENGTH_STEPS[np.searchsorted(LENGTH_STEPS, count.total(), side="right") - 1]
                    norm = _K1 * (np.float32(1) - _B + _B * np.float32(length) / average)
                    occurrences = np.float32(count[word])
                    score = weight * (occurrences / (occurrences + norm))
                    scores[seq_no] = scores.get(seq_no, np.float32(0)) + score
                    matched[seq_no] += 1
        if leaf.all_words:
            return {seq_no: score for seq_no, score in scores.items() if matched[seq_no] == len(words)}
        return scores

    def _matches(self, row: _Row, condition: Condition) -> bool:
        match condition:
            case Everything() | Nothing():
                return isinstance(condition, Everything)
            case Ids(ids):
                return row.document.id in ids
            case Not(inner):
                return not self._matches(row, inner)
            case AllOf(conditions):
                return all(self._matches(row, part) for part in conditions)
            case AnyOf(conditions, minimum):
                return sum(self._matches(row, part) for part in conditions) >= minimum
            case _:
                return self._holds(row, condition)

    def _holds(self, row: _Row, condition: Terms | Range | Exists | Lexical | Sparse) -> bool:
        """Tell whether a document matches the condition on one field."""
        match condition:
            case Terms(name, values):
                wanted = condition_values(self._schema, name, values)
                return any(value in wanted for value in row.columns.get(name, ()))
            case Range():
                return any(self._within(condition, value) for value in row.columns.get(condition.field, ()))
            case Exists(name):
                texts, columns = row.document.texts.get(name), row.columns.get(name)
                return bool(texts) or bool(columns) or name in row.vectors
            case Lexical(name, text, all_words):
                words = analyze(field_of(self._schema, name).analyzer, text)
                held = row.words.get(name, Counter())
                return bool(words) and (all if all_words else any)(word in held for word in words)
            case _:
                vectors = row.vectors.get(condition.field, ())
                return any(token in vector for vector in vectors for token in condition.vector.tokens)

    def _within(self, condition: Range, value: Column) -> bool:
        names = ("gte", "gt", "lte", "lt")
        given = [(name, bound) for name in names if (bound := getattr(condition, name)) is not None]
        bounds = condition_values(self._schema, condition.field, [bound for _, bound in given])
        compare = {
            "gte": lambda bound: value >= bound,
            "gt": lambda bound: value > bound,
            "lte": lambda bound: value <= bound,
            "lt": lambda bound: value < bound,
        }
        return all(compare[name](bound) for (name, _), bound in zip(given, bounds, strict=True))


def _dot(queried: Mapping[str, np.float32], held: Mapping[str, np.float32]) -> np.float32 | None:
    shared = [token for token in queried if token in held]
    with np.errstate(over="ignore", under="ignore"):
        score = np.float32(0)
        for token in shared:
            score += queried[token] * held[token]
    return min(score, _LARGEST) if shared else None


def _stored(row: _Row, *, source: bool = True, sparse: Collection[str] | None = None) -> StoredDocument:
    document = row.document
    held = {name: tuple(each) for name, each in document.vectors().items() if sparse is None or name in sparse}
    return StoredDocument(
        document.id,
        row.seq_no,
        document.source if source else b"",
        {name: each[0] for name, each in held.items() if len(each) == 1},
        {name: each for name, each in held.items() if len(each) > 1},
    )


class MemoryIndex:
    """An index in memory. A write copies the table of rows, so that readers keep theirs."""

    def __init__(self, schema: IndexSchema) -> None:
        """Start empty."""
        self._schema = schema
        self._rows: Mapping[str, _Row] = {}
        self._last_seq_no = 0
        self._writing = threading.Lock()

    @property
    def schema(self) -> IndexSchema:
        """See `SparseIndex.schema`."""
        return self._schema

    def write(self, operations: Sequence[Operation]) -> list[Outcome]:
        """See `SparseIndex.write`."""
        checked = {
            place: check_document(self._schema, operation.document)
            for place, operation in enumerate(operations)
            if isinstance(operation, Put)
        }
        with self._writing:
            rows = dict(self._rows)
            outcomes: list[Outcome] = []
            last = self._last_seq_no
            for place, operation in enumerate(operations):
                id_ = operation.id if isinstance(operation, Delete) else operation.document.id
                found = rows[id_].seq_no if id_ in rows else 0
                error = refusal(operation, id_, found)
                if error is not None:
                    outcomes.append(error)
                    continue
                last += 1
                if isinstance(operation, Delete):
                    del rows[id_]
                    outcomes.append(Written(id_, last, Result.DELETED))
                else:
                    rows[id_] = self._row(last, operation.document, checked[place])
                    outcomes.append(Written(id_, last, Result.UPDATED if found else Result.CREATED))
            self._rows, self._last_seq_no = rows, last
        return outcomes

    def _row(self, seq_no: int, document: Document, columns: Mapping[str, tuple[Column, ...]]) -> _Row:
        words = {
            name: Counter(word for text in texts for word in analyze(self._schema.fields[name].analyzer, text))
            for name, texts in document.texts.items()
        }
        vectors = {
            name: tuple(dict(zip(vector.tokens, vector.weights, strict=True)) for vector in held)
            for name, held in document.vectors().items()
        }
        return _Row(seq_no, document, words, columns, vectors)

    def reader(self) -> MemoryReader:
        """See `SparseIndex.reader`."""
        with self._writing:
            return MemoryReader(self._schema, self._rows, self._last_seq_no)

    def close(self) -> None:
        """See `SparseIndex.close`."""


class MemoryStore:
    """Indices in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        """Start empty; `folder` is not used."""
        del folder
        self._indices: dict[str, MemoryIndex] = {}
        self._lock = threading.Lock()

    def create(self, name: str, schema: IndexSchema) -> None:
        """See `IndexStore.create`."""
        check_schema(schema)
        with self._lock:
            if name in self._indices:
                raise IndexExistsError(f'Index "{name}" exists.')
            self._indices[name] = MemoryIndex(schema)

    def open(self, name: str) -> MemoryIndex:
        """See `IndexStore.open`."""
        with self._lock:
            if name not in self._indices:
                raise IndexMissingError(f'Index "{name}" does not exist.')
            return self._indices[name]

    def list(self) -> list[str]:
        """See `IndexStore.list`."""
        with self._lock:
            return sorted(self._indices)

    def drop(self, name: str) -> None:
        """See `IndexStore.drop`."""
        with self._lock:
            if self._indices.pop(name, None) is None:
                raise IndexMissingError(f'Index "{name}" does not exist.')

    def close(self) -> None:
        """See `IndexStore.close`."""
