"""Search requests from protobuf to values, and results back. Every refusal names the path of what it refuses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.duration_pb2 import Duration
from termwise.server.errors import invalid_field
from termwise.server.identifiers import check_identifier
from termwise.server.indices.source_filter import SourceFilter
from termwise.server.rpc.convert.document import (
    check_source_format,
    fill_body,
    fill_vectors,
    sparse_vector_from_proto,
    sparse_vector_to_proto,
    value_from_proto,
)
from termwise.server.search import query as q
from termwise.storage.types import MAX_ID_BYTES
from termwise.v1 import search_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from google.protobuf.message import Message
    from google.protobuf.struct_pb2 import Value
    from termwise.server.search.searcher import SearchResult
    from termwise.storage.types import SparseVector
    from termwise.v1 import sparse_vector_pb2

_OPERATORS: Final = {
    search_pb2.MatchQuery.OPERATOR_UNSPECIFIED: False,
    search_pb2.MatchQuery.OPERATOR_OR: False,
    search_pb2.MatchQuery.OPERATOR_AND: True,
}
_NORMALIZERS: Final = {
    search_pb2.LinearRetriever.NORMALIZER_MAX: q.Normalizer.MAX,
    search_pb2.LinearRetriever.NORMALIZER_MINMAX: q.Normalizer.MINMAX,
    search_pb2.LinearRetriever.NORMALIZER_L2: q.Normalizer.L2,
    search_pb2.LinearRetriever.NORMALIZER_NONE: q.Normalizer.NONE,
}
_SCALARS: Final = frozenset({"string_value", "number_value", "bool_value"})
_FREQUENCY_RATIO: Final = (1.0, 100.0)
_WEIGHT_RATIO: Final = (0.0, 1.0)


def search_request(message: search_pb2.SearchRequest) -> q.SearchRequest:
    """Read a SearchRequest.

    Raises:
        InvalidArgumentError: something in it cannot work, whatever the index holds.

    """
    if len(message.indices) != 1:
        raise invalid_field("indices", f"It names {len(message.indices)} indices; name exactly one.")
    index = check_identifier(message.indices[0], "indices[0]")
    size = message.size if message.HasField("size") else q.DEFAULT_SIZE
    _check_page(size, message.offset)
    reader = _Reader(needed=message.offset + size)
    target = message.WhichOneof("target")
    retriever: q.Retriever
    if target == "retriever":
        retriever = reader.retriever(message.retriever, "retriever", 1)
    elif target == "query":
        retriever = q.Standard(reader.query(message.query, "query", 1), at="query")
    else:
        retriever = q.Standard(q.MatchAll())
    check_source_format(message.source_format)
    return q.SearchRequest(
        index=index,
        retriever=retriever,
        size=size,
        offset=message.offset,
        min_score=_finite(message, "min_score", "min_score"),
        sparse_vectors=tuple(message.include_sparse_vectors),
    )


def _check_page(size: int, offset: int) -> None:
    """Refuse a page that is negative or too deep."""
    for name, number in (("size", size), ("offset", offset)):
        if number < 0:
            raise invalid_field(name, f"It is {number}; give 0 or more.")
        if number > q.MAX_HITS:
            raise invalid_field(name, f"It is {number:,}; offset and size together are at most {q.MAX_HITS:,}.")
    if offset + size > q.MAX_HITS:
        raise invalid_field(
            "offset", f"Offset and size are {offset + size:,} together; they are at most {q.MAX_HITS:,}."
        )


@dataclass(slots=True)
class _Reader:
    """Reads one request's queries and retrievers, and counts them. `needed` is `offset` + `size`."""

    needed: int
    clauses: int = 0

    def query(self, message: search_pb2.Query, path: str, depth: int) -> q.Query:
        """Read a query that stands at `path`, `depth` levels down."""
        kind = message.WhichOneof("kind")
        if kind is None:
            raise invalid_field(path, "It is empty; give one kind of query, such as match.")
        at = f"{path}.{kind}"
        self._count(at, depth)
        inner = getattr(message, kind)
        if kind == "boolean":
            return self._boolean(inner, at, depth)
        return _LEAVES[kind](inner, at)

    def queries(self, messages: Iterable[search_pb2.Query], path: str, depth: int) -> tuple[q.Query, ...]:
        """Read a repeated field of queries."""
        return tuple(self.query(message, f"{path}[{place}]", depth) for place, message in enumerate(messages))

    def retriever(self, message: search_pb2.Retriever, path: str, depth: int) -> q.Retriever:
        """Read a retriever that stands at `path`, `depth` levels down."""
        kind = message.WhichOneof("kind")
        if kind is None:
            raise invalid_field(path, "It is empty; give one kind of retriever: standard, rrf or linear.")
        at = f"{path}.{kind}"
        self._count(at, depth)
        if kind == "standard":
            return self._standard(message.standard, at, depth)
        if kind == "rrf":
            return self._rrf(message.rrf, at, depth)
        return self._linear(message.linear, at, depth)

    def _count(self, at: str, depth: int) -> None:
        """Refuse what is too deep or too much."""
        if depth > q.MAX_DEPTH:
            raise invalid_field(at, f"It is nested more than {q.MAX_DEPTH} levels deep; make the request flatter.")
        self.clauses += 1
        if self.clauses > q.MAX_CLAUSES:
            raise invalid_field(at, f"The request has more than {q.MAX_CLAUSES:,} clauses; use terms for many values.")

    def _boolean(self, message: search_pb2.BooleanQuery, at: str, depth: int) -> q.Boolean:
        minimum = message.minimum_should_match if message.HasField("minimum_should_match") else None
        if minimum is not None and minimum < 0:
            raise invalid_field(f"{at}.minimum_should_match", f"It is {minimum}; give 0 or more.")
        return q.Boolean(
            must=self.queries(message.must, f"{at}.must", depth + 1),
            should=self.queries(message.should, f"{at}.should", depth + 1),
            filter=self.queries(message.filter, f"{at}.filter", depth + 1),
            must_not=self.queries(message.must_not, f"{at}.must_not", depth + 1),
            minimum_should_match=minimum,
            boost=_boost(message, at),
            at=at,
        )

    def _standard(self, message: search_pb2.StandardRetriever, at: str, depth: int) -> q.Standard:
        query: q.Query = q.MatchAll(at=at)
        if message.HasField("query"):
            query = self.query(message.query, f"{at}.query", depth + 1)
        return q.Standard(
            query,
            filter=self.queries(message.filter, f"{at}.filter", depth + 1),
            min_score=_finite(message, "min_score", f"{at}.min_score"),
            at=at,
        )

    def _rrf(self, message: search_pb2.RrfRetriever, at: str, depth: int) -> q.Rrf:
        short = _short_form(message, at)
        constant = message.rank_constant if message.HasField("rank_constant") else q.DEFAULT_RANK_CONSTANT
        if constant < 1:
            raise invalid_field(f"{at}.rank_constant", f"It is {constant}; give 1 or more.")
        return q.Rrf(
            parts=short
            or tuple(
                q.RankComponent(self._component(part, f"{at}.retrievers[{place}]", depth), _weight(part, at, place))
                for place, part in enumerate(message.retrievers)
            ),
            window=self._window(message, at, q.DEFAULT_RRF_WINDOW),
            rank_constant=constant,
            filter=self.queries(message.filter, f"{at}.filter", depth + 1),
            at=at,
        )

    def _linear(self, message: search_pb2.LinearRetriever, at: str, depth: int) -> q.Linear:
        short = _short_form(message, at)
        common = _normalizer(message.normalizer, f"{at}.normalizer", q.Normalizer.MAX)
        return q.Linear(
            parts=short
            or tuple(
                q.ScoreComponent(
                    self._component(part, f"{at}.retrievers[{place}]", depth),
                    _weight(part, at, place),
                    _normalizer(part.normalizer, f"{at}.retrievers[{place}].normalizer", common),
                )
                for place, part in enumerate(message.retrievers)
            ),
            window=self._window(message, at, q.DEFAULT_LINEAR_WINDOW),
            normalizer=common,
            filter=self.queries(message.filter, f"{at}.filter", depth + 1),
            at=at,
        )

    def _component(
        self, message: search_pb2.RrfRetriever.Component | search_pb2.LinearRetriever.Component, path: str, depth: int
    ) -> q.Retriever:
        if not message.HasField("retriever"):
            raise invalid_field(f"{path}.retriever", "It is absent; give a retriever.")
        return self.retriever(message.retriever, f"{path}.retriever", depth + 1)

    def _window(self, message: search_pb2.RrfRetriever | search_pb2.LinearRetriever, at: str, default: int) -> int:
        if not message.HasField("rank_window_size"):
            return max(default, self.needed)
        window = message.rank_window_size
        if not 1 <= window <= q.MAX_HITS:
            raise invalid_field(f"{at}.rank_window_size", f"It is {window:,}; give 1 to {q.MAX_HITS:,}.")
        if window < self.needed:
            raise invalid_field(
                f"{at}.rank_window_size",
                f"It is {window:,}, less than offset and size together; give {self.needed:,} or more.",
            )
        return window


def _short_form(message: search_pb2.RrfRetriever | search_pb2.LinearRetriever, at: str) -> q.ShortForm | None:
    """Read `text` and `fields`; None where the request gives `retrievers`."""
    if message.retrievers:
        if message.text or message.fields:
            raise invalid_field(f"{at}.retrievers", "Give either retrievers, or text and fields, not both.")
        return None
    if not message.text.strip():
        if message.text or message.fields:
            raise invalid_field(f"{at}.text", "It is an empty query; give the text to search for.")
        raise invalid_field(at, "It has neither retrievers nor text; give one of the two.")
    return q.ShortForm(
        message.text,
        tuple(_weighted_field(spec, f"{at}.fields[{place}]") for place, spec in enumerate(message.fields)),
    )


def _weighted_field(spec: str, path: str) -> tuple[str, float]:
    """Cut "title^2" in two."""
    name, caret, number = spec.rpartition("^")
    if not caret:
        return spec, 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight < 0:
        raise invalid_field(path, f"{_shown(number)} is no weight; after ^ give a number of 0 or more.")
    return name, weight


def _weight(message: Message, at: str, place: int) -> float:
    return _not_negative(message, "weight", f"{at}.retrievers[{place}].weight", 1.0)


def _boost(message: Message, at: str) -> float:
    return _not_negative(message, "boost", f"{at}.boost", 1.0)


def _not_negative(message: Message, name: str, path: str, default: float) -> float:
    """Read an optional number of 0 or more."""
    number = _finite(message, name, path)
    if number is None:
        return default
    if number < 0:
        raise invalid_field(path, f"It is {number:g}; give 0 or more.")
    return number


def _finite(message: Message, name: str, path: str) -> float | None:
    """Read an optional number that must be finite."""
    if not message.HasField(name):
        return None
    number = float(getattr(message, name))
    if not math.isfinite(number):
        raise invalid_field(path, f"It is {number}; give a finite number.")
    return number


def _normalizer(value: int, path: str, default: q.Normalizer) -> q.Normalizer:
    if value == search_pb2.LinearRetriever.NORMALIZER_UNSPECIFIED:
        return default
    known = _NORMALIZERS.get(value)  # type: ignore[call-overload]
    if known is None:
        raise invalid_field(path, f"There is no normalizer {value}; take one of Normalizer.")
    return known  # type: ignore[no-any-return]


def _match_all(message: search_pb2.MatchAllQuery, at: str) -> q.Query:
    return q.MatchAll(_boost(message, at), at)


def _match(message: search_pb2.MatchQuery, at: str) -> q.Query:
    all_words = _OPERATORS.get(message.operator)
    if all_words is None:
        raise invalid_field(f"{at}.operator", f"There is no operator {message.operator}; take one of Operator.")
    return q.Match(_field(message, at), message.text, all_words, _boost(message, at), at)


def _term(message: search_pb2.TermQuery, at: str) -> q.Query:
    if not message.HasField("value"):
        raise invalid_field(f"{at}.value", "It is absent; give a string, a number or a boolean.")
    return q.Term(_field(message, at), _scalar(message.value, f"{at}.value"), _boost(message, at), at)


def _terms(message: search_pb2.TermsQuery, at: str) -> q.Query:
    _check_count(len(message.values), f"{at}.values")
    values = tuple(_scalar(value, f"{at}.values[{place}]") for place, value in enumerate(message.values))
    return q.Terms(_field(message, at), values, _boost(message, at), at)


def _range(message: search_pb2.RangeQuery, at: str) -> q.Query:
    bounds = {
        name: _scalar(getattr(message, name), f"{at}.{name}")
        for name in ("gte", "gt", "lte", "lt")
        if message.HasField(name)
    }
    if not bounds:
        raise invalid_field(at, "It has no bound; give at least one of gte, gt, lte and lt.")
    for inclusive, exclusive in (("gte", "gt"), ("lte", "lt")):
        if inclusive in bounds and exclusive in bounds:
            raise invalid_field(f"{at}.{exclusive}", f"Give either {inclusive} or {exclusive}, not both.")
    return q.Range(_field(message, at), boost=_boost(message, at), at=at, **bounds)


def _exists(message: search_pb2.ExistsQuery, at: str) -> q.Query:
    return q.Exists(_field(message, at), _boost(message, at), at)


def _ids(message: search_pb2.IdsQuery, at: str) -> q.Query:
    _check_count(len(message.ids), f"{at}.ids")
    for place, id_ in enumerate(message.ids):
        if not 1 <= len(id_.encode()) <= MAX_ID_BYTES:
            raise invalid_field(
                f"{at}.ids[{place}]", f"It has {len(id_.encode()):,} bytes; ids have 1 to {MAX_ID_BYTES}."
            )
    return q.Ids(tuple(message.ids), _boost(message, at), at)


def _sparse_vector(message: search_pb2.SparseVectorQuery, at: str) -> q.Query:
    return q.SparseVectorQuery(
        _field(message, at),
        _vector(message.vector, f"{at}.vector"),
        _pruning(message, at),
        _boost(message, at),
        at,
    )


def _text_expansion(message: search_pb2.TextExpansionQuery, at: str) -> q.Query:
    if not message.text.strip():
        raise invalid_field(f"{at}.text", "It is an empty query; give the text to search for.")
    if message.deployment_id:
        check_identifier(message.deployment_id, f"{at}.deployment_id")
    return q.TextExpansion(
        _field(message, at), message.text, message.deployment_id, _pruning(message, at), _boost(message, at), at
    )


_LEAVES: Final[Mapping[str, Callable[[Any, str], q.Query]]] = {
    "match_all": _match_all,
    "match": _match,
    "term": _term,
    "terms": _terms,
    "range": _range,
    "exists": _exists,
    "ids": _ids,
    "sparse_vector": _sparse_vector,
    "text_expansion": _text_expansion,
}


def _field(message: Any, at: str) -> str:
    """Read the name of a field."""
    name: str = message.field
    if not name:
        raise invalid_field(f"{at}.field", "It is empty; name a field of the mapping.")
    return name


def _check_count(count: int, path: str) -> None:
    if not 1 <= count <= q.MAX_VALUES:
        raise invalid_field(path, f"It has {count:,} values; give 1 to {q.MAX_VALUES:,}.")


def _scalar(value: Value, path: str) -> q.JsonScalar:
    """Read a JSON value that is a string, a number or a boolean."""
    if value.WhichOneof("kind") not in _SCALARS:
        raise invalid_field(path, "It is no single value; give a string, a number or a boolean.")
    scalar: q.JsonScalar = value_from_proto(value, path)
    return scalar


def _vector(message: sparse_vector_pb2.SparseVector, path: str) -> SparseVector:
    """Read the weighted tokens of a query."""
    if not message.tokens and not message.weights:
        raise invalid_field(path, "It is an empty query; give at least one token and its weight.")
    if len(message.tokens) > q.MAX_VALUES:
        raise invalid_field(path, f"It has {len(message.tokens):,} tokens; give at most {q.MAX_VALUES:,}.")
    return sparse_vector_from_proto(message, path)


def _pruning(message: search_pb2.SparseVectorQuery | search_pb2.TextExpansionQuery, at: str) -> q.PruningConfig | None:
    """Read when to leave tokens out; None: never."""
    if not message.HasField("pruning_config"):
        return None
    config = message.pruning_config
    default = q.PruningConfig()
    return q.PruningConfig(
        _between(config, "tokens_freq_ratio_threshold", at, _FREQUENCY_RATIO, default.frequency_ratio),
        _between(config, "tokens_weight_threshold", at, _WEIGHT_RATIO, default.weight_ratio),
        config.only_score_pruned_tokens,
    )


def _between(
    config: search_pb2.PruningConfig, name: str, at: str, bounds: tuple[float, float], default: float
) -> float:
    """Read an optional threshold that has bounds, themselves allowed."""
    if not config.HasField(name):  # type: ignore[arg-type]
        return default
    number = float(getattr(config, name))
    low, high = bounds
    if not low <= number <= high:
        raise invalid_field(f"{at}.pruning_config.{name}", f"It is {number:g}; give {low:g} to {high:g}.")
    return number


def _shown(text: str) -> str:
    """Cut a caller's text to what a message bears."""
    most = 40
    return repr(text if len(text) <= most else text[:most] + "…")


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1_000_000_000))


def search_response(message: search_pb2.SearchRequest, result: SearchResult) -> search_pb2.SearchResponse:
    """Write the answer to `message`; its source filter and format are applied here."""
    relation = search_pb2.TotalHits.RELATION_EQUAL if result.counted else search_pb2.TotalHits.RELATION_AT_LEAST
    exactness = search_pb2.Scoring.EXACTNESS_EXACT if result.exact else search_pb2.Scoring.EXACTNESS_BOUNDED
    timings = result.timings
    response = search_pb2.SearchResponse(
        total=search_pb2.TotalHits(value=result.total, relation=relation),
        max_score=result.max_score,
        scoring=search_pb2.Scoring(exactness=exactness, max_score_error=result.max_score_error),
        expansions=[
            search_pb2.QueryExpansion(
                field=each.field,
                deployment_id=each.deployment_id,
                query_token_count=len(each.vector),
                pruned_token_count=each.pruned_token_count,
                vector=sparse_vector_to_proto(each.vector),
                truncated=each.truncated,
            )
            for each in result.expansions
        ],
        timings=search_pb2.SearchTimings(
            total=_duration(timings.total),
            encode=_duration(timings.encode),
            retrieve=_duration(timings.retrieve),
            fetch=_duration(timings.fetch),
        ),
    )
    chosen = SourceFilter(tuple(message.source_filter.includes), tuple(message.source_filter.excludes))
    for each in result.hits:
        hit = response.hits.add(index=result.index, id=each.id, version=each.version, score=each.score)
        fill_body(hit, each.source, message.source_format, chosen)
        fill_vectors(hit, each.sparse_vectors)
    return response
