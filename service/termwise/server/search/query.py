"""What a caller asks for: queries, retrievers and the request around them, as frozen values.

`at` of a query or retriever is its path in the request, such as `query.boolean.should[1].match`: messages name it.
Numbers here are checked already (`rpc.convert.search` refuses bad ones); fields are not (`resolve` knows the mapping).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from termwise.storage.types import SparseVector

MAX_HITS: Final = 10_000
"""`offset` and `size` together, and a rank window: as deep as a search looks."""

MAX_DEPTH: Final = 30
"""Levels of queries and retrievers in each other (Elasticsearch's `max_nested_depth`)."""

MAX_CLAUSES: Final = 1_024
"""Queries and retrievers in one request (Lucene's `maxClauseCount`)."""

MAX_VALUES: Final = 65_536
"""Values of one `terms`, ids of one `ids`, tokens of one `sparse_vector`."""

MAX_WORDS_LENGTH: Final = 100_000
"""Characters of the text of a `match`: each of its words is a clause of its own."""

DEFAULT_SIZE: Final = 10
DEFAULT_TRACK_TOTAL_HITS: Final = 10_000
DEFAULT_RRF_WINDOW: Final = 100
DEFAULT_LINEAR_WINDOW: Final = 1_000
DEFAULT_RANK_CONSTANT: Final = 60

JsonScalar: TypeAlias = str | int | float | bool
"""A value as JSON has it; `resolve` brings it to its field's type."""


@dataclass(frozen=True, slots=True)
class PruningConfig:
    """Which query tokens are left out; see `pruning.prune`. The defaults are Elasticsearch's.

    A token is frequent from `frequency_ratio` times the average frequency (1 to 100), light up to `weight_ratio` times
    the heaviest weight (0 to 1). `only_pruned` keeps the left-out tokens instead.
    """

    frequency_ratio: float = 5.0
    weight_ratio: float = 0.4
    only_pruned: bool = False


@dataclass(frozen=True, slots=True)
class MatchAll:
    """Every document, with the score `boost`."""

    boost: float = 1.0
    at: str = "query.match_all"


@dataclass(frozen=True, slots=True)
class Match:
    """Words of a text field, by BM25."""

    field: str
    text: str
    all_words: bool = False
    boost: float = 1.0
    at: str = "query.match"


@dataclass(frozen=True, slots=True)
class Term:
    """One exact value, with the score `boost`."""

    field: str
    value: JsonScalar
    boost: float = 1.0
    at: str = "query.term"


@dataclass(frozen=True, slots=True)
class Terms:
    """One of several exact values, with the score `boost`."""

    field: str
    values: tuple[JsonScalar, ...]
    boost: float = 1.0
    at: str = "query.terms"


@dataclass(frozen=True, slots=True)
class Range:
    """A value between bounds (at least one, at most one a side), with the score `boost`."""

    field: str
    gte: JsonScalar | None = None
    gt: JsonScalar | None = None
    lte: JsonScalar | None = None
    lt: JsonScalar | None = None
    boost: float = 1.0
    at: str = "query.range"


@dataclass(frozen=True, slots=True)
class Exists:
    """Any value in a field, with the score `boost`."""

    field: str
    boost: float = 1.0
    at: str = "query.exists"


@dataclass(frozen=True, slots=True)
class Ids:
    """Documents by id, with the score `boost`."""

    ids: tuple[str, ...]
    boost: float = 1.0
    at: str = "query.ids"


@dataclass(frozen=True, slots=True, eq=False)
class SparseVectorQuery:
    """Weighted tokens of the caller, by dot product."""

    field: str
    vector: SparseVector
    pruning: PruningConfig | None = None
    boost: float = 1.0
    at: str = "query.sparse_vector"


@dataclass(frozen=True, slots=True)
class TextExpansion:
    """Text that a deployment expands. An empty `deployment_id` means the field's search deployment."""

    field: str
    text: str
    deployment_id: str = ""
    pruning: PruningConfig | None = None
    boost: float = 1.0
    at: str = "query.text_expansion"


@dataclass(frozen=True, slots=True)
class Boolean:
    """Conditions combined; the score is the sum of the matching `must` and `should` clauses', times `boost`.

    `minimum_should_match` None: 1 where there is neither `must` nor `filter`, else 0.
    """

    must: tuple[Query, ...] = ()
    should: tuple[Query, ...] = ()
    filter: tuple[Query, ...] = ()
    must_not: tuple[Query, ...] = ()
    minimum_should_match: int | None = None
    boost: float = 1.0
    at: str = "query.boolean"


Query: TypeAlias = MatchAll | Match | Term | Terms | Range | Exists | Ids | SparseVectorQuery | TextExpansion | Boolean


class Normalizer(Enum):
    """How a list's scores are brought to one scale; `fusion` holds the formulas."""

    MAX = "max"
    MINMAX = "minmax"
    L2 = "l2"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Standard:
    """The list of one query. Hits below `min_score` are dropped."""

    query: Query
    filter: tuple[Query, ...] = ()
    min_score: float | None = None
    at: str = "retriever.standard"


@dataclass(frozen=True, slots=True)
class ShortForm:
    """One list a field: BM25 for text fields, expansion for sparse vector fields.

    `fields` are names with their weights ("title^2"); none means all such fields of the index.
    """

    text: str
    fields: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RankComponent:
    """A list and its weight in an RRF."""

    retriever: Retriever
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Rrf:
    """Reciprocal rank fusion of `parts`, `window` hits of each list."""

    parts: tuple[RankComponent, ...] | ShortForm
    window: int = DEFAULT_RRF_WINDOW
    rank_constant: int = DEFAULT_RANK_CONSTANT
    filter: tuple[Query, ...] = ()
    at: str = "retriever.rrf"


@dataclass(frozen=True, slots=True)
class ScoreComponent:
    """A list, its weight and its normaliser in a weighted sum."""

    retriever: Retriever
    weight: float = 1.0
    normalizer: Normalizer = Normalizer.MAX


@dataclass(frozen=True, slots=True)
class Linear:
    """Weighted sum of normalised scores, `window` hits of each list. `normalizer` is that of the short form's lists."""

    parts: tuple[ScoreComponent, ...] | ShortForm
    window: int = DEFAULT_LINEAR_WINDOW
    normalizer: Normalizer = Normalizer.MAX
    filter: tuple[Query, ...] = ()
    at: str = "retriever.linear"


Retriever: TypeAlias = Standard | Rrf | Linear


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One search.

    `sparse_vectors` names the sparse vector fields to give with each hit, "*" for all; without `source`, hits have no
    body. Documents are counted as far as `track_total_hits`.
    """

    index: str
    retriever: Retriever = Standard(MatchAll())
    size: int = DEFAULT_SIZE
    offset: int = 0
    min_score: float | None = None
    sparse_vectors: tuple[str, ...] = ()
    source: bool = True
    track_total_hits: int = DEFAULT_TRACK_TOTAL_HITS
