"""Turns conditions and lexical leaves into tantivy queries. No query text is parsed, so there is no syntax to escape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tantivy import FieldType, Occur, Query
from termwise.storage.analysis import analyze
from termwise.storage.checks import LARGEST_INTEGER, SMALLEST_INTEGER, Column, condition_values
from termwise.storage.tantivy.codec import parse_term
from termwise.storage.types import (
    AllOf,
    AnyOf,
    Condition,
    Everything,
    Exists,
    FieldKind,
    Ids,
    Lexical,
    Not,
    Nothing,
    Range,
    Sparse,
    Terms,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tantivy import Schema, Searcher
    from termwise.storage.tantivy.layout import FieldPlace, Layout


class Conditions:
    """Makes queries for one searcher."""

    def __init__(self, layout: Layout, schema: Schema, searcher: Searcher) -> None:
        """Take the index's layout, tantivy's schema and the searcher whose terms are looked up."""
        self._layout = layout
        self._schema = schema
        self._searcher = searcher

    def query(self, condition: Condition) -> Query:
        """Make a query that scores nothing; the condition's fields and values have been checked."""
        match condition:
            case Everything():
                return Query.all_query()
            case Nothing():
                return Query.empty_query()
            case Ids(ids):
                return self.any_term("key", ids)
            case Not(inner):
                parts = [(Occur.Must, Query.all_query()), (Occur.MustNot, self.query(inner))]
                return Query.boolean_query(parts)
            case AllOf(conditions):
                return self._all(conditions)
            case AnyOf(conditions, minimum):
                return self._any(conditions, minimum)
            case _:
                return Query.const_score_query(self._field_query(condition), 0.0)

    def lexical(self, leaf: Lexical) -> Query:
        """Make a query that scores by BM25: one clause a word."""
        place = self._layout.places[leaf.field]
        words = analyze(place.analyzer, leaf.text)
        if not words:
            return Query.empty_query()
        occur = Occur.Must if leaf.all_words else Occur.Should
        return Query.boolean_query([(occur, self._term(place.column, word, "freq")) for word in words])

    def buckets(self, place: FieldPlace, token: str) -> list[tuple[str, int, int]]:
        """List a token's terms in the index, each with its bucket and the number of its documents."""
        prefix = f"{place.prefix}{token}\0"
        found = self._searcher.terms_with_prefix("sparse", prefix)
        rests = ((term, term[len(prefix) :], count) for term, count in found)
        # A longer token that begins with this one and NUL has NUL in the rest.
        return [(term, int(rest), count) for term, rest, count in rests if "\0" not in rest]

    def all_tokens(self, place: FieldPlace) -> Iterable[tuple[str, int]]:
        """List every token of a sparse field with a number of documents; a token stands once a bucket."""
        for term, count in self._searcher.terms_with_prefix("sparse", place.prefix):
            yield parse_term(term[len(place.prefix) :])[0], count

    def term(self, field: str, value: Column) -> Query:
        """Make a query for one exact value of tantivy's field."""
        return self._term(field, value, "basic")

    def _term(self, field: str, value: Column, option: str) -> Query:
        return Query.term_query(self._schema, field, value, option)

    def any_term(self, field: str, values: Iterable[Column]) -> Query:
        """Make a query for any of some exact values of tantivy's field; it scores nothing."""
        distinct = list(dict.fromkeys(values))
        if not distinct:
            return Query.empty_query()
        if len(distinct) == 1:
            return Query.const_score_query(self.term(field, distinct[0]), 0.0)
        return Query.const_score_query(Query.term_set_query(self._schema, field, distinct), 0.0)

    def _all(self, conditions: tuple[Condition, ...]) -> Query:
        if not conditions:
            return Query.all_query()
        return Query.boolean_query([(Occur.Must, self.query(part)) for part in conditions])

    def _any(self, conditions: tuple[Condition, ...], minimum: int) -> Query:
        if len(conditions) < minimum:
            return Query.empty_query()
        return Query.boolean_query([(Occur.Should, self.query(part)) for part in conditions], max(minimum, 1))

    def _field_query(self, condition: Terms | Range | Exists | Lexical | Sparse) -> Query:
        place = self._layout.places[condition.field]
        match condition:
            case Terms(name, values):
                stored = condition_values(self._layout.schema, name, values)
                return self.any_term(place.column, [value for value in stored if _storable(value)])
            case Range():
                return self._range(place, condition)
            case Exists():
                return self.term("has", str(place.number))
            case Lexical():
                return self.lexical(condition)
            case _:
                found = (self.buckets(place, token) for token in condition.vector.tokens)
                return self.any_term("sparse", [term for terms in found for term, _, _ in terms])

    def _range(self, place: FieldPlace, condition: Range) -> Query:
        names = [name for name in ("gte", "gt", "lte", "lt") if getattr(condition, name) is not None]
        if not names:
            return self.term("has", str(place.number))
        values = condition_values(self._layout.schema, place.name, [getattr(condition, name) for name in names])
        bounds = dict(zip(names, values, strict=True))
        if place.kind is FieldKind.KEYWORD:
            return self._keyword_range(place, bounds)
        if place.kind is not FieldKind.NUMBER:
            return self._integer_range(place, bounds)
        lower, upper = max_bound(bounds.get("gte"), bounds.get("gt")), min_bound(bounds.get("lte"), bounds.get("lt"))
        return Query.range_query(
            self._schema,
            place.column,
            FieldType.Float,
            lower,
            upper,
            lower is None or lower != bounds.get("gt"),
            upper is None or upper != bounds.get("lt"),
        )

    def _integer_range(self, place: FieldPlace, bounds: dict[str, Column]) -> Query:
        lower = max(bounds.get("gte", SMALLEST_INTEGER), bounds.get("gt", SMALLEST_INTEGER - 1) + 1)  # type: ignore[operator, type-var]
        upper = min(bounds.get("lte", LARGEST_INTEGER), bounds.get("lt", LARGEST_INTEGER + 1) - 1)  # type: ignore[operator, type-var]
        lower, upper = max(lower, SMALLEST_INTEGER), min(upper, LARGEST_INTEGER)  # type: ignore[type-var]
        if lower > upper:  # type: ignore[operator]
            return Query.empty_query()
        return Query.range_query(self._schema, place.column, FieldType.Integer, lower, upper)

    def _keyword_range(self, place: FieldPlace, bounds: dict[str, Column]) -> Query:
        """Take the field's values between the bounds: tantivy-py has no ranges of text."""
        compare = {"gte": str.__ge__, "gt": str.__gt__, "lte": str.__le__, "lt": str.__lt__}
        checks = [(compare[name], str(bound)) for name, bound in bounds.items()]
        terms = self._searcher.terms_with_prefix(place.column, _common_prefix(bounds))
        return self.any_term(place.column, [t for t, _ in terms if all(check(t, bound) for check, bound in checks)])


def _common_prefix(bounds: dict[str, Column]) -> str:
    """Give what every value between a lower and an upper bound begins with."""
    lower, upper = bounds.get("gte", bounds.get("gt")), bounds.get("lte", bounds.get("lt"))
    if lower is None or upper is None:
        return ""
    shared = 0
    for one, other in zip(str(lower), str(upper), strict=False):
        if one != other:
            break
        shared += 1
    return str(lower)[:shared]


def max_bound(gte: Column | None, gt: Column | None) -> Column | None:
    """Give the stricter lower bound; the exclusive one where they are equal."""
    return max((bound for bound in (gt, gte) if bound is not None), default=None)  # type: ignore[type-var]


def min_bound(lte: Column | None, lt: Column | None) -> Column | None:
    """Give the stricter upper bound; the exclusive one where they are equal."""
    return min((bound for bound in (lt, lte) if bound is not None), default=None)  # type: ignore[type-var]


def _storable(value: Column) -> bool:
    """Tell whether a document could hold the value at all; tantivy refuses integers beyond 64 bits."""
    return not isinstance(value, int) or SMALLEST_INTEGER <= value <= LARGEST_INTEGER
