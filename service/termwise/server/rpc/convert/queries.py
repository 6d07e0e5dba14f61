"""Queries from protobuf to values. Every refusal names the path of what it refuses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from termwise.server.errors import invalid_field
from termwise.server.identifiers import check_identifier
from termwise.server.rpc.convert.document import sparse_vector_from_proto, value_from_proto
from termwise.server.search import query as q
from termwise.storage.types import MAX_ID_BYTES
from termwise.v1 import search_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from google.protobuf.message import Message
    from google.protobuf.struct_pb2 import Value

    from termwise.storage.types import SparseVector
    from termwise.v1 import sparse_vector_pb2

_OPERATORS: Final = {
    search_pb2.MatchQuery.OPERATOR_UNSPECIFIED: False,
    search_pb2.MatchQuery.OPERATOR_OR: False,
    search_pb2.MatchQuery.OPERATOR_AND: True,
}
_SCALARS: Final = frozenset({"string_value", "number_value", "bool_value"})
_FREQUENCY_RATIO: Final = (1.0, 100.0)
_WEIGHT_RATIO: Final = (0.0, 1.0)


@dataclass(slots=True)
class QueryReader:
    """Reads the queries of one request, and counts them."""

    clauses: int = 0

    def query(self, message: search_pb2.Query, path: str, depth: int) -> q.Query:
        """Read a query that stands at `path`, `depth` levels down."""
        kind = message.WhichOneof("kind")
        if kind is None:
            raise invalid_field(path, "It is empty; give one kind of query, such as match.")
        at = f"{path}.{kind}"
        self.count(at, depth)
        inner = getattr(message, kind)
        if kind == "boolean":
            return self._boolean(inner, at, depth)
        return _LEAVES[kind](inner, at)

    def queries(self, messages: Iterable[search_pb2.Query], path: str, depth: int) -> tuple[q.Query, ...]:
        """Read a repeated field of queries."""
        return tuple(self.query(message, f"{path}[{place}]", depth) for place, message in enumerate(messages))

    def count(self, at: str, depth: int) -> None:
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
            boost=boost(message, at),
            at=at,
        )


def boost(message: Message, at: str) -> float:
    """Read the factor of a query's score."""
    return not_negative(message, "boost", f"{at}.boost", 1.0)


def not_negative(message: Message, name: str, path: str, default: float) -> float:
    """Read an optional number of 0 or more."""
    number = finite(message, name, path)
    if number is None:
        return default
    if number < 0:
        raise invalid_field(path, f"It is {number:g}; give 0 or more.")
    return number


def finite(message: Message, name: str, path: str) -> float | None:
    """Read an optional number that must be finite."""
    if not message.HasField(name):
        return None
    number = float(getattr(message, name))
    if not math.isfinite(number):
        raise invalid_field(path, f"It is {number}; give a finite number.")
    return number


def _match_all(message: search_pb2.MatchAllQuery, at: str) -> q.Query:
    return q.MatchAll(boost(message, at), at)


def _match(message: search_pb2.MatchQuery, at: str) -> q.Query:
    all_words = _OPERATORS.get(message.operator)
    if all_words is None:
        raise invalid_field(f"{at}.operator", f"There is no operator {message.operator}; take one of Operator.")
    return q.Match(_field(message, at), message.text, all_words, boost(message, at), at)


def _term(message: search_pb2.TermQuery, at: str) -> q.Query:
    if not message.HasField("value"):
        raise invalid_field(f"{at}.value", "It is absent; give a string, a number or a boolean.")
    return q.Term(_field(message, at), _scalar(message.value, f"{at}.value"), boost(message, at), at)


def _terms(message: search_pb2.TermsQuery, at: str) -> q.Query:
    _check_count(len(message.values), f"{at}.values")
    values = tuple(_scalar(value, f"{at}.values[{place}]") for place, value in enumerate(message.values))
    return q.Terms(_field(message, at), values, boost(message, at), at)


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
    return q.Range(_field(message, at), boost=boost(message, at), at=at, **bounds)


def _exists(message: search_pb2.ExistsQuery, at: str) -> q.Query:
    return q.Exists(_field(message, at), boost(message, at), at)


def _ids(message: search_pb2.IdsQuery, at: str) -> q.Query:
    _check_count(len(message.ids), f"{at}.ids")
    for place, id_ in enumerate(message.ids):
        if not 1 <= len(id_.encode()) <= MAX_ID_BYTES:
            raise invalid_field(
                f"{at}.ids[{place}]", f"It has {len(id_.encode()):,} bytes; ids have 1 to {MAX_ID_BYTES}."
            )
    return q.Ids(tuple(message.ids), boost(message, at), at)


def _sparse_vector(message: search_pb2.SparseVectorQuery, at: str) -> q.Query:
    return q.SparseVectorQuery(
        _field(message, at),
        _vector(message.vector, f"{at}.vector"),
        _pruning(message, at),
        boost(message, at),
        at,
    )


def _text_expansion(message: search_pb2.TextExpansionQuery, at: str) -> q.Query:
    if not message.text.strip():
        raise invalid_field(f"{at}.text", "It is an empty query; give the text to search for.")
    if message.deployment_id:
        check_identifier(message.deployment_id, f"{at}.deployment_id")
    return q.TextExpansion(
        _field(message, at), message.text, message.deployment_id, _pruning(message, at), boost(message, at), at
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
