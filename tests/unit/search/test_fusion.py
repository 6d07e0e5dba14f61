"""Fusion against its definition over whole lists, with windows of every size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from termwise.server.context import RequestContext
from termwise.server.search import fusion
from termwise.server.search import query as q
from termwise.server.search.planner import Planner
from termwise.server.search.resolve import resolve
from termwise.server.search.view import Stop, View
from termwise.storage.types import Document, sparse_vector

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.server.indices.catalog import OpenIndex
    from termwise.server.search.ranking import Ranked

WORDS = ["red", "green", "blue", "cyan", "pink"]

weights = st.floats(0.125, 8, width=32)
vectors = st.dictionaries(st.sampled_from(WORDS), weights, min_size=1, max_size=4)
rows_of = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "text": st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join),
            "expansion": vectors,
            "topics": vectors,
        },
    ),
    min_size=1,
    max_size=25,
)
normalizers = st.sampled_from(list(q.Normalizer))
parts_weights = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.5])
lists = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(lambda words: q.Match("text", " ".join(words))),
    st.builds(
        lambda name, held: q.SparseVectorQuery(name, sparse_vector(list(held), list(held.values()))),
        st.sampled_from(["expansion", "topics"]),
        vectors,
    ),
)
standards = st.builds(q.Standard, lists, min_score=st.sampled_from([None, None, 0.5]))


def rrf_of(inner: st.SearchStrategy[q.Retriever], windows: st.SearchStrategy[int]) -> st.SearchStrategy[q.Retriever]:
    parts = st.lists(st.builds(q.RankComponent, inner, parts_weights), min_size=1, max_size=3).map(tuple)
    return st.builds(q.Rrf, parts, windows, st.sampled_from([1, 60]))


def linear_of(inner: st.SearchStrategy[q.Retriever], windows: st.SearchStrategy[int]) -> st.SearchStrategy[q.Retriever]:
    parts = st.lists(st.builds(q.ScoreComponent, inner, parts_weights, normalizers), min_size=1, max_size=3).map(tuple)
    return st.builds(q.Linear, parts, windows)


def fused_of(windows: st.SearchStrategy[int]) -> st.SearchStrategy[q.Retriever]:
    flat = st.one_of(rrf_of(standards, windows), linear_of(standards, windows))
    return st.one_of(flat, nested_of(windows))


def nested_of(windows: st.SearchStrategy[int]) -> st.SearchStrategy[q.Retriever]:
    flat = st.one_of(rrf_of(standards, windows), linear_of(standards, windows))
    mixed = st.one_of(standards, flat)
    return st.one_of(rrf_of(mixed, windows), linear_of(mixed, windows))


def opened(shelf: Any, document: Callable[..., Document], rows: list[dict[str, Any]]) -> OpenIndex:
    for name in list(shelf.indices):
        shelf.store.drop(name)
        del shelf.indices[name]
    index: OpenIndex = shelf.add("docs", [document(str(place), **values) for place, values in enumerate(rows)])
    return index


def planned(index: OpenIndex, retriever: q.Retriever, depth: int) -> Ranked:
    view = View(index.index.reader(), Stop(RequestContext("test")))
    source = Planner(view, {}).plan(resolve(retriever, index.mapping).target)
    for opener in source.openers(depth):
        opener()
    return source.top(depth)


def whole(index: OpenIndex, retriever: q.Retriever) -> dict[int, float]:
    """The definition: the scores of a list, all of it."""
    if isinstance(retriever, q.Standard):
        ranked = planned(index, retriever, 1_000)
        return dict(zip(ranked.seq_nos.tolist(), ranked.scores.tolist(), strict=True))
    assert not isinstance(retriever.parts, q.ShortForm)
    scores: dict[int, float] = {}
    for part in retriever.parts:
        held = whole(index, part.retriever)
        if isinstance(part, q.RankComponent):
            assert isinstance(retriever, q.Rrf)
            order = sorted(held, key=lambda seq_no: (-held[seq_no], seq_no))
            values = {seq_no: 1 / (retriever.rank_constant + rank) for rank, seq_no in enumerate(order, 1)}
        else:
            values = normalized(held, part.normalizer)
        for seq_no, value in values.items():
            scores[seq_no] = scores.get(seq_no, 0.0) + part.weight * value
    return {seq_no: float(np.float32(score)) for seq_no, score in scores.items()}


def normalized(held: dict[int, float], normalizer: q.Normalizer) -> dict[int, float]:
    best, least = max(held.values(), default=0.0), min(held.values(), default=0.0)
    divisor = {
        q.Normalizer.NONE: 1.0,
        q.Normalizer.MAX: best,
        q.Normalizer.MINMAX: best - least,
        q.Normalizer.L2: math.sqrt(sum(score**2 for score in held.values())),
    }[normalizer]
    if normalizer is q.Normalizer.MINMAX:
        return {seq_no: (score - least) / divisor if divisor else 1.0 for seq_no, score in held.items()}
    return {seq_no: score / divisor if divisor else 0.0 for seq_no, score in held.items()}


CHECKED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@CHECKED
@given(rows=rows_of, retriever=fused_of(st.just(1_000)), depth=st.integers(1, 30))
def test_windows_that_hold_the_lists_give_what_the_definition_says(
    shelf: Any, document: Callable[..., Document], rows: list[dict[str, Any]], retriever: q.Retriever, depth: int
) -> None:
    index = opened(shelf, document, rows)
    expected = whole(index, retriever)
    ranked = planned(index, retriever, depth)
    assert ranked.exact
    assert ranked.max_error == 0
    best = sorted(expected.values(), reverse=True)[:depth]
    assert ranked.scores.tolist() == pytest.approx(best, rel=1e-6, abs=1e-12)
    for seq_no, score in zip(ranked.seq_nos.tolist(), ranked.scores.tolist(), strict=True):
        assert score == pytest.approx(expected[seq_no], rel=1e-6, abs=1e-12)
    assert (ranked.total, ranked.counted) == (len(expected), True)
    pairs = list(zip((-ranked.scores).tolist(), ranked.seq_nos.tolist(), strict=True))
    assert pairs == sorted(pairs)


@pytest.mark.parametrize("first_depth", [1, 256])
@CHECKED
@given(
    rows=rows_of,
    retriever=st.one_of(fused_of(st.integers(1, 8)), nested_of(st.integers(1, 3))),
    depth=st.integers(1, 6),
)
def test_the_error_that_a_window_makes_is_no_larger_than_stated(
    shelf: Any,
    document: Callable[..., Document],
    first_depth: int,
    rows: list[dict[str, Any]],
    retriever: q.Retriever,
    depth: int,
) -> None:
    index = opened(shelf, document, rows)
    expected = whole(index, retriever)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "_FIRST_DEPTH", first_depth)
        ranked = planned(index, retriever, depth)
    found = dict(zip(ranked.seq_nos.tolist(), ranked.scores.tolist(), strict=True))
    allowed = ranked.max_error * (1 + 1e-6) + 1e-6
    for seq_no, score in found.items():
        assert abs(score - expected[seq_no]) <= allowed + 1e-6 * score
    last = min(found.values()) if len(found) == depth else 0.0
    for seq_no, score in expected.items():
        if seq_no not in found:
            assert score <= last * (1 + 1e-6) + allowed
    if ranked.exact:
        assert ranked.max_error == 0
        assert len(found) == min(depth, len(expected))
    if ranked.counted:
        assert ranked.total == len(expected)
    else:
        assert len(found) <= ranked.total <= len(expected)


def test_linear_is_the_mean_of_both_lists_each_divided_by_its_best_score(
    shelf: Any, document: Callable[..., Document]
) -> None:
    index = opened(
        shelf,
        document,
        [
            {"expansion": {"red": 4.0}},
            {"expansion": {"red": 2.0}, "topics": {"red": 10.0}},
            {"topics": {"red": 5.0}},
        ],
    )
    lists_ = [q.Standard(q.SparseVectorQuery(name, sparse_vector(["red"], [1]))) for name in ("expansion", "topics")]
    ranked = planned(index, q.Linear(tuple(q.ScoreComponent(each, 0.5) for each in lists_)), 10)
    assert ranked.seq_nos.tolist() == [2, 1, 3]
    assert ranked.scores.tolist() == [0.75, 0.5, 0.25]


def test_a_window_does_not_take_scores_from_a_document_that_another_list_found(
    shelf: Any, document: Callable[..., Document]
) -> None:
    # The first document is beyond the second list's window; its score there counts all the same.
    index = opened(
        shelf,
        document,
        [
            {"expansion": {"red": 8.0}, "topics": {"red": 1.0}},
            {"expansion": {"red": 1.0}, "topics": {"red": 4.0}},
        ],
    )
    lists_ = [q.Standard(q.SparseVectorQuery(name, sparse_vector(["red"], [1]))) for name in ("expansion", "topics")]
    ranked = planned(index, q.Linear(tuple(q.ScoreComponent(each) for each in lists_), window=1), 1)
    assert ranked.scores.tolist() == [1.25]


def test_rrf_counts_ranks_from_one(shelf: Any, document: Callable[..., Document]) -> None:
    index = opened(shelf, document, [{"expansion": {"red": 4.0}}, {"expansion": {"red": 8.0}, "topics": {"red": 1.0}}])
    lists_ = [q.Standard(q.SparseVectorQuery(name, sparse_vector(["red"], [1]))) for name in ("expansion", "topics")]
    ranked = planned(index, q.Rrf((q.RankComponent(lists_[0], 2.0), q.RankComponent(lists_[1]))), 10)
    assert ranked.scores.tolist() == pytest.approx([2 / 61 + 1 / 61, 2 / 62])
    assert ranked.exact


def test_a_filter_reaches_every_list_before_its_best_score_is_taken(
    shelf: Any, document: Callable[..., Document]
) -> None:
    index = opened(
        shelf,
        document,
        [{"expansion": {"red": 8.0}, "lang": "de"}, {"expansion": {"red": 4.0}, "lang": "en"}],
    )
    inner = q.Rrf((q.RankComponent(q.Standard(q.SparseVectorQuery("expansion", sparse_vector(["red"], [1])))),))
    for parts in (inner, inner.parts[0].retriever):
        retriever = q.Linear((q.ScoreComponent(parts),), filter=(q.Term("lang", "en"),))
        ranked = planned(index, retriever, 10)
        assert ranked.seq_nos.tolist() == [2]
        assert ranked.scores.tolist() == [1.0]


def test_what_a_fused_list_inside_another_did_not_show_counts_as_error(
    shelf: Any, document: Callable[..., Document]
) -> None:
    # The inner list holds both documents and shows one; the other scores .875 there.
    index = opened(shelf, document, [{"expansion": {"red": 8.0}}, {"expansion": {"red": 7.0}, "topics": {"red": 4.0}}])
    expansion, topics = (
        q.Standard(q.SparseVectorQuery(name, sparse_vector(["red"], [1]))) for name in ("expansion", "topics")
    )
    inner = q.Linear((q.ScoreComponent(expansion),))
    ranked = planned(index, q.Linear((q.ScoreComponent(inner), q.ScoreComponent(topics)), window=1), 1)
    assert not ranked.exact
    assert ranked.max_error >= 0.875
