from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2

from termwise.server.errors import InvalidArgumentError
from termwise.server.inference.fake import FakeEncoder
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from pathlib import Path

Code = grpc.StatusCode
OPTIONS = pb.StreamInferRequest(options=pb.StreamInferOptions(deployment_id="mine"))


def texts(request_id: str, *words: str) -> pb.StreamInferRequest:
    return pb.StreamInferRequest(texts=pb.StreamInferTexts(request_id=request_id, texts=words))


async def deploy(stub: Any, folder: Path, **fields: Any) -> None:
    ready = pb.PutTrainedModelRequest.WAIT_FOR_READY
    source = f"file://{folder}"
    await stub.PutTrainedModel(pb.PutTrainedModelRequest(model_id="mine", source_uri=source, wait_for=ready))
    await stub.StartDeployment(pb.StartDeploymentRequest(model_id="mine", number_of_allocations=1, **fields))


async def stream(stub: Any, *requests: pb.StreamInferRequest) -> list[pb.StreamInferResponse]:
    return [answer async for answer in stub.StreamInfer(iter(requests))]


async def test_texts_come_back_as_vectors_in_order(stub: Any, folder: Path) -> None:
    await deploy(stub, folder)
    asked = [("one", ["salmon farm"]), ("", ["", "pluto", "one two three four five six"]), ("one", ["salmon"])]
    answers = await stream(stub, OPTIONS, *(texts(name, *words) for name, words in asked))
    assert [answer.request_id for answer in answers] == ["one", "", "one"]
    assert sorted(answers[0].results[0].vector.tokens) == ["farm", "salmon"]
    assert [list(result.vector.tokens) for result in answers[1].results[:2]] == [[], ["pluto"]]
    assert [result.truncated for result in answers[1].results] == [False, False, True]
    unary = await stub.Infer(pb.InferRequest(deployment_id="mine", texts=["salmon farm"]))
    assert answers[0].results[0] == unary.results[0]
    assert (answers[0].model_id, answers[0].fingerprint) == (unary.model_id, unary.fingerprint)
    assert answers[0].HasField("timings")
    assert not answers[0].results[0].token_ids


async def test_token_ids_come_where_they_are_asked_for(stub: Any, folder: Path) -> None:
    await deploy(stub, folder)
    options = pb.StreamInferOptions(deployment_id="mine", include_token_ids=True)
    (answer,) = await stream(stub, pb.StreamInferRequest(options=options), texts("", "salmon farm"))
    assert len(answer.results[0].token_ids) == len(answer.results[0].vector.tokens) == 2


async def test_a_full_queue_slows_a_stream_and_refuses_a_call(stub: Any, folder: Path, held: Any) -> None:
    await deploy(stub, folder, queue_capacity=2)
    held.go.clear()

    async def ask(*words: str) -> Any:
        return await stub.Infer(pb.InferRequest(deployment_id="mine", texts=words))

    running = asyncio.create_task(ask("salmon"))
    assert await asyncio.to_thread(held.entered.wait, 30)
    # There is room for one of the two, whichever comes first; from then on the queue is full.
    both = {asyncio.create_task(ask("a", "b")), asyncio.create_task(ask("c", "d"))}
    ended, waiting = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    call = stub.StreamInfer(iter([OPTIONS, *(texts(str(number), f"text {number}", "more") for number in range(20))]))
    streaming = asyncio.create_task(collect(call))
    for refused in (ended.pop(), asyncio.create_task(ask("e"))):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await refused
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    held.go.set()
    assert [answer.request_id for answer in await streaming] == [str(number) for number in range(20)]
    assert await call.code() is Code.OK
    assert len((await running).results) == 1
    assert len((await waiting.pop()).results) == 2


async def collect(call: AsyncIterator[pb.StreamInferResponse], ids: list[str] | None = None) -> list[Any]:
    """Give all answers; their ids go into `ids` as they come."""
    found = []
    async for answer in call:
        found.append(answer)
        if ids is not None:
            ids.append(answer.request_id)
    return found


class Picky(FakeEncoder):
    """Refuses one word, and breaks at another."""

    def tokenize(self, texts: Sequence[str], side: Any) -> Any:
        if "long" in texts:
            raise InvalidArgumentError("The text has 9 tokens, and the model reads 5.", reason="TEXT_TOO_LONG")
        return super().tokenize(texts, side)

    def encode(self, texts: Any, side: Any, turn: Any = None) -> Any:
        if any(self._words[number] == "bug" for text in texts for number in text.ids):
            raise ZeroDivisionError
        return super().encode(texts, side, turn)


async def test_texts_that_cannot_be_expanded_fail_alone(start: Any, folder: Path) -> None:
    stub = await start(lambda *_: Picky())
    await deploy(stub, folder)
    call = stub.StreamInfer()
    found = []
    await call.write(OPTIONS)
    for name in ("fine", "long", "", "bug", "fine"):
        # One at a time: the words of a batch share its fate.
        await call.write(texts(name, *([name] if name else [])))
        answer = await call.read()
        assert answer.request_id == name
        assert bool(answer.results) is not answer.HasField("error")
        found.append(answer.error)
    await call.done_writing()
    assert [error.code for error in found] == [0, 3, 3, 13, 0]
    infos = [error_details_pb2.ErrorInfo() for _ in found]
    assert all(error.details[0].Unpack(info) for error, info in zip(found, infos, strict=True) if error.code)
    assert [info.reason for info in infos] == ["", "TEXT_TOO_LONG", "INVALID_FIELD", "INTERNAL", ""]
    assert found[2].message.startswith("texts.texts: ")
    assert "ZeroDivision" not in found[3].message


@pytest.mark.parametrize(
    ("requests", "code", "field"),
    [
        ([], Code.INVALID_ARGUMENT, "options"),
        ([pb.StreamInferRequest()], Code.INVALID_ARGUMENT, "options"),
        ([texts("", "a")], Code.INVALID_ARGUMENT, "options"),
        ([pb.StreamInferRequest(options={})], Code.INVALID_ARGUMENT, "options.deployment_id"),
        (
            [pb.StreamInferRequest(options={"deployment_id": "mine", "input_type": 9})],  # type: ignore[dict-item]
            Code.INVALID_ARGUMENT,
            "options.input_type",
        ),
        (
            [pb.StreamInferRequest(options={"deployment_id": "mined"}), texts("", "a")],
            Code.NOT_FOUND,
            "options.deployment_id",
        ),
        ([OPTIONS, OPTIONS], Code.INVALID_ARGUMENT, "options"),
        ([OPTIONS, pb.StreamInferRequest()], Code.INVALID_ARGUMENT, "texts.texts"),
        ([OPTIONS, texts("é" * 257, "a")], Code.INVALID_ARGUMENT, "texts.request_id"),
    ],
)
async def test_messages_out_of_order_end_the_stream_by_field(
    stub: Any, folder: Path, details_of: Any, requests: Iterable[pb.StreamInferRequest], code: Code, field: str
) -> None:
    await deploy(stub, folder)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream(stub, *requests)
    details = details_of(caught.value)
    assert details["code"] is code
    assert details["BadRequest"].field_violations[0].field == field


async def test_the_side_is_said_once_and_for_all(start: Any, folder: Path, details_of: Any) -> None:
    stub = await start(lambda *_: FakeEncoder(query_prefix="query: "))
    await deploy(stub, folder)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream(stub, OPTIONS, texts("", "salmon"))
    assert details_of(caught.value)["BadRequest"].field_violations[0].field == "options.input_type"
    options = pb.StreamInferOptions(deployment_id="mine", input_type=pb.InferRequest.INPUT_TYPE_QUERY)
    (answer,) = await stream(stub, pb.StreamInferRequest(options=options), texts("", "salmon"))
    assert sorted(answer.results[0].vector.tokens) == ["query", "salmon"]


async def test_a_deployment_that_is_not_started_ends_the_stream(
    start: Any, folder: Path, held: Any, details_of: Any
) -> None:
    def load(*_: Any) -> FakeEncoder:
        assert held.go.wait(60)
        return FakeEncoder()

    held.go.clear()
    stub = await start(load)
    await deploy(stub, folder, wait_for=pb.StartDeploymentRequest.WAIT_FOR_STARTING)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream(stub, OPTIONS, texts("", "a"))
    assert details_of(caught.value)["ErrorInfo"].reason == "DEPLOYMENT_NOT_STARTED"


async def test_whoever_leaves_frees_the_queue(start: Any, folder: Path, held: Any) -> None:
    encoders: list[FakeEncoder] = []

    def load(*_: Any) -> FakeEncoder:
        encoders.append(FakeEncoder(delay=held))
        return encoders[0]

    stub = await start(load)
    await deploy(stub, folder, queue_capacity=4)
    held.go.clear()
    call = stub.StreamInfer()
    for request in (OPTIONS, texts("", "first"), *(texts("", f"later {number}") for number in range(50))):
        await call.write(request)
    assert await asyncio.to_thread(held.entered.wait, 30)
    call.cancel()

    async def ask(*words: str, seconds: float = 60) -> Code:
        try:
            await stub.Infer(pb.InferRequest(deployment_id="mine", texts=words), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return Code.OK

    # Four texts fill the queue, so they only get in, and wait for their deadline there, once the stream's have left.
    while await ask("a", "b", "c", "d", seconds=0.2) is not Code.DEADLINE_EXCEEDED:
        pass
    held.go.set()
    assert await ask("others") is Code.OK
    # Beside what the model had in its hands.
    assert [words for batch in encoders[0].batches[1:] for words in batch] == [["others"]]


async def test_a_deadline_ends_the_stream(stub: Any, folder: Path, held: Any) -> None:
    await deploy(stub, folder)
    held.go.clear()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stub.StreamInfer(iter([OPTIONS, texts("", "a")]), timeout=0.3))
    assert caught.value.code() is Code.DEADLINE_EXCEEDED


async def test_a_deployment_that_is_stopped_ends_the_stream(stub: Any, folder: Path, held: Any) -> None:
    await deploy(stub, folder, queue_capacity=2)
    held.go.clear()
    call = stub.StreamInfer()
    for request in (OPTIONS, *(texts(str(number), f"text {number}") for number in range(30))):
        await call.write(request)
    assert await asyncio.to_thread(held.entered.wait, 30)
    stopping = asyncio.create_task(stop(stub))
    while (await stub.GetDeployment(pb.GetDeploymentRequest(deployment_id="mine"))).deployment.state != (
        pb.Deployment.STATE_STOPPING
    ):
        pass
    held.go.set()
    found: list[str] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call, found)
    assert caught.value.code() in {Code.UNAVAILABLE, Code.FAILED_PRECONDITION}
    # What was admitted is answered; nothing is left out in between.
    assert found == [str(number) for number in range(len(found))]
    assert 1 <= len(found) < 30
    await stopping


async def stop(stub: Any) -> None:
    await stub.StopDeployment(pb.StopDeploymentRequest(deployment_id="mine"))


async def test_a_slow_reader_is_waited_for(start: Any, folder: Path) -> None:
    stub = await start(lambda *_: FakeEncoder())
    await deploy(stub, folder)
    count = 2_500
    # The cache answers them, so that only the reader is slow.
    bodies = [" ".join(f"word{kind}x{place}" for place in range(400)) for kind in range(8)]
    written = 0

    async def write() -> AsyncIterator[pb.StreamInferRequest]:
        nonlocal written
        yield OPTIONS
        for number in range(count):
            written += 1
            yield texts(str(number), bodies[number % len(bodies)])

    call = aiter(stub.StreamInfer(write()))
    assert (await anext(call)).request_id == "0"
    # Nothing is read from here on: the answers fill the connection's buffers, and then everybody stands still.
    seen = -1
    while seen != written:
        seen = written
        for _ in range(50):
            await stub.GetDeployment(pb.GetDeploymentRequest(deployment_id="mine"))
    assert written < count
    assert [answer.request_id async for answer in call] == [str(number) for number in range(1, count)]
