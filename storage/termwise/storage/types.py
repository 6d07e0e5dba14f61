"""Values that pass through the storage port. They know nothing of tantivy, gRPC or models."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from termwise.storage.errors import OperationError

Scalar: TypeAlias = str | int | float | bool
"""A column's value. A date is an int: microseconds since 1970, UTC."""

SMALLEST_WEIGHT: Final = float(np.finfo(np.float32).tiny)
"""Weights are at least this: 1.17549435E-38, the smallest normal float32 (Elasticsearch's and Lucene's limit)."""

MAX_TOKEN_BYTES: Final = 1024
"""Longest token of a sparse vector in UTF-8 bytes."""

MAX_ID_BYTES: Final = 512
"""Longest document id in UTF-8 bytes."""

MAX_KEYWORD_BYTES: Final = 32_766
"""Longest keyword value in UTF-8 bytes (Lucene's limit)."""

MAX_CHUNKS: Final = 10_000
"""Most vectors of one sparse field in a document (Elasticsearch's limit of nested objects, which its chunks are)."""


class FieldKind(Enum):
    """What a field holds."""

    TEXT = "text"
    KEYWORD = "keyword"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATE = "date"
    SPARSE_VECTOR = "sparse_vector"


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of a schema; `analyzer` is for TEXT alone (see `termwise.storage.analysis`)."""

    kind: FieldKind
    analyzer: str = "standard"


@dataclass(frozen=True, slots=True)
class IndexSchema:
    """The searchable fields of an index by name. Names are opaque to storage: a dot in one means nothing."""

    fields: Mapping[str, FieldSpec]


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """Weighted tokens, heaviest first, ties by token.

    `tokens[i]` weighs `weights[i]`; `weights` is float32 of shape `[len(tokens)]`, read-only. Make one with
    `sparse_vector`, which sorts and checks, unless the input is known to be sorted, distinct and valid.
    """

    tokens: tuple[str, ...]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        """Compare tokens and weights exactly."""
        return (
            isinstance(other, SparseVector)
            and self.tokens == other.tokens
            and bool(np.array_equal(self.weights, other.weights))
        )

    __hash__ = None  # type: ignore[assignment]


_LARGEST_WEIGHT: Final = float(np.finfo(np.float32).max)
_NO_VECTOR: Final = SparseVector((), np.empty(0, np.float32))
_NO_VECTOR.weights.flags.writeable = False


def sparse_vector(tokens: Sequence[str], weights: Sequence[float] | NDArray[np.float32]) -> SparseVector:
    """Make a sorted, checked vector.

    Raises:
        ValueError: one sentence that names the offending token: lists of unequal length, a token that is empty, too
            long or stands twice, a weight that is not finite or below `SMALLEST_WEIGHT`.

    """
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or len(tokens) != len(values):
        msg = f"{len(tokens)} tokens cannot pair with {values.size} weights; give one weight a token."
        raise ValueError(msg)
    if not len(values):
        return _NO_VECTOR
    with np.errstate(over="ignore", under="ignore"):
        singles = values.astype(np.float32)
    # The extremes say all; a NaN is neither above nor below anything.
    if not SMALLEST_WEIGHT <= float(singles.min()) <= float(singles.max()) <= _LARGEST_WEIGHT:
        good = np.isfinite(singles) & (singles >= np.float32(SMALLEST_WEIGHT))
        place = int(np.flatnonzero(~good)[0])
        msg = (
            f"Token {tokens[place]!r} weighs {values[place]}; "
            f"weights must be finite and at least {SMALLEST_WEIGHT:.8E}."
        )
        raise ValueError(msg)
    if len(set(tokens)) != len(tokens):
        twice = next(token for token in tokens if list(tokens).count(token) > 1)
        msg = f"Token {twice!r} stands more than once; add its weights up first."
        raise ValueError(msg)
    if "" in tokens or max(map(len, tokens)) * 4 > MAX_TOKEN_BYTES:  # a character takes 4 bytes at most
        for token in tokens:
            if not token or len(token.encode()) > MAX_TOKEN_BYTES:
                shown = token if len(token) <= 40 else token[:40] + "…"  # noqa: PLR2004 - as much as a message bears
                msg = f"Token {shown!r} is {len(token.encode())} bytes long; tokens are 1 to {MAX_TOKEN_BYTES:,} bytes."
                raise ValueError(msg)
    if not (singles[1:] < singles[:-1]).all():  # most callers give vectors as they got them: sorted
        by_token = sorted(range(len(tokens)), key=tokens.__getitem__)
        order = np.array(by_token)[np.argsort(-singles[by_token], kind="stable")]
        singles = singles[order]
        tokens = [tokens[place] for place in order.tolist()]
    singles.flags.writeable = False
    return SparseVector(tuple(tokens), singles)


@dataclass(frozen=True, slots=True)
class Document:
    """A document as storage takes and gives it.

    `source` is the body as JSON text in UTF-8, kept verbatim. `texts`, `columns`, `sparse` and `chunks` are what the
    schema's fields hold, by field name; a field that is absent or empty has no value. Several values of a field all
    count. A sparse vector field has one vector, in `sparse`, or several, the chunks of a long text, in `chunks`; it
    stands in one of the two alone. Chunks keep their order, and may be equal; there are MAX_CHUNKS a field at most.
    """

    id: str
    source: bytes
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    columns: Mapping[str, Sequence[Scalar]] = field(default_factory=dict)
    sparse: Mapping[str, SparseVector] = field(default_factory=dict)
    chunks: Mapping[str, Sequence[SparseVector]] = field(default_factory=dict)

    def vectors(self) -> dict[str, Sequence[SparseVector]]:
        """Give the vectors of each sparse field that has any."""
        return _vectors(self.sparse, self.chunks)


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document that a read gives: its body, its sparse vectors and its version (`seq_no`), as far as asked for.

    A field of one vector stands in `sparse`, also one that was written as a single chunk; one of several in `chunks`.
    """

    id: str
    seq_no: int
    source: bytes
    sparse: Mapping[str, SparseVector]
    chunks: Mapping[str, tuple[SparseVector, ...]] = field(default_factory=dict)

    def vectors(self) -> dict[str, Sequence[SparseVector]]:
        """Give the vectors of each sparse field that has any."""
        return _vectors(self.sparse, self.chunks)


def _vectors(
    sparse: Mapping[str, SparseVector], chunks: Mapping[str, Sequence[SparseVector]]
) -> dict[str, Sequence[SparseVector]]:
    return {name: (vector,) for name, vector in sparse.items()} | {name: held for name, held in chunks.items() if held}


@dataclass(frozen=True, slots=True)
class Put:
    """Write a document.

    `create`: it must not exist (else DocumentExists). `if_version`: it must have this seq_no, 0 for not existing
    (else VersionConflict).
    """

    document: Document
    create: bool = False
    if_version: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a document by id; DocumentMissing where there is none, VersionConflict as for Put."""

    id: str
    if_version: int | None = None


Operation: TypeAlias = Put | Delete


class Result(Enum):
    """What a write did."""

    CREATED = auto()
    UPDATED = auto()
    DELETED = auto()


@dataclass(frozen=True, slots=True)
class Written:
    """A write that worked, and its seq_no."""

    id: str
    seq_no: int
    result: Result


Outcome: TypeAlias = "Written | OperationError"


# Conditions: which documents match, without a score.


@dataclass(frozen=True, slots=True)
class Everything:
    """Every document."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """No document."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Documents with at least one of the values in a KEYWORD, INTEGER, NUMBER, BOOLEAN or DATE field."""

    field: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Documents with a value between the bounds; each bound is None or of the field's own type.

    Keywords compare by UTF-8 bytes. Without bounds, every document with a value. One value must meet all bounds.
    """

    field: str
    gte: Scalar | None = None
    gt: Scalar | None = None
    lte: Scalar | None = None
    lt: Scalar | None = None


@dataclass(frozen=True, slots=True)
class Exists:
    """Documents with at least one value in a field of any kind.

    An empty sparse vector is a value; so is an empty text.
    """

    field: str


@dataclass(frozen=True, slots=True)
class Ids:
    """Documents by id."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Documents that do not match."""

    condition: Condition


@dataclass(frozen=True, slots=True)
class AllOf:
    """Documents that match all conditions; with none, every document."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Documents that match at least `minimum` conditions (1 or more); with fewer conditions than that, no document."""

    conditions: tuple[Condition, ...]
    minimum: int = 1


# Scored leaves: a condition and a score. A leaf can stand wherever a condition can.


@dataclass(frozen=True, slots=True)
class Lexical:
    """BM25 (k1 = 1.2, b = 0.75) of a TEXT field; the field's analyzer cuts `text`.

    A document matches that has any word, or all. Text of which the analyzer leaves nothing matches nothing. A word that
    stands twice counts twice. A term scores `(k1 + 1) * idf * tf / (tf + k1 * (1 - b + b * length / average))` with
    `idf = ln(1 + (N - df + 0.5) / (df + 0.5))`; lengths are kept in one byte, as Lucene does. N counts the index's
    documents, and `average` is words in the field over N. Deleted documents may count until they are merged away.
    """

    field: str
    text: str
    all_words: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """The dot product of `vector` and a SPARSE_VECTOR field. A document matches that shares a token.

    Products are added in float32, heaviest query token first; a sum beyond the largest float32 is that float32. A
    document of several vectors scores as the best of them does alone: tokens of two chunks never add up.
    """

    field: str
    vector: SparseVector


Leaf: TypeAlias = Lexical | Sparse
Condition: TypeAlias = Everything | Nothing | Terms | Range | Exists | Ids | Not | AllOf | AnyOf | Lexical | Sparse


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The best documents of a leaf.

    `seq_nos` (int64) and `scores` (float32) have equal length, ordered by score descending, then seq_no ascending.
    `total` documents match in all, or at least so many where `counted` is False; it is never below the ranking's own
    length. `exhausted`: the ranking is known to hold every one of them. Scores are off by at most `max_error`, 0 for
    exact ones.
    """

    seq_nos: NDArray[np.int64]
    scores: NDArray[np.float32]
    total: int
    max_error: float = 0.0
    counted: bool = True

    @property
    def exhausted(self) -> bool:
        """Whether no document is missing."""
        return self.counted and len(self.seq_nos) >= self.total


@dataclass(frozen=True, slots=True, eq=False)
class TokenStatistics:
    """Frequencies of a sparse field, for token pruning.

    All are counts of vectors: each chunk is one, as in Elasticsearch, where it is a Lucene document of its own. The
    field has `document_count` (N) of them, with `token_count` distinct tokens (U) and `posting_count` weights in all
    (S). `frequencies[i]` (int64) is the number of vectors that hold the i-th token asked for. Deleted documents may
    count until the backend merges them away.
    """

    document_count: int
    token_count: int
    posting_count: int
    frequencies: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SparseFieldStatistics:
    """Counts of a sparse field; its documents are vectors, as in `TokenStatistics`."""

    document_count: int
    token_count: int
    posting_count: int


@dataclass(frozen=True, slots=True)
class IndexStatistics:
    """Counts of an index.

    Documents alive, bytes on disk (0 in memory), the newest seq_no (0 before the first write).
    """

    document_count: int
    size_bytes: int
    last_seq_no: int
    sparse_fields: Mapping[str, SparseFieldStatistics]
