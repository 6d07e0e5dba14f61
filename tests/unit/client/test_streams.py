from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.client import (
    AsyncClient,
    Client,
    ExpandedText,
    InvalidArgumentError,
    NotFoundError,
    SparseVector,
    TermwiseError,
    UnavailableError,
)
from termwise.client.streams import WINDOW, InferSession
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

STREAM = "TrainedModels/StreamInfer"


def _answer(texts: pb.StreamInferTexts) -> pb.StreamInferResponse:
    """Answer a text with itself as its only token; "bad" is refused."""
    response = pb.StreamInferResponse(request_id=texts.request_id)
    for text in texts.texts:
        if text == "bad":
            response.error.code, response.error.message = 3, "The text is too long."
        else:
            response.results.add(vector={"tokens": [text], "weights": [1.0]}, token_count=3, truncated=False)
    return response


class _Recorder:
    """Answers `good` texts, then breaks the connection; remembers what it was sent."""

    def __init__(self, good: int = 1 << 30) -> None:
        self.good = good
        self.options: list[pb.StreamInferOptions] = []
        self.texts: list[str] = []

    def __call__(self, requests: Iterator[pb.StreamInferRequest], context: grpc.ServicerContext) -> Iterator[Any]:
        self.options.append(next(requests).options)
        for request in requests:
            if len(self.texts) == self.good:
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            self.texts += request.texts.texts
            yield _answer(request.texts)


def test_texts_come_back_in_order(server: Any, call: Any) -> None:
    recorder = _Recorder()
    server.script(STREAM, recorder)
    texts = [f"text {n}" for n in range(3 * WINDOW)]

    found = call(lambda c: c.infer_stream("d", texts, input_type="document", include_token_ids=True))

    assert [each.text for each in found] == recorder.texts == texts
    assert [each.position for each in found] == list(range(len(texts)))
    assert [each.vector.tokens for each in found] == [(text,) for text in texts]
    assert found[0].expansion.token_count == 3
    assert recorder.options == [
        pb.StreamInferOptions(deployment_id="d", input_type=pb.InferRequest.INPUT_TYPE_DOCUMENT, include_token_ids=True)
    ]


def test_no_texts_give_nothing(server: Any, call: Any) -> None:
    server.script(STREAM, _Recorder())

    assert call(lambda c: c.infer_stream("d", [])) == []


def test_a_text_that_is_refused_ends_it_or_says_so(server: Any, call: Any) -> None:
    server.script(STREAM, _Recorder())

    with pytest.raises(InvalidArgumentError, match="too long"):
        call(lambda c: c.infer_stream("d", ["a", "bad", "b"]))
    found = call(lambda c: c.infer_stream("d", ["a", "bad", "b"], raise_on_error=False))

    assert [each.error is None for each in found] == [True, False, True]
    assert found[0].vector == SparseVector(("a",), (1.0,))
    with pytest.raises(InvalidArgumentError):
        _ = found[1].vector


def test_what_has_no_answer_is_sent_again_after_a_break(server: Any, call: Any) -> None:
    first, second = _Recorder(good=5), _Recorder()
    server.script(STREAM, first, second)
    texts = [f"text {n}" for n in range(40)]

    found = call(lambda c: c.infer_stream("d", texts))

    assert [each.text for each in found] == texts
    # gRPC may drop answers that were on their way when the connection broke: those texts go twice.
    assert texts[: len(first.texts)] == first.texts
    assert texts[-len(second.texts) :] == second.texts
    assert len(first.texts) + len(second.texts) >= len(texts)


def test_it_is_given_up_where_nothing_moves(server: Any, call: Any) -> None:
    broken = [_Recorder(good=0) for _ in range(20)]
    server.script(STREAM, *broken)

    with pytest.raises(UnavailableError):
        call(lambda c: c.infer_stream("d", ["a"]))
    assert sum(bool(each.options) for each in broken) == 10


def test_an_error_of_the_stream_is_raised(server: Any, call: Any) -> None:
    def missing(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        next(requests)
        context.abort(grpc.StatusCode.NOT_FOUND, 'Deployment "d" does not exist.')
        yield

    server.script(STREAM, missing)

    with pytest.raises(NotFoundError, match="does not exist"):
        call(lambda c: c.infer_stream("d", ["a"]))


@pytest.mark.parametrize(
    ("texts", "path"),
    [("salmon", "texts"), ([1], "texts[0]"), (["a", "\ud800"], "texts[1]"), (["x" * 5_000], "texts[0]")],
)
def test_mistakes_are_found_before_sending(server: Any, call: Any, texts: Any, path: str) -> None:
    server.script(STREAM, _Recorder())

    with pytest.raises(InvalidArgumentError) as caught:
        call(lambda c: c.infer_stream("d", texts), max_message_bytes=4_096)
    assert caught.value.field_violations[0].field == path


def test_a_source_that_fails_ends_it_with_its_error(server: Any, call: Any) -> None:
    server.script(STREAM, _Recorder())

    def source() -> Iterator[str]:
        yield "a"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call(lambda c: c.infer_stream("d", source()))


def test_no_more_than_a_window_is_drawn_ahead(server: Any) -> None:
    server.script(STREAM, _Recorder())
    drawn = 0

    def source() -> Iterator[str]:
        nonlocal drawn
        for n in range(10 * WINDOW):
            drawn += 1
            yield f"text {n}"

    with Client(server.address) as client:
        for position, each in enumerate(client.infer_stream("d", source())):
            assert each.position == position
            assert drawn <= position + WINDOW


def test_asynchronous_sources_are_taken(server: Any) -> None:
    server.script(STREAM, _Recorder())

    async def source() -> AsyncIterator[str]:
        for text in ("a", "b"):
            yield text

    async def run() -> list[ExpandedText]:
        async with AsyncClient(server.address) as client:
            return [each async for each in client.infer_stream("d", source())]

    assert [each.text for each in asyncio.run(run())] == ["a", "b"]


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=20),
    st.lists(st.sampled_from(["break", "send", "answer"])),
)
def test_every_text_is_answered_once_whatever_breaks(texts: list[str], steps: list[str]) -> None:
    session = InferSession("d", None, include_token_ids=False)
    wire: list[pb.StreamInferRequest] = []
    source, found = iter(texts), []
    for step in [*steps, *["send"] * len(texts), *["answer"] * len(texts)]:
        if step == "break":
            wire = session.resume()
        elif step == "send" and (text := next(source, None)) is not None:
            wire.append(session.take(text))
        elif step == "answer" and wire:
            request = wire.pop(0)
            found.append(session.acknowledge(pb.StreamInferResponse(request_id=request.texts.request_id, results=[{}])))
    assert [each.text for each in found] == texts
    assert session.pending_count == 0


def test_an_answer_to_nothing_is_an_error() -> None:
    session = InferSession("d", None, include_token_ids=False)
    session.take("a")
    with pytest.raises(TermwiseError, match="not the next"):
        session.acknowledge(pb.StreamInferResponse(request_id="7"))
