"""Streams of texts through a real server."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from termwise.client import AsyncClient, Client
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = pb.InferRequest.INPUT_TYPE_DOCUMENT
QUEUE = 64


@pytest.fixture(scope="module")
def narrow(serve: Any) -> Any:
    """A server whose deployment `narrow` queues 64 texts and keeps no expansions."""
    server = serve()
    request = pb.StartDeploymentRequest(
        model_id=".splade_tiny", deployment_id="narrow", queue_capacity=QUEUE, cache_size_bytes=0
    )
    server.models.StartDeployment(request, timeout=120)
    return server


def _requests(count: int, per_message: int) -> Iterator[pb.StreamInferRequest]:
    options = pb.StreamInferOptions(deployment_id="narrow", input_type=DOCUMENT)
    yield pb.StreamInferRequest(options=options)
    for first in range(0, count, per_message):
        texts = [f"Fish number {n} swims." for n in range(first, min(first + per_message, count))]
        yield pb.StreamInferRequest(texts=pb.StreamInferTexts(request_id=str(first), texts=texts))


def test_a_full_queue_slows_a_stream_and_refuses_a_call(narrow: Any, details_of: Any) -> None:
    refused: list[Any] = []
    ended = threading.Event()

    def ask() -> None:
        # As many texts as the queue ever holds find no room while a stream's texts wait in it.
        texts = [f"question {n}" for n in range(QUEUE)]
        while not ended.is_set():
            try:
                narrow.models.Infer(
                    pb.InferRequest(deployment_id="narrow", texts=texts, input_type=DOCUMENT), timeout=60
                )
            except grpc.RpcError as error:
                refused.append(error)
                return

    asking = threading.Thread(target=ask)
    answers = []
    for answer in narrow.models.StreamInfer(_requests(3_000, 8), timeout=120):
        if not answers:
            asking.start()
        answers.append(answer)
    ended.set()
    asking.join()

    assert [answer.request_id for answer in answers] == [str(n) for n in range(0, 3_000, 8)]
    assert not any(answer.HasField("error") for answer in answers)
    assert {len(answer.results) for answer in answers} == {8}
    details = details_of(refused[0])
    assert details["code"] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
    assert details["ErrorInfo"].metadata["limit"] == str(QUEUE)


def test_a_stream_gives_what_calls_give(narrow: Any) -> None:
    texts = ["is pluto a planet?", "", "how is salmon farmed?"]
    with Client(narrow.address) as client:
        one_by_one = [client.expand("narrow", text) for text in texts]
        found = list(client.infer_stream("narrow", texts, input_type="query"))

    async def run() -> list[Any]:
        async with AsyncClient(narrow.address) as client:
            return [each.vector async for each in client.infer_stream("narrow", texts, input_type="query")]

    for each, vector, again in zip(found, one_by_one, asyncio.run(run()), strict=True):
        assert each.vector.tokens == vector.tokens == again.tokens
        assert each.vector.weights == pytest.approx(vector.weights, abs=0.02), "batches differ in rounding"


def test_a_longer_message_than_the_queue_is_answered_too(narrow: Any) -> None:
    (answer,) = narrow.models.StreamInfer(_requests(5 * QUEUE, 5 * QUEUE), timeout=60)
    assert len(answer.results) == 5 * QUEUE


@pytest.mark.slow
def test_twenty_thousand_texts_go_through_a_queue_of_64(narrow: Any) -> None:
    texts = [f"Fish number {n} swims." for n in range(20_000)]
    with Client(narrow.address) as client:
        found = list(client.infer_stream("narrow", iter(texts), input_type="document"))
    assert [each.text for each in found] == texts
    assert all(each.vector.tokens for each in found)
