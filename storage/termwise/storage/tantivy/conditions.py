"""Turns conditions and lexical leaves into tantivy queries. No text is parsed, so there is no syntax to escape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from tantivy import FieldType, Occur, Query

from termwise.storage.analysis import analyze
from termwise.storage.checks import LARGEST_INTEGER, SMALLEST_INTEGER, Column, condition_values
from termwise.storage.tantivy.codec import escaped, parse_term, times_counted
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

_FEW_TERMS: Final = 256
"""Up to here terms are looked up one by one: a set of them walks through the dictionary of each segment (measured with
16 segments: 10 terms take 30 µs so, 300 as a set; 256 take 1.5 ms and 2.6)."""


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
            case Everything() | Nothing():
                return Query.all_query() if isinstance(condition, Everything) else Query.empty_query()
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
        prefix = f"{place.prefix}{escaped(token) if self._layout.joined_terms else token}\0"
        found = self._searcher.terms_with_prefix("sparse", prefix)
        rests = ((term, term[len(prefix) :], count) for term, count in found)
        # A longer token that begins with this one and NUL has NUL in the rest; counts of vectors begin with a plus.
        return [(term, int(rest), count) for term, rest, count in rests if "\0" not in rest and rest[0] != "+"]

    def frequency(self, place: FieldPlace, token: str) -> int:
        """Count the vectors that hold a token."""
        written = escaped(token) if self._layout.joined_terms else token
        return sum(count for found, count in self._counts(f"{place.prefix}{written}\0", place) if found == written)

    def all_tokens(self, place: FieldPlace) -> Iterable[tuple[str, int]]:
        """List every token of a field, as terms write it, with a number of vectors; it stands several times."""
        return self._counts(place.prefix, place)

    def _counts(self, prefix: str, place: FieldPlace) -> Iterable[tuple[str, int]]:
        for term, count in self._searcher.terms_with_prefix("sparse", prefix):
            token, ending = parse_term(term[len(place.prefix) :])
            yield token, count * times_counted(ending)

    def holders(self, place: FieldPlace) -> list[tuple[Query, int]]:
        """Give queries that together count a field's vectors, and how many times each document of theirs counts."""
        number = str(place.number)
        marks = (term[len(number) :] for term, _ in self._searcher.terms_with_prefix("has", f"{number}+"))
        return [(self.term("has", f"{number}{mark}"), times_counted(mark)) for mark in ("", *marks)]

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
        if len(distinct) <= _FEW_TERMS:
            any_of = Query.boolean_query([(Occur.Should, self.term(field, value)) for value in distinct])
        else:
            any_of = Query.term_set_query(self._schema, field, distinct)
        return Query.const_score_query(any_of, 0.0)

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
        bounds: dict[str, Any] = dict(zip(names, values, strict=True))
        if place.kind is FieldKind.KEYWORD:
            return self._keyword_range(place, bounds)
        if place.kind is FieldKind.NUMBER:
            kind, least, most = FieldType.Float, -math.inf, math.inf
            above, below = (
                math.nextafter(bounds.get("gt", -math.inf), most),
                math.nextafter(bounds.get("lt", most), least),
            )
        else:
            kind, least, most = FieldType.Integer, SMALLEST_INTEGER, LARGEST_INTEGER
            above, below = bounds.get("gt", least - 1) + 1, bounds.get("lt", most + 1) - 1
        lower = max(bounds.get("gte", least), above, least)
        upper = min(bounds.get("lte", most), below, most)
        if lower > upper:
            return Query.empty_query()
        return Query.range_query(self._schema, place.column, kind, lower, upper)

    def _keyword_range(self, place: FieldPlace, bounds: dict[str, str]) -> Query:
        """Take the field's values between the bounds: tantivy-py has no ranges of text."""
        compare = {"gte": str.__ge__, "gt": str.__gt__, "lte": str.__le__, "lt": str.__lt__}
        checks = [(compare[name], bound) for name, bound in bounds.items()]
        terms = self._searcher.terms_with_prefix(place.column, _common_prefix(bounds))
        return self.any_term(place.column, [t for t, _ in terms if all(check(t, bound) for check, bound in checks)])


def _common_prefix(bounds: dict[str, str]) -> str:
    """Give what every value between a lower and an upper bound begins with."""
    lower, upper = bounds.get("gte", bounds.get("gt")), bounds.get("lte", bounds.get("lt"))
    if lower is None or upper is None:
        return ""
    shared = 0
    for one, other in zip(lower, upper, strict=False):
        if one != other:
            break
        shared += 1
    return lower[:shared]


def _storable(value: Column) -> bool:
    """Tell whether a document could hold the value at all; tantivy refuses integers beyond 64 bits."""
    return not isinstance(value, int) or SMALLEST_INTEGER <= value <= LARGEST_INTEGER
