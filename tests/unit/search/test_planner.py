"""Random query trees over the memory store, against the definition evaluated for every document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from termwise.server.context import RequestContext
from termwise.server.errors import DeadlineExceededError
from termwise.server.search import booleans, planner
from termwise.server.search import query as q
from termwise.server.search import view as view_module
from termwise.server.search.planner import Planner, floored
from termwise.server.search.resolve import NodeList, resolve
from termwise.server.search.view import Stop, View
from termwise.storage.types import Document, Lexical, Sparse, sparse_vector

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.server.indices.catalog import OpenIndex
    from termwise.server.search.ranking import Ranked
    from termwise.storage.base import IndexReader

WORDS = ["red", "green", "blue", "cyan", "pink"]
LANGS = ["de", "en", "fr"]

# Weights and boosts are short binary fractions, so that sums in double precision are exact in any order.
eighths = st.integers(1, 24).map(lambda n: n / 8)
boosts = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 3.25])
vectors = st.dictionaries(st.sampled_from(WORDS), eighths, min_size=1, max_size=4)


@st.composite
def documents(draw: st.DrawFn) -> list[dict[str, Any]]:
    made = []
    for _ in range(draw(st.integers(0, 25))):
        values: dict[str, Any] = {}
        if draw(st.booleans()):
            values["text"] = " ".join(draw(st.lists(st.sampled_from(WORDS), max_size=6)))
        if draw(st.booleans()):
            values["expansion"] = draw(vectors)
        if draw(st.booleans()):
            values["lang"] = draw(st.sampled_from(LANGS))
        if draw(st.booleans()):
            values["year"] = draw(st.integers(2000, 2005))
        made.append(values)
    return made


leaves: st.SearchStrategy[q.Query] = st.one_of(
    st.builds(
        q.Match,
        st.just("text"),
        st.lists(st.sampled_from(WORDS), min_size=0, max_size=3).map(" ".join),
        st.booleans(),
        boosts,
    ),
    st.builds(
        lambda weights, boost: q.SparseVectorQuery(
            "expansion", sparse_vector(list(weights), list(weights.values())), None, boost
        ),
        vectors,
        boosts,
    ),
    st.builds(q.Term, st.just("lang"), st.sampled_from(LANGS), boosts),
    st.builds(q.Terms, st.just("year"), st.lists(st.integers(2000, 2005), min_size=1).map(tuple), boosts),
    st.builds(lambda low, boost: q.Range("year", gt=low, boost=boost), st.integers(1999, 2005), boosts),
    st.builds(q.Exists, st.sampled_from(["lang", "text", "expansion", "year"]), boosts),
    st.builds(q.Ids, st.lists(st.integers(0, 24).map(str), min_size=1, max_size=5).map(tuple), boosts),
    st.builds(q.MatchAll, boosts),
)


def booleans_of(inner: st.SearchStrategy[q.Query]) -> st.SearchStrategy[q.Query]:
    few = st.lists(inner, max_size=3).map(tuple)
    return st.builds(
        q.Boolean,
        must=few,
        should=few,
        filter=st.lists(inner, max_size=1).map(tuple),
        must_not=st.lists(inner, max_size=1).map(tuple),
        minimum_should_match=st.one_of(st.none(), st.integers(0, 3)),
        boost=boosts,
    )


queries = st.recursive(leaves, booleans_of, max_leaves=8)


def evaluate(reader: IndexReader, query: q.Query, seq_no: int, factor: float) -> float | None:
    """The definition: a document's score in double precision, None where it does not match."""
    one = np.array([seq_no], dtype=np.int64)
    factor *= query.boost
    if isinstance(query, q.Boolean):
        must = [evaluate(reader, each, seq_no, factor) for each in query.must]
        should = [evaluate(reader, each, seq_no, factor) for each in query.should]
        filters = [evaluate(reader, each, seq_no, 0) for each in query.filter]
        banned = [evaluate(reader, each, seq_no, 0) for each in query.must_not]
        minimum = query.minimum_should_match or 0
        if not query.must and not query.filter and query.should:
            minimum = max(minimum, 1)
        matching = [score for score in should if score is not None]
        matches = (
            None not in must
            and None not in filters
            and all(score is None for score in banned)
            and len(matching) >= minimum
        )
        return sum(score for score in [*must, *matching] if score is not None) if matches else None
    if isinstance(query, q.Match):
        score = float(reader.score(Lexical(query.field, query.text, query.all_words), one)[0])
        return None if np.isnan(score) else score * factor
    if isinstance(query, q.SparseVectorQuery):
        score = float(reader.score(Sparse(query.field, query.vector), one)[0])
        return None if np.isnan(score) else score * factor
    stored = reader.fetch(one)[0]
    values = VALUES[stored.id]
    found: bool
    match query:
        case q.Term():
            found = values.get("lang") == query.value
        case q.Terms():
            found = values.get("year") in query.values
        case q.Range():
            found = "year" in values and values["year"] > query.gt
        case q.Exists():
            found = query.field in values
        case q.Ids():
            found = stored.id in query.ids
        case _:
            found = True
    return factor if found else None


VALUES: dict[str, dict[str, Any]] = {}


def opened(shelf: Any, document: Callable[..., Document], rows: list[dict[str, Any]]) -> OpenIndex:
    VALUES.clear()
    VALUES.update({str(place): values for place, values in enumerate(rows)})
    for name in list(shelf.indices):
        shelf.store.drop(name)
        del shelf.indices[name]
    index: OpenIndex = shelf.add("docs", [document(id_, **values) for id_, values in VALUES.items()])
    return index


def planned(
    index: OpenIndex, query: q.Query, depth: int, min_score: float | None = None, count: int | None = None
) -> Ranked:
    view = View(index.index.reader(), Stop(RequestContext("test")))
    target = resolve(q.Standard(query), index.mapping).target
    source = floored(Planner(view, {}, count).plan(target), min_score)
    for opener in source.openers(depth):
        opener()
    return source.top(depth)


def reference(index: OpenIndex, query: q.Query, min_score: float | None = None) -> list[tuple[int, float]]:
    reader = index.index.reader()
    scored = []
    for seq_no in range(1, len(VALUES) + 1):
        score = evaluate(reader, query, seq_no, 1.0)
        if score is not None and (not min_score or np.float32(score) >= min_score):
            scored.append((seq_no, float(np.float32(score))))
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))


@pytest.fixture(params=[(1, 16), (4, 1), (128, 16)])
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # With small indices a first depth of 128 reads all at once: small ones make the lists deepen. A low limit of what
    # are few parts of a condition makes short ones go the way of long ones.
    first_depth, few = request.param
    monkeypatch.setattr(booleans, "_FIRST_DEPTH", first_depth)
    for module in (booleans, planner, view_module):
        monkeypatch.setattr(module, "FEW", few)


CHECKED = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.usefixtures("limits")
@settings(CHECKED, max_examples=120)  # for each of the limits
@given(
    rows=documents(),
    query=queries,
    depth=st.integers(1, 8),
    floor=st.sampled_from([None, None, 0.5, 3.0]),
    count=st.sampled_from([None, None, 0, 3, 10]),
)
def test_plans_give_what_the_definition_says(
    shelf: Any,
    document: Callable[..., Document],
    rows: list[dict[str, Any]],
    query: q.Query,
    depth: int,
    floor: float | None,
    count: int | None,
) -> None:
    index = opened(shelf, document, rows)
    expected = reference(index, query, floor)
    ranked = planned(index, query, depth, floor, count)
    assert ranked.seq_nos.tolist() == [seq_no for seq_no, _ in expected[:depth]]
    assert ranked.scores.tolist() == pytest.approx([score for _, score in expected[:depth]], rel=1e-6)
    assert ranked.exact
    assert ranked.max_error == 0
    if ranked.counted:
        assert ranked.total == len(expected)
    else:
        assert len(ranked.seq_nos) <= ranked.total <= len(expected)
    if ranked.complete:
        assert len(ranked.seq_nos) == len(expected)


@CHECKED
@given(rows=documents(), query=leaves, depth=st.integers(1, 8), count=st.integers(0, 30))
def test_a_list_of_one_leaf_is_counted_as_far_as_asked(
    shelf: Any, document: Callable[..., Document], rows: list[dict[str, Any]], query: q.Query, depth: int, count: int
) -> None:
    index = opened(shelf, document, rows)
    expected = len(reference(index, query))
    ranked = planned(index, query, depth, count=count)
    if ranked.counted:
        assert ranked.total == expected
    else:
        assert count <= ranked.total <= expected


@CHECKED
@given(rows=documents(), query=queries)
def test_any_document_scores_as_it_ranks(
    shelf: Any, document: Callable[..., Document], rows: list[dict[str, Any]], query: q.Query
) -> None:
    index = opened(shelf, document, rows)
    expected = dict(reference(index, query))
    view = View(index.index.reader(), Stop(RequestContext("test")))
    target = resolve(q.Standard(query), index.mapping).target
    assert isinstance(target, NodeList)
    source = Planner(view, {}).plan(target)
    everything = np.arange(1, len(rows) + 1, dtype=np.int64)
    scores = dict(zip(everything.tolist(), source.score(everything).tolist(), strict=True))
    assert {seq_no: score for seq_no, score in scores.items() if not np.isnan(score)} == pytest.approx(
        expected, rel=1e-6
    )
    assert source.condition is not None
    assert view.match(source.condition).tolist() == sorted(expected)


def test_equal_scores_come_in_the_order_of_writing_at_the_cut_too(
    shelf: Any, document: Callable[..., Document]
) -> None:
    index = opened(shelf, document, [{"text": "red", "expansion": {"red": 1.0}} for _ in range(300)])
    both = q.Boolean(
        should=(q.Match("text", "red", boost=0.1), q.SparseVectorQuery("expansion", sparse_vector(["red"], [0.3])))
    )
    for query in (both, q.Match("text", "red", boost=0.1), q.Term("lang", "en", boost=0.7), q.MatchAll(0.3)):
        found = planned(index, query, 10).seq_nos.tolist()
        assert found == ([] if isinstance(query, q.Term) else list(range(1, 11)))


def test_filters_alone_give_every_document_a_score_of_zero(shelf: Any, document: Callable[..., Document]) -> None:
    index = opened(shelf, document, [{"lang": "en"}, {"lang": "de"}, {"lang": "en", "text": "red"}])
    ranked = planned(index, q.Boolean(filter=(q.Term("lang", "en"),), should=(q.Match("text", "red"),)), 10)
    assert ranked.seq_nos.tolist() == [3, 1]
    assert ranked.scores[1] == 0
    assert (ranked.total, ranked.counted, ranked.complete) == (2, True, True)


def test_a_search_whose_caller_has_gone_stops(shelf: Any, document: Callable[..., Document]) -> None:
    index = opened(shelf, document, [{"text": "red"}])
    stop = Stop(RequestContext("test"))
    source = Planner(View(index.index.reader(), stop), {}).plan(
        resolve(q.Standard(q.Match("text", "red")), index.mapping).target
    )
    assert len(source.top(1).seq_nos) == 1
    stop.leave()
    with pytest.raises(DeadlineExceededError):
        source.top(2)


def tokens(field: str, weight: float = 1.0, boost: float = 1.0) -> q.SparseVectorQuery:
    return q.SparseVectorQuery(field, sparse_vector(["red"], [weight]), boost=boost)


def test_a_document_further_down_that_ties_with_the_last_one_is_found(
    shelf: Any, document: Callable[..., Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two documents deep, each list ends with a score of 2, and 9 is the best seen, with 4; 4 has as much, unseen.
    monkeypatch.setattr(booleans, "_FIRST_DEPTH", 2)
    rows: list[dict[str, Any]] = [{} for _ in range(9)]
    for seq_no, name, weight in (
        *((1, "topics", 2.0), (2, "topics", 2.0), (3, "expansion", 2.0)),
        *((4, "expansion", 2.0), (4, "topics", 2.0)),
        *((9, "expansion", 3.0), (9, "topics", 1.0)),
    ):
        rows[seq_no - 1][name] = {"red": weight}
    query = q.Boolean(should=(tokens("expansion"), tokens("topics")))
    assert planned(opened(shelf, document, rows), query, 1).seq_nos.tolist() == [4]


def test_scores_that_a_boost_makes_equal_come_in_the_order_of_writing(
    shelf: Any, document: Callable[..., Document]
) -> None:
    boost, lower = next(
        (boost, score)
        for boost in (1.1, 1.3, 1.7)
        for score in np.linspace(1, 2, 1000, dtype=np.float32)
        if np.float32(boost * float(score)) == np.float32(boost * float(np.nextafter(score, np.float32(4))))
    )
    higher = np.nextafter(lower, np.float32(4))
    index = opened(shelf, document, [{"expansion": {"red": float(weight)}} for weight in (lower, higher)])
    assert planned(index, tokens("expansion"), 1).seq_nos.tolist() == [2]
    assert planned(index, tokens("expansion", boost=boost), 1).seq_nos.tolist() == [1]


def test_a_boost_beyond_float32_gives_the_largest_score(shelf: Any, document: Callable[..., Document]) -> None:
    index = opened(shelf, document, [{"expansion": {"red": 2.0}}, {"expansion": {"red": 3.0}}])
    ranked = planned(index, tokens("expansion", boost=3e38), 2)
    assert ranked.scores.tolist() == [float(np.finfo(np.float32).max)] * 2
    assert ranked.seq_nos.tolist() == [1, 2]


def test_many_clauses_are_planned_in_reasonable_time(shelf: Any, document: Callable[..., Document]) -> None:
    index = opened(shelf, document, [{"text": "red", "lang": "en", "year": 2000 + place} for place in range(5)])
    many = tuple(q.Term("year", 2000 + place % 5) for place in range(1_000))
    ranked = planned(index, q.Boolean(should=many, minimum_should_match=2), 5)
    assert ranked.scores.tolist() == [200.0] * 5
    assert planned(index, q.Boolean(must=many), 5).total == 0
