"""The use case over the memory store and fake deployments."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.context import RequestContext
from termwise.server.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    TermwiseError,
    invalid_field,
    not_found,
)
from termwise.server.indices.mapping import FieldMapping, Mapping
from termwise.server.inference.base import Side
from termwise.server.inference.fake import FakeEncoder, FakeExpander, word_weight
from termwise.server.search import query as q
from termwise.server.search.searcher import Searcher
from termwise.storage.errors import StorageError
from termwise.storage.types import Document, FieldKind, Lexical, sparse_vector

if TYPE_CHECKING:
    from collections.abc import Callable

CONTEXT = RequestContext("test")
TEXTS = ["salmon farm by the sea", "fish pond", "farm house", "red car"]


@pytest.fixture
def expander() -> FakeExpander:
    """Give fake deployments."""
    return FakeExpander()


@pytest.fixture
def searcher(
    shelf: Any, pool: ThreadPoolExecutor, expander: FakeExpander, document: Callable[..., Document]
) -> Searcher:
    """Give a searcher over the index "docs"."""
    shelf.add(
        "docs",
        [
            document(
                str(place),
                text=text,
                year=2000 + place,
                lang="en",
                expansion={word: word_weight(word) for word in text.split()},
            )
            for place, text in enumerate(TEXTS)
        ],
    )
    return Searcher(shelf, expander, pool)


def ask(query: q.Query, **settings: Any) -> q.SearchRequest:
    return q.SearchRequest("docs", q.Standard(query), **settings)


async def test_a_text_is_expanded_and_searched(searcher: Searcher) -> None:
    result = await searcher.search(CONTEXT, ask(q.TextExpansion("expansion", "farm fish")))
    expected = {"0": word_weight("farm"), "1": word_weight("fish"), "2": word_weight("farm")}
    assert {hit.id: hit.score for hit in result.hits} == pytest.approx(
        {id_: weight**2 for id_, weight in expected.items()}
    )
    assert [hit.score for hit in result.hits] == sorted((hit.score for hit in result.hits), reverse=True)
    assert (result.total, result.counted, result.exact) == (3, True, True)
    (expansion,) = result.expansions
    assert expansion.vector.tokens == tuple(sorted(("farm", "fish"), key=word_weight, reverse=True))
    assert (expansion.field, expansion.deployment_id, expansion.pruned_token_count) == ("expansion", "for_search", 0)
    timings = result.timings
    assert timings.total >= timings.encode + timings.retrieve + timings.fetch - 1e-9 > 0


async def test_equal_texts_are_expanded_once_and_as_queries(searcher: Searcher, expander: FakeExpander) -> None:
    clauses = (
        q.TextExpansion("expansion", "farm"),
        q.TextExpansion("topics", "farm", "for_search"),
        q.TextExpansion("expansion", "fish"),
        q.TextExpansion("expansion", "farm", "for_ingest"),
        q.TextExpansion("expansion", "farm", boost=2),
    )
    result = await searcher.search(CONTEXT, ask(q.Boolean(should=clauses)))
    assert sorted(expander.calls) == [
        ("for_ingest", ["farm"], Side.QUERY),
        ("for_search", ["farm", "fish"], Side.QUERY),
    ]
    assert [(each.field, each.deployment_id, each.vector.tokens) for each in result.expansions] == [
        ("expansion", "for_search", ("farm",)),
        ("topics", "for_search", ("farm",)),
        ("expansion", "for_search", ("fish",)),
        ("expansion", "for_ingest", ("farm",)),
    ]


async def test_pruning_is_reported(searcher: Searcher) -> None:
    pruning = q.PruningConfig(frequency_ratio=1.0, weight_ratio=1.0)
    result = await searcher.search(CONTEXT, ask(q.TextExpansion("expansion", "farm pond nowhere", pruning=pruning)))
    (expansion,) = result.expansions
    # 10 postings of 9 tokens in 4 documents: farm (df 2) is frequent; "nowhere" is in no document.
    assert expansion.pruned_token_count == 2
    assert [hit.id for hit in result.hits] == ["1"]
    kept = q.PruningConfig(frequency_ratio=1.0, weight_ratio=1.0, only_pruned=True)
    result = await searcher.search(CONTEXT, ask(q.TextExpansion("expansion", "farm pond", pruning=kept)))
    assert sorted(hit.id for hit in result.hits) == ["0", "2"]


async def test_a_text_without_tokens_finds_nothing(searcher: Searcher) -> None:
    result = await searcher.search(CONTEXT, ask(q.TextExpansion("expansion", "!?")))
    assert (result.hits, result.total, result.counted, result.max_score) == ((), 0, True, None)


async def test_pages_follow_each_other(searcher: Searcher) -> None:
    everything = [hit.id for hit in (await searcher.search(CONTEXT, ask(q.MatchAll()))).hits]
    assert everything == ["0", "1", "2", "3"]
    for offset in range(5):
        result = await searcher.search(CONTEXT, ask(q.MatchAll(), offset=offset, size=2))
        assert [hit.id for hit in result.hits] == everything[offset : offset + 2]
        assert (result.total, result.max_score) == (4, 1.0)


async def test_no_hits_still_count(searcher: Searcher) -> None:
    both = q.Boolean(should=(q.Match("text", "farm"), q.TextExpansion("expansion", "pond")))
    result = await searcher.search(CONTEXT, ask(both, size=0))
    assert (result.hits, result.total, result.counted) == ((), 3, True)


async def test_low_scores_are_dropped(searcher: Searcher) -> None:
    query = q.SparseVectorQuery("expansion", sparse_vector(["farm", "house"], [1, 1]))
    all_hits = (await searcher.search(CONTEXT, ask(query))).hits
    assert [hit.id for hit in all_hits] == ["2", "0"]
    result = await searcher.search(CONTEXT, ask(query, min_score=all_hits[0].score))
    assert [hit.id for hit in result.hits] == ["2"]
    assert (result.total, result.counted) == (1, True)


async def test_hybrid_short_form_searches_every_text_and_sparse_field(
    shelf: Any, pool: ThreadPoolExecutor, expander: FakeExpander, document: Callable[..., Document]
) -> None:
    mapping = Mapping(
        {
            "text": FieldMapping(FieldKind.TEXT),
            "lang": FieldMapping(FieldKind.KEYWORD),
            "expansion": FieldMapping(FieldKind.SPARSE_VECTOR, search_deployment_id="for_search"),
        }
    )
    shelf.add("docs", [document("1", text="farm"), document("2", expansion={"farm": 1.0})], mapping)
    searcher = Searcher(shelf, expander, pool)
    for retriever in (q.Linear(q.ShortForm("farm")), q.Rrf(q.ShortForm("farm", BOTH))):
        result = await searcher.search(CONTEXT, q.SearchRequest("docs", retriever))
        assert [hit.id for hit in result.hits] == ["1", "2"]
        assert result.hits[0].score == result.hits[1].score
    weighed = q.Linear(q.ShortForm("farm", (("text", 1.0), ("expansion", 2.0))))
    result = await searcher.search(CONTEXT, q.SearchRequest("docs", weighed))
    assert [(hit.id, hit.score) for hit in result.hits] == [("2", 2.0), ("1", 1.0)]


async def test_sparse_vectors_come_where_asked_for(searcher: Searcher) -> None:
    for names, given in (((), set()), (("expansion",), {"expansion"}), (("*",), {"expansion"}), (("topics",), set())):
        result = await searcher.search(CONTEXT, ask(q.Ids(("0",)), sparse_vectors=names))
        assert set(result.hits[0].sparse_vectors) == given
    for name in ("nothing", "text"):
        with pytest.raises(InvalidArgumentError) as caught:
            await searcher.search(CONTEXT, ask(q.MatchAll(), sparse_vectors=("*", name)))
        assert caught.value.violations[0].field == "include_sparse_vectors[1]"


@pytest.mark.parametrize(
    ("query", "field", "words"),
    [
        (q.Match("titel", "a"), "query.match.field", 'did you mean "title"'),
        (q.Match("lang", "a"), "query.match.field", "of kind text"),
        (q.Term("text", "a"), "query.term.field", "keyword, integer, number, boolean and date"),
        (q.Term("expansion", "a"), "query.term.field", "sparse_vector"),
        (q.Term("year", "long ago"), "query.term.value", "long ago"),
        (q.Term("year", 2.5), "query.term.value", "2.5"),
        (q.Term("draft", "perhaps"), "query.term.value", "perhaps"),
        (q.Terms("year", (1, 2, 2**63)), "query.terms.values[2]", "64 bits"),
        (q.Range("draft", gte=True), "query.range.field", "integer, number, date and keyword"),
        (q.Range("published", gte="soon"), "query.range.gte", "soon"),
        (q.Exists("nothing"), "query.exists.field", "nothing"),
        (q.SparseVectorQuery("text", sparse_vector(["a"], [1])), "query.sparse_vector.field", "sparse_vector"),
        (q.TextExpansion("text", "a"), "query.text_expansion.field", "sparse_vector"),
        (q.Match("text", "a" * 200_000), "query.match.text", "200,000"),
    ],
)
async def test_what_does_not_fit_the_mapping_is_named(
    searcher: Searcher, query: q.Query, field: str, words: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await searcher.search(CONTEXT, ask(query))
    assert caught.value.violations[0].field == field
    assert words in caught.value.message


async def test_values_take_the_type_of_their_field(
    shelf: Any, pool: ThreadPoolExecutor, expander: FakeExpander, document: Callable[..., Document]
) -> None:
    moment = 1_714_566_600_000_000
    shelf.add(
        "docs",
        [
            document("1", year=2**53 + 1, price=2.5, draft=True, published=moment, lang="7"),
            document("2", year=3, price=2.0, draft=False, published=moment + 1_000_000),
        ],
    )
    searcher = Searcher(shelf, expander, pool)
    for query in (
        q.Term("year", str(2**53 + 1)),
        q.Terms("price", (2.5, 9)),
        q.Term("draft", value=True),
        q.Term("published", "2024-05-01T12:30:00Z"),
        q.Term("published", moment // 1000),
        q.Term("lang", 7),
        q.Range("year", gt="3"),
        q.Range("year", gte=3.5),
        q.Range("price", gt=2),
        q.Range("published", lte="2024-05-01T14:30:00+02:00"),
        q.Boolean(must_not=(q.Range("year", lt=3.5),)),
    ):
        result = await searcher.search(CONTEXT, ask(query))
        assert [hit.id for hit in result.hits] == ["1"], query


async def test_an_unknown_index_or_deployment_is_not_found(searcher: Searcher) -> None:
    with pytest.raises(NotFoundError) as caught:
        await searcher.search(CONTEXT, q.SearchRequest("docz"))
    assert 'did you mean "docs"' in caught.value.message
    assert caught.value.violations[0].field == "indices[0]"
    with pytest.raises(NotFoundError) as caught:
        await searcher.search(CONTEXT, ask(q.TextExpansion("expansion", "a", "nothing")))
    assert [each.field for each in caught.value.violations] == ["query.text_expansion.deployment_id"]


class Refuser:
    """Deployments that refuse every text, naming the fields of their own request."""

    def __init__(self, error: TermwiseError) -> None:
        self.error = error

    async def expand(self, *_: Any, **__: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "texts", "fields"),
    [
        (
            invalid_field("texts", "too long"),
            ("a", "a"),
            ["query.boolean.should[0].text", "query.boolean.should[1].text"],
        ),
        (invalid_field("texts", "too long"), ("a", "b"), []),
        (not_found("deployment", "for_search", field="deployment_id"), ("a", "b"), ["expansion.field", "topics.id"]),
        (FailedPreconditionError("It is stopping."), ("a", "b"), ["expansion.field", "topics.id"]),
        (ResourceExhaustedError("It is full."), ("a", "b"), []),
    ],
)
async def test_errors_of_a_deployment_name_the_fields_of_the_search(
    shelf: Any, pool: ThreadPoolExecutor, error: TermwiseError, texts: tuple[str, str], fields: list[str]
) -> None:
    shelf.add("docs", [])
    shoulds = (
        q.TextExpansion("expansion", texts[0], at="query.boolean.should[0]"),
        q.TextExpansion("topics", texts[1], "for_search", at="query.boolean.should[1]"),
    )
    with pytest.raises(type(error)) as caught:
        await Searcher(shelf, Refuser(error), pool).search(CONTEXT, ask(q.Boolean(should=shoulds)))
    paths = {"expansion.field": "query.boolean.should[0].field", "topics.id": "query.boolean.should[1].deployment_id"}
    assert [each.field for each in caught.value.violations] == [paths.get(field, field) for field in fields]
    assert caught.value.message == error.message.removeprefix("texts: ")
    assert caught.value.reason_code == error.reason_code


async def test_a_field_without_a_search_deployment_says_what_to_do(searcher: Searcher) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        await searcher.search(CONTEXT, ask(q.TextExpansion("topics", "a")))
    assert caught.value.message == (
        'Field "topics" has no search deployment; '
        "set search_deployment_id in the mapping or deployment_id in the query."
    )
    with pytest.raises(FailedPreconditionError) as caught:
        await searcher.search(CONTEXT, q.SearchRequest("docs", q.Linear(q.ShortForm("a"))))
    assert caught.value.message.endswith("set search_deployment_id in the mapping or name other fields.")


async def test_a_model_that_does_not_fit_the_vectors_is_refused(
    shelf: Any, pool: ThreadPoolExecutor, expander: FakeExpander, document: Callable[..., Document]
) -> None:
    own = expander.encoders["for_search"].fingerprint(Side.QUERY)
    expander.encoders["prefixed"] = FakeEncoder(query_prefix="query: ")
    prefixed = expander.encoders["prefixed"]
    shelf.add("docs", [document("1", expansion={"farm": 1.0})], fingerprints={"expansion": own})
    asked: list[tuple[str, str]] = []

    def paired(query: str, held: str) -> bool:
        asked.append((query, held))
        return (query, held) == (prefixed.fingerprint(Side.QUERY), prefixed.fingerprint(Side.DOCUMENT))

    searcher = Searcher(shelf, expander, pool, paired)
    assert len((await searcher.search(CONTEXT, ask(q.TextExpansion("expansion", "farm")))).hits) == 1
    assert asked == []
    query = q.TextExpansion("expansion", "farm", "prefixed")
    # The document sides of the two fakes are the same; the query side is another one, and the records pair them.
    assert prefixed.fingerprint(Side.DOCUMENT) == own
    for _ in range(2):
        assert len((await searcher.search(CONTEXT, ask(query))).hits) == 1
    assert asked == [(prefixed.fingerprint(Side.QUERY), own)]
    expander.encoders["other"] = FakeEncoder(max_tokens=5)
    other = expander.encoders["other"].fingerprint(Side.QUERY)
    with pytest.raises(FailedPreconditionError) as caught:
        await searcher.search(CONTEXT, ask(q.TextExpansion("expansion", "farm", "other")))
    assert own in caught.value.message
    assert other in caught.value.message
    free = q.TextExpansion("topics", "farm", "other")
    assert (await searcher.search(CONTEXT, ask(free))).total == 0


async def test_the_mapping_says_which_model_an_unbound_field_is_for(
    shelf: Any, pool: ThreadPoolExecutor, expander: FakeExpander
) -> None:
    for name, model in (("mine", "fake"), ("its_alias", "invented"), ("theirs", "another")):
        field = FieldMapping(FieldKind.SPARSE_VECTOR, model_id=model, search_deployment_id="for_search")
        shelf.add(name, [], Mapping({"expansion": field}))
    searcher = Searcher(shelf, expander, pool)
    target = q.Standard(q.TextExpansion("expansion", "farm"))
    for name in ("mine", "its_alias"):
        assert (await searcher.search(CONTEXT, q.SearchRequest(name, target))).total == 0
    with pytest.raises(FailedPreconditionError, match="another"):
        await searcher.search(CONTEXT, q.SearchRequest("theirs", target))


async def test_a_passed_deadline_ends_the_search(searcher: Searcher) -> None:
    late = RequestContext("test", deadline=time.monotonic() - 1)
    for query in (q.Match("text", "farm"), q.TextExpansion("expansion", "farm")):
        with pytest.raises(DeadlineExceededError):
            await searcher.search(late, ask(query))


async def test_a_full_queue_fails_the_search(shelf: Any, pool: ThreadPoolExecutor, searcher: Searcher) -> None:
    assert searcher is not None

    class Full:
        async def expand(self, *_: object, **__: object) -> Any:
            raise ResourceExhaustedError("The queue is full.")

    with pytest.raises(ResourceExhaustedError):
        await Searcher(shelf, Full(), pool).search(CONTEXT, ask(q.TextExpansion("expansion", "farm")))  # type: ignore[arg-type]


class Gate:
    """An index whose readers hold each ranking until the gate opens, and count those that run.

    Leaves of the class `broken` cannot be ranked.
    """

    def __init__(self, index: Any) -> None:
        self.index = index
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.ranked = 0
        self.fetched = 0
        self.broken: type = type(None)

    def reader(self) -> Any:
        gate, reader = self, self.index.reader()

        class Reader:
            def rank(self, leaf: Any, *arguments: Any, **options: Any) -> Any:
                gate.entered.release()
                assert gate.open.wait(30)
                if isinstance(leaf, gate.broken):
                    raise StorageError("The index is broken.")
                gate.ranked += 1
                return reader.rank(leaf, *arguments, **options)

            def fetch(self, *arguments: Any, **options: Any) -> Any:
                gate.fetched += 1
                return reader.fetch(*arguments, **options)

            def __getattr__(self, name: str) -> Any:
                return getattr(reader, name)

        return Reader()


def gated(shelf: Any) -> Gate:
    opened = shelf.indices["docs"]
    gate = Gate(opened.index)
    shelf.indices["docs"] = type(opened)(opened.record, opened.mapping, gate, opened.fingerprints)
    return gate


async def test_the_lists_of_a_search_are_read_side_by_side(shelf: Any, searcher: Searcher) -> None:
    gate = gated(shelf)
    both = q.Boolean(should=(q.Match("text", "farm"), q.Match("text", "pond")))
    running = asyncio.create_task(searcher.search(CONTEXT, ask(both)))
    for _ in range(2):  # both lists wait at the gate at the same time
        assert await asyncio.to_thread(gate.entered.acquire, timeout=30)
    gate.open.set()
    assert sorted(hit.id for hit in (await running).hits) == ["0", "1", "2"]


BOTH = (("text", 1.0), ("expansion", 1.0))
HYBRIDS: list[q.Query | q.Retriever] = [
    q.Boolean(should=(q.Match("text", "farm"), q.TextExpansion("expansion", "farm", boost=0.5))),
    q.Boolean(must=(q.Match("text", "farm"),), should=(q.TextExpansion("expansion", "pond"), q.Term("lang", "en"))),
    q.Rrf(q.ShortForm("farm", BOTH)),
    q.Linear(q.ShortForm("farm pond", (("text", 1.0), ("expansion", 2.0)))),
    q.Linear(q.ShortForm("farm", BOTH), normalizer=q.Normalizer.MINMAX),
]


@pytest.mark.parametrize("hybrid", HYBRIDS)
async def test_hybrid_searches_answer_alike_however_many_threads_there_are(
    shelf: Any, expander: FakeExpander, searcher: Searcher, hybrid: Any
) -> None:
    asked = ask(hybrid) if isinstance(hybrid, q.Boolean) else q.SearchRequest("docs", hybrid)
    expected = await searcher.search(CONTEXT, asked)
    assert expected.hits
    for threads in (1, 3):
        with ThreadPoolExecutor(threads) as pool:
            alone = Searcher(shelf, expander, pool)
            found = await asyncio.gather(*(alone.search(CONTEXT, asked) for _ in range(8)))
        for each in found:
            assert [(hit.id, hit.score) for hit in each.hits] == [(hit.id, hit.score) for hit in expected.hits]
            assert (each.total, each.exact, each.max_score) == (expected.total, expected.exact, expected.max_score)


@pytest.mark.parametrize("hybrid", HYBRIDS)
@pytest.mark.parametrize("threads", [1, 2])
async def test_an_error_in_one_list_fails_the_hybrid(
    shelf: Any, expander: FakeExpander, searcher: Searcher, hybrid: Any, threads: int
) -> None:
    assert searcher is not None
    gate = gated(shelf)
    gate.open.set()
    gate.broken = Lexical
    asked = ask(hybrid) if isinstance(hybrid, q.Boolean) else q.SearchRequest("docs", hybrid)
    with ThreadPoolExecutor(threads) as pool, pytest.raises(StorageError, match="broken"):
        await Searcher(shelf, expander, pool).search(CONTEXT, asked)
    assert gate.fetched == 0


async def test_a_deadline_that_passes_while_lists_are_read_ends_a_hybrid(
    shelf: Any, searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = gated(shelf)
    clock = [time.monotonic()]
    monkeypatch.setattr("termwise.server.search.view.time", SimpleNamespace(monotonic=lambda: clock[0]))
    soon = RequestContext("test", deadline=clock[0] + 60)
    running = asyncio.create_task(searcher.search(soon, q.SearchRequest("docs", q.Rrf(q.ShortForm("farm", BOTH)))))
    for _ in range(2):
        assert await asyncio.to_thread(gate.entered.acquire, timeout=30)
    clock[0] += 60
    gate.open.set()
    with pytest.raises(DeadlineExceededError):
        await running
    assert gate.fetched == 0


async def test_a_cancelled_search_goes_no_further(shelf: Any, searcher: Searcher, pool: ThreadPoolExecutor) -> None:
    gate = gated(shelf)
    running = asyncio.create_task(searcher.search(CONTEXT, ask(q.Match("text", "farm"))))
    assert await asyncio.to_thread(gate.entered.acquire, timeout=30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    gate.open.set()
    pool.shutdown(wait=True)
    assert (gate.ranked, gate.fetched) == (1, 0)
