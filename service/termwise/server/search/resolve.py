"""From queries as asked to queries that fit the mapping: fields known and of the right kind, values of their type.

What comes out is what the planner reads: nodes that score, and lists of them that are fused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from termwise.server.errors import FailedPreconditionError, FieldViolation, invalid_field
from termwise.server.indices.mapping import field_of
from termwise.server.indices.values import parse_value
from termwise.server.search import query as q
from termwise.server.search.conditions import EVERYTHING
from termwise.storage import types as storage
from termwise.storage.types import FieldKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from termwise.server.indices.mapping import FieldMapping, Mapping

_EXACT_KINDS: Final = (FieldKind.KEYWORD, FieldKind.INTEGER, FieldKind.NUMBER, FieldKind.BOOLEAN, FieldKind.DATE)
_ORDERED_KINDS: Final = (FieldKind.INTEGER, FieldKind.NUMBER, FieldKind.DATE, FieldKind.KEYWORD)
_FUSED_KINDS: Final = (FieldKind.TEXT, FieldKind.SPARSE_VECTOR)


class TextKey(NamedTuple):
    """A text to expand, and the deployment that does it: equal ones of a request are expanded once."""

    deployment_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Fixed:
    """A condition; each document that meets it scores `boost`."""

    condition: storage.Condition
    boost: float = 1.0


@dataclass(frozen=True, slots=True)
class Words:
    """BM25 times `boost`."""

    leaf: storage.Lexical
    boost: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The dot product with weighted tokens, times `boost`; they are given, or a text's.

    `at` is its request path, and `deployment_at` that of what names the text's deployment, or a field that does.
    """

    field: str
    vector: storage.SparseVector | TextKey
    pruning: q.PruningConfig | None = None
    boost: float = 1.0
    at: str = "query"
    deployment_at: str = "query"


@dataclass(frozen=True, slots=True)
class Combined:
    """A boolean; `minimum` None means 1 where there is neither `must` nor `filter`, else 0."""

    must: tuple[Node, ...] = ()
    should: tuple[Node, ...] = ()
    filter: tuple[Node, ...] = ()
    must_not: tuple[Node, ...] = ()
    minimum: int | None = None
    boost: float = 1.0


Node: TypeAlias = Fixed | Words | Tokens | Combined


@dataclass(frozen=True, slots=True)
class NodeList:
    """The list of one node; hits below `min_score` are dropped."""

    node: Node
    min_score: float | None = None


@dataclass(frozen=True, slots=True)
class RankFusion:
    """Lists and their weights, fused by rank."""

    parts: tuple[tuple[ResolvedList, float], ...]
    window: int
    rank_constant: int


@dataclass(frozen=True, slots=True)
class ScoreFusion:
    """Lists, their weights and normalisers, fused by score."""

    parts: tuple[tuple[ResolvedList, float, q.Normalizer], ...]
    window: int


ResolvedList: TypeAlias = NodeList | RankFusion | ScoreFusion


@dataclass(frozen=True, slots=True)
class Resolved:
    """A retriever that fits the mapping; `expansions` are its texts' nodes, in order of the request."""

    target: ResolvedList
    expansions: tuple[Tokens, ...] = ()


def resolve(retriever: q.Retriever, mapping: Mapping) -> Resolved:
    """Fit a retriever to a mapping.

    Raises:
        InvalidArgumentError: a field is unknown or of another kind, or a value is not of its type; names the path.
        FailedPreconditionError: a text has no deployment.

    """
    resolver = _Resolver(mapping)
    target = resolver.retriever(retriever, ())
    return Resolved(target, tuple(resolver.expansions))


@dataclass(slots=True)
class _Resolver:
    """Walks one request, and gathers its texts."""

    mapping: Mapping
    expansions: list[Tokens] = field(default_factory=list)

    def retriever(self, retriever: q.Retriever, filters: tuple[Node, ...]) -> ResolvedList:
        """Fit a retriever; `filters` are those of the retrievers around it."""
        filters += self.nodes(retriever.filter)
        if isinstance(retriever, q.Standard):
            node = self.node(retriever.query)
            return NodeList(Combined(must=(node,), filter=filters) if filters else node, retriever.min_score)
        if isinstance(retriever, q.Rrf):
            return RankFusion(
                self._short(retriever.parts, retriever.at, filters)
                if isinstance(retriever.parts, q.ShortForm)
                else tuple((self.retriever(part.retriever, filters), part.weight) for part in retriever.parts),
                retriever.window,
                retriever.rank_constant,
            )
        if isinstance(retriever.parts, q.ShortForm):
            return ScoreFusion(
                tuple(
                    (each, weight, retriever.normalizer)
                    for each, weight in self._short(retriever.parts, retriever.at, filters)
                ),
                retriever.window,
            )
        return ScoreFusion(
            tuple((self.retriever(part.retriever, filters), part.weight, part.normalizer) for part in retriever.parts),
            retriever.window,
        )

    def _short(self, short: q.ShortForm, at: str, filters: tuple[Node, ...]) -> tuple[tuple[ResolvedList, float], ...]:
        """Make a list of every field of a short form."""
        fields: Iterable[tuple[str, float]] = short.fields
        if not short.fields:
            fields = [(name, 1.0) for name, each in self.mapping.fields.items() if each.kind in _FUSED_KINDS]
            if not fields:
                raise invalid_field(f"{at}.text", "The index has no text or sparse vector field to search.")
        lists: list[tuple[ResolvedList, float]] = []
        for place, (name, weight) in enumerate(fields):
            path = f"{at}.fields[{place}]" if short.fields else f"{at}.text"
            kind = self._field(name, path, _FUSED_KINDS, at.rpartition(".")[2]).kind
            node: Node
            if kind is FieldKind.TEXT:
                node = self._match(q.Match(name, short.text, at=at))
            else:
                node = self._text_expansion(q.TextExpansion(name, short.text, at=at), path, "name other fields")
            lists.append((NodeList(Combined(must=(node,), filter=filters) if filters else node), weight))
        return tuple(lists)

    def nodes(self, queries: Iterable[q.Query]) -> tuple[Node, ...]:
        """Fit several queries."""
        return tuple(self.node(query) for query in queries)

    def node(self, query: q.Query) -> Node:  # noqa: C901, PLR0911 - one case a kind
        """Fit a query."""
        match query:
            case q.MatchAll():
                return Fixed(EVERYTHING, query.boost)
            case q.Match():
                self._field(query.field, f"{query.at}.field", (FieldKind.TEXT,), "match")
                return self._match(query)
            case q.Term():
                value = self._value(query.field, query.value, query.at, "value", "term")
                return Fixed(storage.Terms(query.field, (value,)), query.boost)
            case q.Terms():
                return self._terms(query)
            case q.Range():
                return self._range(query)
            case q.Exists():
                field_of(self.mapping, query.field, f"{query.at}.field")
                return Fixed(storage.Exists(query.field), query.boost)
            case q.Ids():
                return Fixed(storage.Ids(query.ids), query.boost)
            case q.SparseVectorQuery():
                self._field(query.field, f"{query.at}.field", (FieldKind.SPARSE_VECTOR,), "sparse_vector")
                return Tokens(query.field, query.vector, query.pruning, query.boost, query.at)
            case q.TextExpansion():
                self._field(query.field, f"{query.at}.field", (FieldKind.SPARSE_VECTOR,), "text_expansion")
                return self._text_expansion(query, f"{query.at}.field")
            case q.Boolean():
                return Combined(
                    must=self.nodes(query.must),
                    should=self.nodes(query.should),
                    filter=self.nodes(query.filter),
                    must_not=self.nodes(query.must_not),
                    minimum=query.minimum_should_match,
                    boost=query.boost,
                )

    def _match(self, query: q.Match) -> Node:
        if len(query.text) > q.MAX_WORDS_LENGTH:
            raise invalid_field(
                f"{query.at}.text",
                f"It has {len(query.text):,} characters; words to search for have at most {q.MAX_WORDS_LENGTH:,}.",
            )
        return Words(storage.Lexical(query.field, query.text, query.all_words), query.boost)

    def _text_expansion(self, query: q.TextExpansion, path: str, instead: str = "deployment_id in the query") -> Node:
        """Find the text's deployment. `path` is what names the field, `instead` what to do where that has none."""
        deployment = query.deployment_id or self.mapping.fields[query.field].search_deployment_id
        if not deployment:
            raise FailedPreconditionError(
                f'Field "{query.field}" has no search deployment; '
                f"set search_deployment_id in the mapping or {instead}.",
                reason="NO_SEARCH_DEPLOYMENT",
                metadata={"field": query.field},
                violations=[FieldViolation(path, "the field has no search deployment")],
            )
        named_at = f"{query.at}.deployment_id" if query.deployment_id else path
        node = Tokens(query.field, TextKey(deployment, query.text), query.pruning, query.boost, query.at, named_at)
        self.expansions.append(node)
        return node

    def _terms(self, query: q.Terms) -> Node:
        kind = self._field(query.field, f"{query.at}.field", _EXACT_KINDS, "terms").kind
        values: list[storage.Scalar] = []
        for place, value in enumerate(query.values):
            try:
                values.append(parse_value(kind, value))
            except ValueError as error:  # the path is made here alone: there may be thousands of values
                raise invalid_field(f"{query.at}.values[{place}]", str(error)) from error
        return Fixed(storage.Terms(query.field, tuple(dict.fromkeys(values))), query.boost)

    def _range(self, query: q.Range) -> Node:
        kind = self._field(query.field, f"{query.at}.field", _ORDERED_KINDS, "range").kind
        bounds: dict[str, storage.Scalar] = {}
        for side in ("gte", "gt", "lte", "lt"):
            value: q.JsonScalar | None = getattr(query, side)
            if value is not None:
                side_, bound = _bound(kind, value, side, f"{query.at}.{side}")
                bounds[side_] = bound
        return Fixed(storage.Range(query.field, **bounds), query.boost)

    def _value(self, name: str, value: q.JsonScalar, at: str, part: str, query: str) -> storage.Scalar:
        return _parsed(self._field(name, f"{at}.field", _EXACT_KINDS, query).kind, value, f"{at}.{part}")

    def _field(self, name: str, path: str, kinds: Collection[FieldKind], query: str) -> FieldMapping:
        """Find a field of one of `kinds`."""
        found = field_of(self.mapping, name, path)
        if found.kind not in kinds:
            fitting = [kind.value for kind in kinds]
            listed = " and ".join(filter(None, [", ".join(fitting[:-1]), fitting[-1]]))
            raise invalid_field(
                path,
                f'Field "{name}" is of kind {found.kind.value}; {query} searches fields of kind {listed}.',
                reason="FIELD_NOT_SUITED",
            )
        return found


def _parsed(kind: FieldKind, value: q.JsonScalar, path: str) -> storage.Scalar:
    """Give a value as a field of that kind holds it."""
    try:
        return parse_value(kind, value)
    except ValueError as error:
        raise invalid_field(path, str(error)) from error


def _bound(kind: FieldKind, value: q.JsonScalar, side: str, path: str) -> tuple[str, storage.Scalar]:
    """Give a bound and its side.

    On an integer field a fraction moves to the next integer inside, which is included then: `gt 2.5` is `gte 3`.
    """
    if kind is FieldKind.INTEGER and isinstance(value, float) and math.isfinite(value) and not value.is_integer():
        lower = side in {"gte", "gt"}
        return "gte" if lower else "lte", math.ceil(value) if lower else math.floor(value)
    return side, _parsed(kind, value, path)
