from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.client import (
    AsyncClient,
    BulkIndexError,
    BulkProgress,
    Create,
    Delete,
    Document,
    InvalidArgumentError,
    NotFoundError,
    Put,
    UnavailableError,
)
from termwise.client.bulk import WINDOW, BulkSession
from termwise.v1 import indices_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

BULK = "Indices/BulkIndex"


def _ack(operation: pb.IndexOperation, version: int = 1) -> pb.BulkIndexResponse:
    kind = operation.WhichOneof("kind")
    identifier = operation.delete.id if kind == "delete" else getattr(operation, kind).document.id
    result = pb.RESULT_DELETED if kind == "delete" else pb.RESULT_CREATED
    return pb.BulkIndexResponse(
        operation_id=operation.operation_id, id=identifier or "made-up", version=version, result=result
    )


def _accepts(requests: Iterator[pb.BulkIndexRequest], _: grpc.ServicerContext) -> Iterator[pb.BulkIndexResponse]:
    for request in requests:
        if request.WhichOneof("kind") == "operation":
            yield _ack(request.operation)


class _Recorder:
    """Acknowledges `good` operations, then breaks the connection; remembers the ids that it was sent."""

    def __init__(self, good: int) -> None:
        self.good = good
        self.sent: list[str] = []
        self.defaults: list[pb.BulkIndexRequest.Defaults] = []

    def __call__(
        self, requests: Iterator[pb.BulkIndexRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.BulkIndexResponse]:
        for request in requests:
            if request.WhichOneof("kind") == "defaults":
                self.defaults.append(request.defaults)
                continue
            if len(self.sent) == self.good:
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            self.sent.append(request.operation.put.document.id or request.operation.delete.id)
            yield _ack(request.operation)


def _documents(count: int) -> list[Document]:
    return [Document({"n": n}, str(n)) for n in range(count)]


def test_everything_is_written_in_order_and_counted(server: Any, call: Any) -> None:
    seen: list[str] = []

    def answer(requests: Iterator[pb.BulkIndexRequest], context: Any) -> Iterator[pb.BulkIndexResponse]:
        first = next(requests)
        assert (first.defaults.index, first.defaults.pipeline) == ("docs", "expand")
        for response in _accepts(requests, context):
            seen.append(response.id)
            yield response

    server.script(BULK, answer)
    progress: list[BulkProgress] = []
    operations = [Put(Document({}, "a")), Create({"id": "b"}), Delete("c"), {"source": {"x": 1}}]

    report = call(lambda c: c.indices.bulk("docs", operations, pipeline="expand", on_progress=progress.append))

    assert seen == ["a", "b", "c", "made-up"]
    assert (report.created, report.deleted, report.succeeded, report.failures) == (3, 1, 4, ())
    assert [each.acknowledged for each in progress] == [1, 2, 3, 4]


def test_no_more_than_a_window_is_under_way(server: Any, call: Any) -> None:
    held: list[int] = []

    def hesitant(requests: Iterator[pb.BulkIndexRequest], context: grpc.ServicerContext) -> Iterator[Any]:
        waiting: list[pb.IndexOperation] = []
        arrived = threading.Condition()
        ended = [False]

        def read() -> None:
            for request in requests:
                with arrived:
                    if request.WhichOneof("kind") == "operation":
                        waiting.append(request.operation)
                    arrived.notify()
            with arrived:
                ended[0] = True
                arrived.notify()

        threading.Thread(target=read, daemon=True).start()
        while context.is_active():
            with arrived:
                # Acknowledge nothing until a full window waits or the client has no more.
                arrived.wait_for(lambda: len(waiting) >= WINDOW or ended[0])
                held.append(len(waiting))
                batch, waiting[:] = waiting[:], []
                over = ended[0]
            yield from (_ack(operation) for operation in batch)
            if over:
                return

    server.script(BULK, hesitant)

    report = call(lambda c: c.indices.bulk("docs", _documents(3 * WINDOW + 5)))

    assert report.created == 3 * WINDOW + 5
    assert max(held) == WINDOW


def test_documents_are_drawn_only_as_needed(server: Any, call: Any) -> None:
    drawn: list[int] = []
    drawn_for_a_window: list[int] = []

    def hesitant(requests: Iterator[pb.BulkIndexRequest], context: Any) -> Iterator[pb.BulkIndexResponse]:
        next(requests)
        window = [next(requests) for _ in range(WINDOW)]
        # Nothing is acknowledged yet.
        drawn_for_a_window.append(len(drawn))
        yield from _accepts(iter(window), context)
        yield from _accepts(requests, context)

    def documents() -> Iterator[Document]:
        for n in range(2 * WINDOW):
            drawn.append(n)
            yield Document({}, str(n))

    server.script(BULK, hesitant)

    assert call(lambda c: c.indices.bulk("docs", documents())).created == 2 * WINDOW
    assert drawn_for_a_window == [WINDOW]


def test_large_documents_fill_the_window_by_their_bytes() -> None:
    session = BulkSession("docs")
    count = 0
    while not session.full:
        assert session.take(Document('{"t":"' + "x" * (1 << 20) + '"}', str(count))) is not None
        count += 1

    assert 15 <= count <= 16


def test_a_broken_connection_is_opened_again_and_nothing_is_lost(server: Any, call: Any) -> None:
    breaking, rest = _Recorder(good=7), _Recorder(good=10**9)
    server.script(BULK, breaking, breaking, rest)

    report = call(lambda c: c.indices.bulk("docs", _documents(50), pipeline="p"))

    assert report.created == 50
    assert breaking.sent == [str(n) for n in range(7)]
    assert rest.sent == [str(n) for n in range(7, 50)], "what was not acknowledged, in order, once"
    assert [each.index for each in (*breaking.defaults, *rest.defaults)] == ["docs"] * 3


def test_what_must_not_run_twice_is_reported_instead(server: Any, call: Any) -> None:
    breaking, rest = _Recorder(good=0), _Recorder(good=10**9)
    server.script(BULK, breaking, rest)
    risky = [Create({"id": "a"}), Put({"id": "b"}), Delete("c"), {"source": {}}, Put({"id": "d"}, if_version=3)]

    report = call(lambda c: c.indices.bulk("docs", risky, raise_on_failure=False))

    assert rest.sent == ["b"]
    assert [failure.position for failure in report.failures] == [0, 2, 3, 4]
    assert {failure.error.reason for failure in report.failures} == {"OUTCOME_UNKNOWN"}
    assert report.created == 1


def test_a_stream_that_never_moves_is_given_up(server: Any, call: Any) -> None:
    server.script(BULK, _Recorder(good=0))

    with pytest.raises(BulkIndexError) as caught:
        call(lambda c: c.indices.bulk("docs", _documents(3)))

    assert len(server.calls[BULK]) == 10, "twice the tries of a call"
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(caught.value.__cause__, UnavailableError)
    assert [failure.id for failure in caught.value.report.failures] == ["0", "1", "2"]


def test_progress_keeps_a_stream_alive_through_many_breaks(server: Any, call: Any) -> None:
    recorders = [_Recorder(good=2) for _ in range(20)]
    server.script(BULK, *recorders, _Recorder(good=10**9))

    assert call(lambda c: c.indices.bulk("docs", _documents(45))).created == 45


def test_another_error_ends_the_stream_at_once(server: Any, call: Any) -> None:
    def refuses(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        next(requests)
        yield from ()
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")

    server.script(BULK, refuses)

    with pytest.raises(BulkIndexError, match="not you") as caught:
        call(lambda c: c.indices.bulk("docs", _documents(2)))
    assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED
    assert len(server.calls[BULK]) == 1


def test_a_stream_that_ends_early_is_no_success(server: Any, call: Any) -> None:
    def forgets(requests: Iterator[Any], _: Any) -> Iterator[Any]:
        next(requests)
        yield from ()

    server.script(BULK, forgets)

    with pytest.raises(BulkIndexError, match="ended the stream before"):
        call(lambda c: c.indices.bulk("docs", _documents(2)))
    assert len(server.calls[BULK]) == 10


def test_failures_name_their_place_and_reason(server: Any, call: Any) -> None:
    def picky(requests: Iterator[Any], _: Any) -> Iterator[Any]:
        next(requests)
        for request in requests:
            operation = request.operation
            if operation.put.document.id == "1":
                yield pb.BulkIndexResponse(
                    operation_id=operation.operation_id, id="1", error={"code": 5, "message": "no pipeline"}
                )
            else:
                yield _ack(operation)

    server.script(BULK, picky)
    documents = [*_documents(3), Document({"bad": object()}, "x"), "nonsense"]

    report = call(lambda c: c.indices.bulk("docs", documents, raise_on_failure=False))
    with pytest.raises(BulkIndexError, match='3 of 5 operations failed; the first, "1": no pipeline') as caught:
        call(lambda c: c.indices.bulk("docs", documents))

    assert report.created == caught.value.report.created == 2
    assert [(f.position, f.id, type(f.error)) for f in report.failures] == [
        (1, "1", NotFoundError),
        (3, "x", InvalidArgumentError),
        (4, "", InvalidArgumentError),
    ]


def test_a_document_too_large_for_a_message_fails_alone(server: Any, call: Any) -> None:
    server.script(BULK, _accepts)
    documents = [Document({"t": "x" * 20_000}, "big"), Document({}, "small")]

    report = call(lambda c: c.indices.bulk("docs", documents, raise_on_failure=False), max_message_bytes=10_000)

    assert report.created == 1
    assert [failure.id for failure in report.failures] == ["big"]
    assert "10000" in report.failures[0].error.message


@pytest.mark.parametrize("raised", [LookupError("disk gone"), UnavailableError("disk gone")])
def test_an_error_of_the_caller_comes_through_and_cancels_the_stream(server: Any, call: Any, raised: Exception) -> None:
    cancelled = threading.Event()

    def watch(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        context.add_callback(cancelled.set)
        yield from _accepts(requests, context)

    def documents() -> Iterator[Document]:
        # One more than fits the window: the server has the call by then, or there would be no acknowledgement.
        yield from _documents(WINDOW + 1)
        raise raised

    server.script(BULK, watch)

    with pytest.raises(type(raised), match="disk gone"):
        call(lambda c: c.indices.bulk("docs", documents()))
    assert len(server.calls[BULK]) == 1
    assert cancelled.wait(60)


def test_nothing_is_no_error(server: Any, call: Any) -> None:
    server.script(BULK, _accepts)

    assert call(lambda c: c.indices.bulk("docs", [])).succeeded == 0


def test_the_asynchronous_client_takes_asynchronous_documents(server: Any) -> None:
    server.script(BULK, _accepts)

    async def documents() -> AsyncIterator[Document]:
        for n in range(10):
            await asyncio.sleep(0)
            yield Document({}, str(n))

    async def run() -> int:
        async with AsyncClient(server.address) as client:
            return (await client.indices.bulk("docs", documents())).created

    assert asyncio.run(run()) == 10


@given(st.data())
def test_a_session_accounts_for_every_operation(data: st.DataObject) -> None:
    """Whatever is acknowledged, fails or breaks: in the end each operation succeeded or failed, exactly once."""
    make: list[Callable[[str], Any]] = [
        lambda identifier: Put({"id": identifier}),
        lambda identifier: Create({"id": identifier}),
        Delete,
        lambda _: object(),
    ]
    kinds = data.draw(st.lists(st.integers(0, 3), max_size=30))
    session = BulkSession("docs")
    waiting: list[pb.IndexOperation] = []
    for n, kind in enumerate(kinds):
        request = session.take(make[kind](str(n)))
        if request is not None:
            waiting.append(request.operation)
        if waiting and data.draw(st.booleans()):
            session.acknowledge(_ack(waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))))
        if data.draw(st.integers(0, 9)) == 0:
            before = [each.operation_id for each in waiting]
            waiting = [request.operation for request in session.resume()]
            again = [each.operation_id for each in waiting]
            assert all(operation.WhichOneof("kind") == "put" for operation in waiting)
            assert again == sorted(set(again) & set(before), key=int)
    for operation in waiting:
        session.acknowledge(_ack(operation))

    report = session.report()
    assert session.pending_count == 0
    assert not session.full
    assert report.succeeded + len(report.failures) == len(kinds)
    assert len({failure.position for failure in report.failures}) == len(report.failures)
