"""The Indices service, over a real channel."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format
from google.rpc import code_pb2, error_details_pb2

from termwise.server.indices.catalog import Indices
from termwise.server.inference.fake import FakeExpander, word_weight
from termwise.server.ingest.bulk import Bulk
from termwise.server.ingest.pipelines import Pipelines
from termwise.server.ingest.writing import Writer
from termwise.server.metadata.store import MetadataStore
from termwise.server.rpc.indices import IndicesServicer
from termwise.server.rpc.pipeline import PipelineServicer
from termwise.storage.memory import MemoryStore
from termwise.v1 import document_pb2, indices_pb2_grpc, pipeline_pb2, pipeline_pb2_grpc, sparse_vector_pb2
from termwise.v1 import indices_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

MAPPING = {
    "properties": {
        "title": {"text": {"analyzer": "english"}, "fields": {"raw": {"keyword": {}}}},
        "text": {"text": {}},
        "author.name": {"keyword": {}},
        "year": {"integer": {}},
        "price": {"number": {}},
        "draft": {"boolean": {}},
        "published": {"date": {}},
        "expansion": {"sparseVector": {"searchDeploymentId": "for_search"}},
    }
}
PIPELINE = {
    "processors": [
        {
            "inference": {
                "deploymentId": "for_ingest",
                "inputOutput": [{"inputField": "text", "outputField": "expansion"}],
                "ignoreMissing": True,
            }
        }
    ]
}

Call = Any


@pytest.fixture
async def channel(serve: Callable[..., Awaitable[grpc.aio.Channel]], tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """Serve indices and pipelines over the memory store and fake models, with the index "docs"."""
    metadata = MetadataStore(tmp_path / "metadata.sqlite")
    store = MemoryStore()
    indices = Indices(metadata, lambda _: store, default_backend="memory")
    pipelines = Pipelines(metadata, FakeExpander(), indices)
    writer = Writer(indices, pipelines)
    channel = await serve(
        lambda server: indices_pb2_grpc.add_IndicesServicer_to_server(
            IndicesServicer(indices, writer, Bulk(writer)), server
        ),
        lambda server: pipeline_pb2_grpc.add_PipelineServicer_to_server(PipelineServicer(pipelines), server),
    )
    await pipeline_pb2_grpc.PipelineStub(channel).PutPipeline(
        json_format.ParseDict({"pipelineId": "expand", "pipeline": PIPELINE}, pipeline_pb2.PutPipelineRequest())
    )
    await indices_pb2_grpc.IndicesStub(channel).CreateIndex(
        json_format.ParseDict(
            {"index": "docs", "mapping": MAPPING, "settings": {"defaultPipeline": "expand"}}, pb.CreateIndexRequest()
        )
    )
    yield channel
    await indices.close()
    metadata.close()


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> indices_pb2_grpc.IndicesAsyncStub:
    """Give a stub."""
    return indices_pb2_grpc.IndicesStub(channel)  # type: ignore[return-value]


@pytest.fixture
def refused(details_of: Callable[..., dict[str, Any]]) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Await a call that must fail, and give its details, with the first violation's field as "field"."""

    async def wait(call: Awaitable[Any]) -> dict[str, Any]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        details = details_of(caught.value)
        bad = details.get("BadRequest")
        details["field"] = bad.field_violations[0].field if bad else ""
        return details

    return wait


def document(id_: str, source: dict[str, Any] | str | None = None, **vectors: tuple[list[str], list[float]]) -> Any:
    made = document_pb2.Document(id=id_)
    if isinstance(source, str):
        made.source_json = source
    elif source is not None:
        made.source.update(source)
    for name, (tokens, weights) in vectors.items():
        made.sparse_vectors[name].CopyFrom(sparse_vector_pb2.SparseVector(tokens=tokens, weights=weights))
    return made


def put(id_: str, source: dict[str, Any] | str | None = None, **more: Any) -> pb.PutDocumentRequest:
    return pb.PutDocumentRequest(index="docs", document=document(id_, source), **more)


async def test_an_index_is_made_found_listed_and_deleted(stub: Call, refused: Callable[..., Any]) -> None:
    made = (await stub.GetIndex(pb.GetIndexRequest(index="docs"))).index
    assert made.state == pb.Index.STATE_READY
    assert made.settings == pb.IndexSettings(default_pipeline="expand", storage="memory")
    assert made.create_time.seconds > 1_700_000_000
    wanted = json_format.ParseDict(MAPPING, pb.Mapping())
    wanted.dynamic = pb.Mapping.DYNAMIC_FALSE
    wanted.properties["text"].text.analyzer = "standard"
    assert made.mapping == wanted

    for name in ("a", "b", "c"):
        await stub.CreateIndex(pb.CreateIndexRequest(index=name))
    names, token = [], ""
    while True:
        page = await stub.ListIndices(pb.ListIndicesRequest(page_size=2, page_token=token))
        names += [index.name for index in page.indices]
        token = page.next_page_token
        if not token:
            break
    assert names == ["a", "b", "c", "docs"]
    assert (await refused(stub.ListIndices(pb.ListIndicesRequest(page_token="x"))))["field"] == "page_token"  # noqa: S106
    assert (await refused(stub.ListIndices(pb.ListIndicesRequest(page_size=-1))))["field"] == "page_size"

    taken = await refused(stub.CreateIndex(pb.CreateIndexRequest(index="docs")))
    assert taken["code"] is grpc.StatusCode.ALREADY_EXISTS
    await stub.DeleteIndex(pb.DeleteIndexRequest(index="docs"))
    for call in (
        stub.GetIndex(pb.GetIndexRequest(index="docs")),
        stub.DeleteIndex(pb.DeleteIndexRequest(index="docs")),
        stub.GetIndexStats(pb.GetIndexStatsRequest(index="docs")),
        stub.PutDocument(put("1")),
        stub.GetDocument(pb.GetDocumentRequest(index="docs", id="1")),
        stub.DeleteDocument(pb.DeleteDocumentRequest(index="docs", id="1")),
        stub.BatchIndex(batch(index="docs")),
    ):
        gone = await refused(call)
        assert gone["code"] is grpc.StatusCode.NOT_FOUND
        assert gone["ErrorInfo"].reason == "INDEX_NOT_FOUND"
        assert (gone["ResourceInfo"].resource_type, gone["ResourceInfo"].resource_name) == ("index", "docs")


def batch(*operations: pb.IndexOperation, index: str = "") -> pb.BatchIndexRequest:
    delete = pb.IndexOperation(delete=pb.IndexOperation.Delete(id="1"))
    return pb.BatchIndexRequest(index=index, operations=operations or [delete])


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        ({"index": "No Name"}, "INVALID_ARGUMENT", "index"),
        ({"index": "x" * 256}, "INVALID_ARGUMENT", "index"),
        ({"mapping": {"dynamic": 1}}, "INVALID_ARGUMENT", "mapping.dynamic"),
        ({"mapping": {"properties": {"a": {}}}}, "INVALID_ARGUMENT", 'mapping.properties["a"]'),
        (
            {"mapping": {"properties": {"a": {"text": {}, "fields": {"b": {}}}}}},
            "INVALID_ARGUMENT",
            'mapping.properties["a"].fields["b"]',
        ),
        (
            {"mapping": {"properties": {"a": {"text": {"analyzer": "x"}}}}},
            "INVALID_ARGUMENT",
            'mapping.properties["a"].text.analyzer',
        ),
        (
            {"mapping": {"properties": {"a": {"text": {}}, "a.b": {"text": {}}}}},
            "INVALID_ARGUMENT",
            'mapping.properties["a.b"]',
        ),
        ({"settings": {"defaultPipeline": "expnad"}}, "NOT_FOUND", "settings.default_pipeline"),
    ],
)
async def test_an_index_that_cannot_work_is_refused(
    stub: Call, refused: Callable[..., Any], request_: dict[str, Any], code: str, field: str
) -> None:
    request = json_format.ParseDict({"index": "new"} | request_, pb.CreateIndexRequest())
    details = await refused(stub.CreateIndex(request))
    assert (details["code"].name, details["field"]) == (code, field)
    assert [index.name for index in (await stub.ListIndices(pb.ListIndicesRequest())).indices] == ["docs"]


async def test_a_document_in_both_forms(stub: Call) -> None:
    body = {"title": "Pluto", "text": "pluto planet", "year": 1930, "ratio": 1.5, "tags": [True, None, {"a": []}]}
    answer = await stub.PutDocument(put("1", body))
    assert (answer.id, answer.version, answer.result) == ("1", 1, pb.RESULT_CREATED)
    found = await stub.GetDocument(pb.GetDocumentRequest(index="docs", id="1"))
    assert (found.document.id, found.version) == ("1", 1)
    assert json_format.MessageToDict(found.document.source) == body
    assert found.document.WhichOneof("body") == "source"
    assert not found.document.sparse_vectors

    text = '{ "title":"Pluto", "n": 9007199254740993, "x": 1.50 }'
    answer = await stub.PutDocument(put("1", text))
    assert (answer.version, answer.result) == (2, pb.RESULT_UPDATED)
    found = await stub.GetDocument(
        pb.GetDocumentRequest(index="docs", id="1", source_format=document_pb2.SOURCE_FORMAT_JSON)
    )
    assert found.document.source_json == text
    found = await stub.GetDocument(
        pb.GetDocumentRequest(index="docs", id="1", source_format=document_pb2.SOURCE_FORMAT_NONE)
    )
    assert found.document.WhichOneof("body") is None
    await stub.PutDocument(put("2"))
    found = await stub.GetDocument(pb.GetDocumentRequest(index="docs", id="2"))
    assert found.document.WhichOneof("body") == "source"
    assert not found.document.source.fields


async def test_vectors_come_back_where_they_are_asked_for(stub: Call, refused: Callable[..., Any]) -> None:
    await stub.PutDocument(put("1", {"text": "pluto planet"}))
    words = sorted(("pluto", "planet"), key=word_weight, reverse=True)
    for names in (["expansion"], ["*"], ["*", "expansion"]):
        found = await stub.GetDocument(pb.GetDocumentRequest(index="docs", id="1", include_sparse_vectors=names))
        assert list(found.document.sparse_vectors["expansion"].tokens) == words
        assert list(found.document.sparse_vectors["expansion"].weights) == [word_weight(word) for word in words]
    request = pb.GetDocumentRequest(index="docs", id="1", include_sparse_vectors=["*", "title"])
    wrong = await refused(stub.GetDocument(request))
    assert wrong["field"] == "include_sparse_vectors[1]"
    assert "did you mean" not in wrong["message"]
    request = pb.GetDocumentRequest(index="docs", id="1", source_format=9)  # type: ignore[arg-type]
    assert (await refused(stub.GetDocument(request)))["field"] == "source_format"
    request = pb.GetDocumentRequest(index="docs", id="2")
    missing = await refused(stub.GetDocument(request))
    assert missing["code"] is grpc.StatusCode.NOT_FOUND
    assert missing["ResourceInfo"].resource_type == "document"


async def test_a_deep_body_comes_back_as_a_struct(stub: Call, refused: Callable[..., Any]) -> None:
    deepest = '{"a":' * 30 + "1" + "}" * 30
    await stub.PutDocument(put("1", deepest))
    found = await stub.GetDocument(pb.GetDocumentRequest(index="docs", id="1"))
    assert json_format.MessageToDict(found.document.source) == json.loads(deepest)
    for levels in (31, 1000, 100_000):
        details = await refused(stub.PutDocument(put("1", '{"a":' * levels + "1" + "}" * levels)))
        assert (details["code"], details["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "document.source_json")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (put("1", "{"), "document.source_json"),
        (put("1", '{"a":NaN}'), "document.source_json"),
        (put("1", '{"a":1,"a":2}'), "document.source_json"),
        (put("1", "[]"), "document.source_json"),
        (put("1", ""), "document.source_json"),
        (put("1", {"x": {"y": float("nan")}}), "document.source.x.y"),
        (put("1", {"year": 1.5}), "document.source.year"),
        (put("1", '{"year":"99999999999999999999"}'), "document.source_json.year"),
        (put("1", {"title": {"raw": "x"}}), "document.source.title"),
        (put("1", {"author": "Ann"}), "document.source.author"),
        (put("1", {"published": "soon"}), "document.source.published"),
        (put("x" * 10_000), "document.id"),
        (put("1", op_type=9), "op_type"),
        (put("1", if_version=-1), "if_version"),
        *(
            (
                pb.PutDocumentRequest(index="docs", document=document("1", expansion=(tokens, weights))),
                'document.sparse_vectors["expansion"]',
            )
            for tokens, weights in (
                (["a"], [float("nan")]),
                (["a"], [float("inf")]),
                (["a"], [0.0]),
                (["a"], [-1.0]),
                (["a"], [1e-40]),
                (["a", "b"], [1.0]),
                (["a"], []),
                (["a", "a"], [1.0, 2.0]),
                ([""], [1.0]),
                (["x" * 70_000], [1.0]),
            )
        ),
        (
            pb.PutDocumentRequest(index="docs", document=document("1", title=(["a"], [1.0]))),
            'document.sparse_vectors["title"]',
        ),
        (
            pb.PutDocumentRequest(
                index="docs", document=document("1", {"expansion": {"a": 1}}, expansion=(["a"], [1.0]))
            ),
            'document.sparse_vectors["expansion"]',
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_bad_documents_are_refused_by_name(
    stub: Call, refused: Callable[..., Any], request_: pb.PutDocumentRequest, field: str
) -> None:
    details = await refused(stub.PutDocument(request_))
    assert (details["code"], details["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert len(details["message"]) < 400


async def test_an_unset_value_is_refused(stub: Call, refused: Callable[..., Any]) -> None:
    request = put("1", {})
    request.document.source.fields["a"].SetInParent()
    assert (await refused(stub.PutDocument(request)))["field"] == "document.source.a"


async def test_a_text_of_10_mb(stub: Call) -> None:
    text = "pluto " * (10 * 2**20 // 6)
    await stub.PutDocument(put("1", json.dumps({"text": text})))
    found = await stub.GetDocument(pb.GetDocumentRequest(index="docs", id="1"))
    assert found.document.source["text"] == text


async def test_conditions_on_versions(stub: Call, refused: Callable[..., Any]) -> None:
    create = pb.PutDocumentRequest.OP_TYPE_CREATE
    await stub.PutDocument(put("1", if_version=0))
    exists = await refused(stub.PutDocument(put("1", op_type=create)))
    assert exists["code"] is grpc.StatusCode.ALREADY_EXISTS
    assert exists["ResourceInfo"].resource_name == "1"
    conflict = await refused(stub.PutDocument(put("1", if_version=0)))
    assert (conflict["code"], conflict["ErrorInfo"].reason) == (grpc.StatusCode.ABORTED, "VERSION_CONFLICT")
    delete = pb.DeleteDocumentRequest(index="docs", id="1", if_version=9)
    assert (await refused(stub.DeleteDocument(delete)))["code"] is grpc.StatusCode.ABORTED
    gone = await stub.DeleteDocument(pb.DeleteDocumentRequest(index="docs", id="1", if_version=1))
    assert (gone.id, gone.version, gone.result) == ("1", 2, pb.RESULT_DELETED)
    missing = await refused(stub.DeleteDocument(pb.DeleteDocumentRequest(index="docs", id="1")))
    assert missing["code"] is grpc.StatusCode.NOT_FOUND
    assert (await refused(stub.DeleteDocument(pb.DeleteDocumentRequest(index="docs"))))["field"] == "id"


def operation(kind: str, id_: str, source: dict[str, Any] | str | None = None, **more: Any) -> pb.IndexOperation:
    if kind == "delete":
        return pb.IndexOperation(delete=pb.IndexOperation.Delete(id=id_), **more)
    made = pb.IndexOperation(**more)
    getattr(made, kind).document.CopyFrom(document(id_, source))
    return made


async def test_a_batch_gives_each_operation_its_result(stub: Call, refused: Callable[..., Any]) -> None:
    answer = await stub.BatchIndex(
        batch(
            operation("put", "1", {"text": "one"}, operation_id="a"),
            operation("create", "1", {}, operation_id="b"),
            operation("put", "2", {"year": "x"}),
            operation("delete", "1", if_version=1),
            pb.IndexOperation(operation_id="e"),
            operation("put", "3", index="other"),
            operation("create", "", pipeline="_none"),
            operation("put", "4", pipeline="absent"),
            operation("put", "5", {"year": float("nan")}),
            operation("create", "6", if_version=-1),
            index="docs",
        )
    )
    assert [result.operation_id for result in answer.results] == ["a", "b", "", "", "e", "", "", "", "", ""]
    assert [result.id for result in answer.results if result.id != answer.results[6].id] == [
        *("1", "1", "2", "1", "", "3", "4", "5", "6")
    ]
    assert [result.version for result in answer.results] == [1, 0, 0, 2, 0, 0, 3, 0, 0, 0]
    assert [code_pb2.Code.Name(result.error.code) for result in answer.results] == [
        "OK",
        "ALREADY_EXISTS",
        "INVALID_ARGUMENT",
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "OK",
        "NOT_FOUND",
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
    ]
    assert answer.failed_count == 7
    assert len(answer.results[6].id) == 32
    assert fields_of(answer.results[2].error) == ["operations[2].put.document.source.year"]
    assert fields_of(answer.results[4].error) == ["operations[4]"]
    assert fields_of(answer.results[5].error) == ["operations[5].index"]
    assert fields_of(answer.results[7].error) == ["operations[7].pipeline"]
    delete = operation("delete", "1")
    for count in (0, 1001):
        request = pb.BatchIndexRequest(index="docs", operations=[delete] * count)
        assert (await refused(stub.BatchIndex(request)))["field"] == "operations"
    assert (await refused(stub.BatchIndex(batch())))["field"] == "index"
    thousand = [operation("put", str(n), {"text": f"word{n}"}) for n in range(1000)]
    answer = await stub.BatchIndex(batch(*thousand, index="docs"))
    assert (answer.failed_count, len(answer.results)) == (0, 1000)


def fields_of(status: Any) -> list[str]:
    bad = error_details_pb2.BadRequest()
    any(detail.Unpack(bad) for detail in status.details)
    return [violation.field for violation in bad.field_violations]


def bulk(operation: pb.IndexOperation) -> pb.BulkIndexRequest:
    return pb.BulkIndexRequest(operation=operation)


def defaults(index: str, pipeline: str = "") -> pb.BulkIndexRequest:
    return pb.BulkIndexRequest(defaults=pb.BulkIndexRequest.Defaults(index=index, pipeline=pipeline))


async def test_a_stream_acknowledges_in_order(stub: Call) -> None:
    await stub.CreateIndex(pb.CreateIndexRequest(index="other"))
    requests = [
        bulk(operation("put", "0", operation_id="early")),
        defaults("docs"),
        bulk(operation("put", "1", {"text": "one"}, operation_id="one")),
        bulk(operation("create", "1", operation_id="again")),
        defaults("other", "_none"),
        bulk(operation("put", "2", {"text": "two"})),
        bulk(operation("put", "3", index="docs")),
        bulk(operation("delete", "4")),
        bulk(pb.IndexOperation(operation_id="nothing")),
        bulk(operation("put", "5", pipeline="absent")),
        defaults("docz", "absent"),
        bulk(operation("put", "6")),
        bulk(operation("put", "7", '{"text":1}', index="docs", pipeline="_none")),
    ]
    answers = [answer async for answer in stub.BulkIndex(iter(requests))]
    assert [answer.operation_id for answer in answers[:3]] == ["early", "one", "again"]
    codes = [code_pb2.Code.Name(answer.error.code) for answer in answers]
    assert codes == [
        "INVALID_ARGUMENT",
        "OK",
        "ALREADY_EXISTS",
        "OK",
        "OK",
        "NOT_FOUND",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "NOT_FOUND",
        "INVALID_ARGUMENT",
    ]
    assert [fields_of(answer.error) for answer in answers if answer.error.code] == [
        ["operation.index"],
        [],
        [],
        ["operation"],
        ["operation.pipeline"],
        ["defaults.index"],
        ["operation.put.document.source_json.text"],
    ]
    assert [answer.result for answer in answers[1:5]] == [1, 0, 1, 1]
    found = await stub.GetDocument(pb.GetDocumentRequest(index="docs", id="1", include_sparse_vectors=["*"]))
    assert found.document.sparse_vectors["expansion"].tokens == ["one"]
    found = await stub.GetDocument(pb.GetDocumentRequest(index="other", id="2"))
    assert found.document.source["text"] == "two"


async def test_large_documents_keep_their_place_in_a_stream(stub: Call) -> None:
    requests = [defaults("docs")]
    for number in range(6):
        text = "word " * (50_000 if number % 2 else 1)
        requests.append(bulk(operation("put", "same", {"text": f"{number} {text}"})))
    versions = [answer.version async for answer in stub.BulkIndex(iter(requests))]
    assert versions == [1, 2, 3, 4, 5, 6]
    found = await stub.GetDocument(pb.GetDocumentRequest(index="docs", id="same"))
    assert found.document.source["text"].startswith("5 ")


async def test_an_empty_message_ends_a_stream(stub: Call, refused: Callable[..., Any]) -> None:
    requests = [defaults("docs"), bulk(operation("put", "1")), pb.BulkIndexRequest(), bulk(operation("put", "2"))]
    call = stub.BulkIndex(iter(requests))
    assert (await call.read()).id == "1"
    assert (await refused(call.read()))["code"] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_is_acknowledged_while_it_runs(stub: Call) -> None:
    call = stub.BulkIndex()
    await call.write(defaults("docs"))
    for number in range(20):
        await call.write(bulk(operation("put", str(number), {"text": f"word{number}"})))
        assert (await call.read()).version == number + 1
        found = await stub.GetDocument(pb.GetDocumentRequest(index="docs", id=str(number)))
        assert found.version == number + 1
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_client_that_leaves_keeps_what_was_acknowledged(stub: Call) -> None:
    async def endless() -> AsyncIterator[pb.BulkIndexRequest]:
        yield defaults("docs")
        number = 0
        while True:
            yield bulk(operation("put", str(number), {"text": f"word{number}"}))
            number += 1

    call = stub.BulkIndex(endless())
    kept = [(await call.read()).id for _ in range(300)]
    call.cancel()
    assert kept == [str(number) for number in range(300)]
    for id_ in kept:
        await stub.GetDocument(pb.GetDocumentRequest(index="docs", id=id_))
    answers = [each async for each in stub.BulkIndex(iter([defaults("docs"), bulk(operation("put", "after"))]))]
    assert [each.id for each in answers] == ["after"]


async def test_a_long_stream_loses_nothing(stub: Call) -> None:
    async def requests() -> AsyncIterator[pb.BulkIndexRequest]:
        yield defaults("docs")
        for number in range(3000):
            yield bulk(operation("put", str(number), {"text": f"word{number}"}))

    ids = [answer.id async for answer in stub.BulkIndex(requests()) if not answer.error.code]
    assert ids == [str(number) for number in range(3000)]
    stats = (await stub.GetIndexStats(pb.GetIndexStatsRequest(index="docs"))).stats
    assert (stats.document_count, stats.last_version) == (3000, 3000)
    field = stats.sparse_fields["expansion"]
    assert (field.document_count, field.token_count, field.posting_count) == (3000, 3000, 3000)
    assert field.fingerprint.startswith("sha256:")


async def test_writers_at_once_share_commits(stub: Call) -> None:
    answers = await asyncio.gather(*(stub.PutDocument(put(str(n), {"text": "word"})) for n in range(100)))
    assert sorted(answer.version for answer in answers) == list(range(1, 101))
