from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from termwise.server.context import RequestContext
from termwise.server.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, invalid_field
from termwise.server.inference.base import Expansions, InferenceTimings, Side
from termwise.server.inference.fake import FakeExpander
from termwise.server.models.streams import StreamLimits, StreamOptions, StreamTexts, TextStreams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

CONTEXT = RequestContext("test")
OPTIONS = StreamOptions("for_ingest", Side.DOCUMENT)


class HeldExpander:
    """Answers a text when it is told to, and knows who asked for what and who left."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, asyncio.Future[None]] = {}
        self.waiting: list[bool] = []
        self.changed = asyncio.Event()

    async def expand(
        self,
        context: RequestContext,
        deployment_id: str,
        texts: Sequence[str],
        side: Side | None,
        *,
        wait: bool = False,
    ) -> Expansions:
        del context, side
        self.asked.append(texts[0])
        self.waiting.append(wait)
        future = self.answers.setdefault(texts[0], asyncio.get_running_loop().create_future())
        self.changed.set()
        await future
        return Expansions((), texts[0], deployment_id, InferenceTimings())

    async def asked_for(self, count: int) -> None:
        while len(self.asked) < count:
            self.changed.clear()
            await self.changed.wait()


class Source:
    """Messages, and how many of them were read."""

    def __init__(self, messages: list[StreamTexts], error: Exception | None = None) -> None:
        self.messages = messages
        self.error = error
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[StreamTexts]:
        for message in self.messages:
            self.read += 1
            yield message
        if self.error is not None:
            raise self.error


def messages(count: int, size: int = 10, texts: int = 1) -> list[StreamTexts]:
    return [StreamTexts(f"r{number}", [f"text {number}"] * texts, size) for number in range(count)]


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(12)))
def test_answers_keep_the_order_whatever_ends_first(order: list[int]) -> None:
    async def run() -> list[str]:
        expander = HeldExpander()

        async def answer() -> None:
            await expander.asked_for(len(order))
            for number in order:
                expander.answers[f"text {number}"].set_result(None)
                await asyncio.sleep(0)

        answering = asyncio.create_task(answer())
        stream = TextStreams(expander).run(CONTEXT, OPTIONS, aiter(Source(messages(len(order)))))
        found = [each.request_id async for each in stream]
        await answering
        assert all(expander.waiting)
        return found

    assert asyncio.run(run()) == [f"r{number}" for number in range(len(order))]


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        (StreamLimits(messages=5), 5),
        (StreamLimits(texts=12), 6),
        (StreamLimits(text_bytes=45), 4),
        (StreamLimits(texts=1), 1),
        (StreamLimits(text_bytes=1), 1),
    ],
)
async def test_a_reader_who_stands_still_stops_the_reading(limits: StreamLimits, most: int) -> None:
    source = Source(messages(1_000, texts=2))
    async with aclosing(TextStreams(FakeExpander(), limits).run(CONTEXT, OPTIONS, aiter(source))) as stream:
        assert (await anext(stream)).request_id == "r0"
        for _ in range(200):
            await asyncio.sleep(0)
        # One more is read, and waits for its turn to begin.
        assert source.read <= most + 1
        rest = [each.request_id async for each in stream]
    assert rest == [f"r{number}" for number in range(1, 1_000)]


async def test_whoever_leaves_frees_everything() -> None:
    expander = HeldExpander()
    stream = TextStreams(expander).run(CONTEXT, OPTIONS, aiter(Source(messages(8))))
    first = asyncio.create_task(anext(stream))
    await expander.asked_for(8)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await stream.aclose()
    assert all(future.cancelled() for future in expander.answers.values())
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Refusing(FakeExpander):
    """Refuses some texts as deployments do."""

    async def expand(
        self, context: Any, deployment_id: str, texts: Sequence[str], side: Any, **more: Any
    ) -> Expansions:
        errors = {
            "long": InvalidArgumentError("The text has more than 3 tokens."),
            "bug": ZeroDivisionError("division by zero"),
            "side": invalid_field("input_type", "Say which side reads them."),
            "stopped": FailedPreconditionError("The deployment is stopping."),
        }
        if texts and texts[0] in errors:
            raise errors[texts[0]]
        return await super().expand(context, deployment_id, texts, side, **more)


async def outcomes(source: Source, options: StreamOptions = OPTIONS) -> list[str]:
    """Give what became of each message, and of the stream."""
    found = []
    try:
        async for each in TextStreams(Refusing()).run(CONTEXT, options, aiter(source)):
            found.append("answer" if each.error is None else type(each.error).__name__)  # noqa: PERF401 - it may end early
    except Exception as error:  # noqa: BLE001 - it is what the test looks at
        found.append(f"end: {type(error).__name__}")
    return found


async def test_a_bad_text_is_answered_and_the_stream_goes_on() -> None:
    many = StreamTexts("", ["x"] * 1_025, 1)
    texts = [StreamTexts("", [text] if text else [], 1) for text in ("a", "long", "", "bug", "b")]
    assert await outcomes(Source([*texts, many, texts[0]])) == [
        "answer",
        "InvalidArgumentError",
        "InvalidArgumentError",
        "ZeroDivisionError",
        "answer",
        "InvalidArgumentError",
        "answer",
    ]


@pytest.mark.parametrize(
    ("text", "end"), [("side", "end: InvalidArgumentError"), ("stopped", "end: FailedPreconditionError")]
)
async def test_what_is_wrong_with_the_deployment_ends_the_stream(text: str, end: str) -> None:
    texts = [StreamTexts("", [each], 1) for each in ("a", text, "b")]
    assert await outcomes(Source(texts)) == ["answer", end]


async def test_an_unknown_deployment_ends_the_stream() -> None:
    stream = TextStreams(FakeExpander()).run(CONTEXT, StreamOptions("absent", None), aiter(Source(messages(3))))
    with pytest.raises(NotFoundError):
        await anext(stream)


async def test_a_broken_message_ends_the_stream_after_what_came_before() -> None:
    broken = InvalidArgumentError("The request cannot be decoded.")
    assert await outcomes(Source(messages(3), broken)) == [*["answer"] * 3, "end: InvalidArgumentError"]


async def test_no_texts_give_no_answers() -> None:
    assert await outcomes(Source([])) == []
