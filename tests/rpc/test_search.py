"""The Search service, over a real channel; and every request that cannot work, with the path that is named."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format

from termwise.server.errors import InvalidArgumentError
from termwise.server.indices.catalog import Indices
from termwise.server.inference.fake import FakeExpander, word_weight
from termwise.server.ingest.bulk import Bulk
from termwise.server.ingest.pipelines import Pipelines
from termwise.server.ingest.writing import Writer
from termwise.server.metadata.store import MetadataStore
from termwise.server.rpc.convert.search import search_request, search_response
from termwise.server.rpc.indices import IndicesServicer
from termwise.server.rpc.search import SearchServicer
from termwise.server.search.searcher import Searcher
from termwise.storage.memory import MemoryStore
from termwise.v1 import indices_pb2, indices_pb2_grpc, search_pb2, search_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

MAPPING = {
    "properties": {
        "title": {"text": {"analyzer": "english"}},
        "text": {"text": {}},
        "lang": {"keyword": {}},
        "year": {"integer": {}},
        "text_expansion": {"sparseVector": {"searchDeploymentId": "for_search"}},
        "topics": {"sparseVector": {}},
    }
}
BODIES = {
    "1": {"title": "Salmon farms", "text": "salmon farm by the sea", "lang": "en", "year": 2016, "n": 2**60},
    "2": {"title": "Ponds", "text": "fish pond", "lang": "en", "year": 2010},
    "3": {"title": "Houses", "text": "farm house", "lang": "de", "year": 2020, "author": {"name": "A", "age": 3}},
}


@pytest.fixture
async def channel(serve: Callable[..., Awaitable[grpc.aio.Channel]], tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """Serve Search over the memory store, fake deployments and the index "docs"."""
    metadata = MetadataStore(tmp_path / "metadata.sqlite")
    store = MemoryStore()
    indices = Indices(metadata, lambda _: store, default_backend="memory")
    expander = FakeExpander()
    writer = Writer(indices, Pipelines(metadata, expander, indices))
    with ThreadPoolExecutor(2) as pool:
        channel = await serve(
            lambda server: indices_pb2_grpc.add_IndicesServicer_to_server(
                IndicesServicer(indices, writer, Bulk(writer)), server
            ),
            lambda server: search_pb2_grpc.add_SearchServicer_to_server(
                SearchServicer(Searcher(indices, expander, pool)), server
            ),
        )
        stub: Any = indices_pb2_grpc.IndicesStub(channel)
        await stub.CreateIndex(
            json_format.ParseDict({"index": "docs", "mapping": MAPPING}, indices_pb2.CreateIndexRequest())
        )
        operations = [
            {
                "put": {
                    "document": {"id": id_, "sourceJson": json.dumps(body), "sparseVectors": vectors(str(body["text"]))}
                }
            }
            for id_, body in BODIES.items()
        ]
        answer = await stub.BatchIndex(
            json_format.ParseDict({"index": "docs", "operations": operations}, indices_pb2.BatchIndexRequest())
        )
        assert answer.failed_count == 0
        yield channel
        await channel.close()
    await indices.close()
    metadata.close()


def vectors(text: str) -> dict[str, Any]:
    words = text.split()
    return {"text_expansion": {"tokens": words, "weights": [word_weight(word) for word in words]}}


@pytest.fixture
def search(channel: grpc.aio.Channel) -> Callable[..., Awaitable[search_pb2.SearchResponse]]:
    """Search "docs" with a request in JSON."""
    stub: Any = search_pb2_grpc.SearchStub(channel)

    async def ask(**body: Any) -> search_pb2.SearchResponse:
        answer: search_pb2.SearchResponse = await stub.Search(request_of(**body))
        return answer

    return ask


def request_of(**body: Any) -> search_pb2.SearchRequest:
    return json_format.ParseDict({"indices": ["docs"], **body}, search_pb2.SearchRequest())


Ask = Any


def ids(answer: search_pb2.SearchResponse) -> list[str]:
    return [hit.id for hit in answer.hits]


async def test_the_shortest_hybrid_search(search: Ask) -> None:
    answer = await search(retriever={"linear": {"text": "salmon farm", "fields": ["text", "text_expansion^2"]}})
    assert ids(answer) == ["1", "3"]
    assert answer.hits[0].score == answer.max_score == 3.0
    assert answer.scoring.exactness == search_pb2.Scoring.EXACTNESS_EXACT
    assert answer.scoring.max_score_error == 0
    assert (answer.total.value, answer.total.relation) == (2, search_pb2.TotalHits.RELATION_EQUAL)
    (expansion,) = answer.expansions
    assert (expansion.field, expansion.deployment_id, expansion.query_token_count) == (
        "text_expansion",
        "for_search",
        2,
    )
    assert list(expansion.vector.weights) == pytest.approx(sorted(map(word_weight, ("salmon", "farm")), reverse=True))
    timings = answer.timings
    assert timings.total.nanos >= timings.retrieve.nanos > 0


async def test_the_query_of_the_guide(search: Ask) -> None:
    query = {
        "boolean": {
            "should": [
                {
                    "text_expansion": {
                        "field": "text_expansion",
                        "text": "how is salmon farm fish",
                        "boost": 1.0,
                        "pruning_config": {
                            "tokens_freq_ratio_threshold": 5,
                            "tokens_weight_threshold": 0.4,
                            "only_score_pruned_tokens": False,
                        },
                    }
                },
                {"match": {"field": "text", "text": "salmon farm", "operator": "OPERATOR_OR", "boost": 0.5}},
            ],
            "filter": [
                {"term": {"field": "lang", "value": "en"}},
                {"range": {"field": "year", "gte": 2015, "lt": 2025}},
            ],
        }
    }
    answer = await search(query=query, size=10, min_score=0, source_filter={"includes": ["title"], "excludes": []})
    assert ids(answer) == ["1"]
    assert json_format.MessageToDict(answer.hits[0].source) == {"title": "Salmon farms"}
    assert answer.expansions[0].pruned_token_count == 2
    assert answer.hits[0].version == 1


async def test_bodies_come_in_the_form_asked_for(search: Ask) -> None:
    one = {"ids": {"ids": ["1"]}}
    hit = (await search(query=one, source_format="SOURCE_FORMAT_JSON")).hits[0]
    assert hit.source_json == json.dumps(BODIES["1"])
    hit = (await search(query=one)).hits[0]
    assert hit.source["title"] == "Salmon farms"
    hit = (await search(query=one, source_format="SOURCE_FORMAT_NONE")).hits[0]
    assert hit.WhichOneof("body") is None
    hit = (
        await search(
            query={"ids": {"ids": ["3"]}},
            source_format="SOURCE_FORMAT_JSON",
            source_filter={"includes": ["author", "year"], "excludes": ["*.age"]},
        )
    ).hits[0]
    assert json.loads(hit.source_json) == {"year": 2020, "author": {"name": "A"}}
    hit = (await search(query=one, include_sparse_vectors=["*"])).hits[0]
    assert list(hit.sparse_vectors) == ["text_expansion"]
    assert dict(
        zip(hit.sparse_vectors["text_expansion"].tokens, hit.sparse_vectors["text_expansion"].weights, strict=True)
    )["salmon"] == pytest.approx(word_weight("salmon"))


async def test_a_large_answer_leaves_the_event_loop_to_others(
    channel: grpc.aio.Channel, search: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub: Any = indices_pb2_grpc.IndicesStub(channel)
    request = indices_pb2.PutDocumentRequest(index="docs")
    request.document.id = "large"
    request.document.source_json = json.dumps({f"key{number:05}": number for number in range(10_000)})
    await stub.PutDocument(request)
    threads: list[threading.Thread] = []

    def convert(*given: Any) -> search_pb2.SearchResponse:
        threads.append(threading.current_thread())
        return search_response(*given)

    monkeypatch.setattr("termwise.server.rpc.search.search_response", convert)
    await search(query={"ids": {"ids": ["large"]}}, source_filter={"includes": ["*none*"] * 100})
    await search(query={"ids": {"ids": ["large"]}})
    await search(query={"ids": {"ids": ["1"]}})
    # The server shares this test's loop, and so its thread.
    assert [thread is threading.current_thread() for thread in threads] == [False, False, True]


async def test_neither_query_nor_retriever_finds_all(search: Ask) -> None:
    answer = await search()
    assert ids(answer) == ["1", "2", "3"]
    assert [hit.score for hit in answer.hits] == [1, 1, 1]
    assert ids(await search(retriever={"standard": {}})) == ["1", "2", "3"]
    answer = await search(size=0)
    assert (ids(answer), answer.total.value) == ([], 3)
    answer = await search(query={"match": {"field": "text", "text": "nothing"}})
    assert (ids(answer), answer.total.value) == ([], 0)
    assert not answer.HasField("max_score")
    assert answer.total.HasField("value")


async def test_kinds_of_queries(search: Ask) -> None:
    for query, found in (
        ({"match": {"field": "text", "text": "FARM pond"}}, {"1", "2", "3"}),
        ({"match": {"field": "text", "text": "salmon farm", "operator": "OPERATOR_AND"}}, {"1"}),
        ({"match": {"field": "title", "text": "house"}}, {"3"}),
        ({"term": {"field": "year", "value": "2010"}}, {"2"}),
        ({"terms": {"field": "lang", "values": ["de", "fr"]}}, {"3"}),
        ({"range": {"field": "year", "gt": 2010}}, {"1", "3"}),
        ({"exists": {"field": "text_expansion"}}, {"1", "2", "3"}),
        ({"exists": {"field": "topics"}}, set()),
        ({"ids": {"ids": ["2", "nobody"]}}, {"2"}),
        ({"sparse_vector": {"field": "text_expansion", "vector": {"tokens": ["pond"], "weights": [2]}}}, {"2"}),
        ({"text_expansion": {"field": "text_expansion", "text": "house"}}, {"3"}),
        ({"boolean": {"must_not": [{"term": {"field": "lang", "value": "en"}}]}}, {"3"}),
        ({"boolean": {}}, {"1", "2", "3"}),
        (
            {
                "boolean": {
                    "should": [
                        {"match": {"field": "text", "text": "farm"}},
                        {"term": {"field": "lang", "value": "en"}},
                        {"range": {"field": "year", "lt": 2015}},
                    ],
                    "minimum_should_match": 2,
                }
            },
            {"1", "2"},
        ),
    ):
        assert set(ids(await search(query=query))) == found, query


async def test_a_narrow_window_says_how_far_off_it_may_be(search: Ask) -> None:
    # One list has 3 before 1, the other 1 before 3; of each, one is read.
    lists = [
        {"retriever": {"standard": {"query": {"match": {"field": "text", "text": text}}}}}
        for text in ("farm house", "salmon farm")
    ]
    answer = await search(retriever={"rrf": {"retrievers": lists, "rank_window_size": 1}}, size=1)
    assert [(hit.id, hit.score) for hit in answer.hits] == [("1", pytest.approx(1 / 61))]
    assert answer.scoring.exactness == search_pb2.Scoring.EXACTNESS_BOUNDED
    assert answer.scoring.max_score_error == pytest.approx(1 / 62)
    assert answer.total.relation == search_pb2.TotalHits.RELATION_AT_LEAST
    answer = await search(retriever={"rrf": {"retrievers": lists}}, size=1)
    assert [(hit.id, hit.score) for hit in answer.hits] == [("1", pytest.approx(1 / 61 + 1 / 62))]
    assert answer.scoring.exactness == search_pb2.Scoring.EXACTNESS_EXACT
    assert (answer.total.value, answer.total.relation) == (2, search_pb2.TotalHits.RELATION_EQUAL)


async def test_hits_are_counted_as_far_as_asked(search: Ask) -> None:
    farm = {"match": {"field": "text", "text": "farm pond"}}
    at_least, equal = search_pb2.TotalHits.RELATION_AT_LEAST, search_pb2.TotalHits.RELATION_EQUAL
    for limit, relation in ((None, equal), (1, at_least), (3, None), (4, equal)):
        asked = {} if limit is None else {"track_total_hits": limit}
        answer = await search(query=farm, size=1, **asked)
        assert ids(answer) == ["2"]
        assert answer.total.value == 3 if answer.total.relation == equal else limit <= answer.total.value <= 3
        assert relation is None or answer.total.relation == relation
    counted = await search(query=farm, size=0, track_total_hits=10)
    assert (counted.total.value, counted.total.relation, len(counted.hits)) == (3, equal, 0)


async def test_errors_reach_the_caller(channel: grpc.aio.Channel, details_of: Any) -> None:
    stub: Any = search_pb2_grpc.SearchStub(channel)
    for body, code, field in (
        ({"indices": ["docz"]}, grpc.StatusCode.NOT_FOUND, "indices[0]"),
        ({"query": {"match": {"field": "titel", "text": "a"}}}, grpc.StatusCode.INVALID_ARGUMENT, "query.match.field"),
        (
            {"query": {"text_expansion": {"field": "topics", "text": "a"}}},
            grpc.StatusCode.FAILED_PRECONDITION,
            "query.text_expansion.field",
        ),
        (
            {"retriever": {"linear": {"text": "farm"}}},  # topics has no search deployment
            grpc.StatusCode.FAILED_PRECONDITION,
            "retriever.linear.text",
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Search(request_of(**body))  # type: ignore[arg-type]
        details = details_of(caught.value)
        assert details["code"] == code, body
        assert details["BadRequest"].field_violations[0].field == field


def nested(levels: int) -> dict[str, Any]:
    query: dict[str, Any] = {"match_all": {}}
    for _ in range(levels):
        query = {"boolean": {"must": [query]}}
    return query


def sparse(tokens: list[str], weights: list[Any]) -> dict[str, Any]:
    return {"query": {"sparse_vector": {"field": "f", "vector": {"tokens": tokens, "weights": weights}}}}


def expansion(**body: Any) -> dict[str, Any]:
    return {"query": {"text_expansion": {"field": "f", "text": "a", **body}}}


MATCH = {"match": {"field": "f", "text": "a"}}

BAD: list[tuple[str, dict[str, Any]]] = [
    ("indices", {"indices": []}),
    ("indices", {"indices": ["a", "b"]}),
    ("indices[0]", {"indices": ["UPPER"]}),
    ("size", {"size": -1}),
    ("size", {"size": 10**6}),
    ("offset", {"offset": -1}),
    ("track_total_hits", {"track_total_hits": -1}),
    ("offset", {"offset": 9_995, "size": 6}),
    ("min_score", {"min_score": "NaN"}),
    ("source_format", {"source_format": 9}),
    ("query", {"query": {}}),
    ("query.boolean.should[1]", {"query": {"boolean": {"should": [MATCH, {}]}}}),
    ("query.boolean.should[1].match.field", {"query": {"boolean": {"should": [MATCH, {"match": {"text": "a"}}]}}}),
    ("query.boolean.minimum_should_match", {"query": {"boolean": {"minimum_should_match": -1}}}),
    ("query.boolean.must_not[0].term.value", {"query": {"boolean": {"must_not": [{"term": {"field": "f"}}]}}}),
    ("query.boolean.boost", {"query": {"boolean": {"boost": -0.5}}}),
    ("query.match_all.boost", {"query": {"match_all": {"boost": "NaN"}}}),
    ("query.match.boost", {"query": {"match": {"field": "f", "text": "a", "boost": "Infinity"}}}),
    ("query.match.operator", {"query": {"match": {"field": "f", "text": "a", "operator": 7}}}),
    ("query.term.value", {"query": {"term": {"field": "f", "value": None}}}),
    ("query.term.value", {"query": {"term": {"field": "f", "value": [1]}}}),
    ("query.terms.values", {"query": {"terms": {"field": "f", "values": []}}}),
    ("query.terms.values[1]", {"query": {"terms": {"field": "f", "values": ["a", {}]}}}),
    ("query.range", {"query": {"range": {"field": "f"}}}),
    ("query.range.gt", {"query": {"range": {"field": "f", "gte": 1, "gt": 1}}}),
    ("query.range.lt", {"query": {"range": {"field": "f", "lte": 1, "lt": 1}}}),
    ("query.ids.ids", {"query": {"ids": {"ids": []}}}),
    ("query.ids.ids[1]", {"query": {"ids": {"ids": ["a", "b" * 600]}}}),
    ("source_filter.includes", {"source_filter": {"includes": ["a"] * 101}}),
    ("source_filter.excludes", {"source_filter": {"excludes": ["a"] * 101}}),
    ("query.exists.field", {"query": {"exists": {}}}),
    ("query.sparse_vector.vector", sparse([], [])),
    ("query.sparse_vector.vector", {"query": {"sparse_vector": {"field": "f"}}}),
    *[("query.sparse_vector.vector", sparse(["a"], [bad])) for bad in ("NaN", 0, -1, "Infinity", 1e-40)],
    ("query.sparse_vector.vector", sparse(["a", "b"], [1])),
    ("query.sparse_vector.vector", sparse(["a", "a"], [1, 2])),
    ("query.sparse_vector.vector", sparse(["x" * 70_000], [1])),
    ("query.sparse_vector.vector", sparse([""], [1])),
    ("query.text_expansion.text", expansion(text="")),
    ("query.text_expansion.text", expansion(text=" \n")),
    ("query.text_expansion.deployment_id", expansion(deployment_id="No Such")),
    *[
        ("query.text_expansion.pruning_config.tokens_freq_ratio_threshold", expansion(pruning_config=config))
        for config in ({"tokens_freq_ratio_threshold": bad} for bad in (0.99, 101, "NaN"))
    ],
    *[
        ("query.text_expansion.pruning_config.tokens_weight_threshold", expansion(pruning_config=config))
        for config in ({"tokens_weight_threshold": bad} for bad in (-0.1, 1.01, "NaN"))
    ],
    ("retriever", {"retriever": {}}),
    ("retriever.standard.query", {"retriever": {"standard": {"query": {}}}}),
    ("retriever.standard.min_score", {"retriever": {"standard": {"min_score": "NaN"}}}),
    ("retriever.standard.filter[0]", {"retriever": {"standard": {"filter": [{}]}}}),
    ("retriever.rrf", {"retriever": {"rrf": {}}}),
    ("retriever.rrf.text", {"retriever": {"rrf": {"text": "  "}}}),
    ("retriever.rrf.text", {"retriever": {"rrf": {"fields": ["f"]}}}),
    (
        "retriever.rrf.retrievers",
        {"retriever": {"rrf": {"text": "a", "retrievers": [{"retriever": {"standard": {}}}]}}},
    ),
    ("retriever.rrf.retrievers[0].retriever", {"retriever": {"rrf": {"retrievers": [{}]}}}),
    (
        "retriever.rrf.retrievers[1].weight",
        {"retriever": {"rrf": {"retrievers": [{"retriever": {"standard": {}}, "weight": w} for w in (1, -1)]}}},
    ),
    ("retriever.rrf.rank_constant", {"retriever": {"rrf": {"text": "a", "rank_constant": 0}}}),
    ("retriever.rrf.rank_window_size", {"retriever": {"rrf": {"text": "a", "rank_window_size": 0}}}),
    ("retriever.rrf.rank_window_size", {"retriever": {"rrf": {"text": "a", "rank_window_size": 10_001}}}),
    ("retriever.rrf.rank_window_size", {"size": 20, "retriever": {"rrf": {"text": "a", "rank_window_size": 19}}}),
    ("retriever.linear.fields[1]", {"retriever": {"linear": {"text": "a", "fields": ["f", "g^x"]}}}),
    ("retriever.linear.fields[0]", {"retriever": {"linear": {"text": "a", "fields": ["g^-1"]}}}),
    ("retriever.linear.fields[0]", {"retriever": {"linear": {"text": "a", "fields": ["g^nan"]}}}),
    ("retriever.linear.normalizer", {"retriever": {"linear": {"text": "a", "normalizer": 9}}}),
    (
        "retriever.linear.retrievers[0].retriever.rrf.retrievers[0].retriever.standard.query.match.field",
        {
            "retriever": {
                "linear": {
                    "retrievers": [
                        {"retriever": {"rrf": {"retrievers": [{"retriever": {"standard": {"query": {"match": {}}}}}]}}}
                    ]
                }
            }
        },
    ),
    ("query" + ".boolean.must[0]" * 30 + ".match_all", {"query": nested(30)}),
    ("query.boolean.should[1023].match", {"query": {"boolean": {"should": [MATCH] * 1024}}}),
    ("retriever.linear.fields[1023]", {"retriever": {"linear": {"text": "a", "fields": ["f"] * 1024}}}),
]


@pytest.mark.parametrize(
    ("field", "body"), BAD, ids=[f"{number}-{field[:60]}" for number, (field, _) in enumerate(BAD)]
)
def test_what_cannot_work_is_named(field: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        search_request(request_of(**body))
    assert caught.value.violations[0].field == field
    assert len(caught.value.message) < 200 + len(field)


def test_a_request_of_a_thousand_levels_is_refused_without_overflow() -> None:
    message = search_pb2.SearchRequest(indices=["docs"])
    inner = message.query
    for _ in range(1_000):
        inner = inner.boolean.must.add()
    inner.match_all.SetInParent()
    with pytest.raises(InvalidArgumentError, match="levels deep"):
        search_request(message)


def test_a_query_of_29_levels_is_read() -> None:
    assert search_request(request_of(query=nested(29))).index == "docs"


def test_windows_follow_the_page_where_none_is_given() -> None:
    for kind, default in (("rrf", 100), ("linear", 1_000)):
        for size, window in ((10, default), (5_000, 5_000)):
            request = search_request(request_of(size=size, retriever={kind: {"text": "a"}}))
            assert request.retriever.window == window  # type: ignore[union-attr]
