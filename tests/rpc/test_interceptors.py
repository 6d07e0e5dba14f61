from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
import structlog.testing
from google.protobuf import struct_pb2

from termwise.server import errors
from termwise.server.rpc.context import request_context
from termwise.server.rpc.interceptors import CallInterceptor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Value = struct_pb2.Value
KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
BROKEN_UTF8 = b"\x1a\x02\xff\xfe"
"""A Value whose string_value is no UTF-8."""


def nested(levels: int) -> bytes:
    """Encode lists in lists by hand: protobuf itself refuses to."""
    data = b""
    for _ in range(levels):
        inner = b"\x0a" + varint(len(data)) + data
        data = b"\x32" + varint(len(inner)) + inner
    return data


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


class PanicError(BaseException):
    """Like what a panic of a library in Rust becomes: no Exception."""


class Echo:
    """A service of all four kinds whose requests say what it does: give them back, or fail by the name of an error."""

    def __init__(self) -> None:
        self.contexts: list[Any] = []
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.go_on = asyncio.Event()

    async def answer(self, request: Value, context: Any) -> Value:
        self.contexts.append(request_context(context))
        match request.string_value:
            case "missing":
                raise errors.not_found("index", "docz", ["docs"], field="indices[0]")
            case "full":
                raise errors.ResourceExhaustedError("Full.", retry_after=timedelta(milliseconds=250))
            case "bug":
                msg = "the secret"
                raise RuntimeError(msg)
            case "panic":
                raise PanicError("the secret")
            case "long":
                raise errors.invalid_field("ü" * 20_000, "ü" * 20_000)
            case "large":
                return Value(string_value="x" * 2_000_000)
            case "wait":
                self.entered.set()
                await self.go_on.wait()
            case "sleep":
                self.entered.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.left.set()
        return request

    async def unary_unary(self, request: Value, context: Any) -> Value:
        return await self.answer(request, context)

    async def unary_stream(self, request: Value, context: Any) -> AsyncIterator[Value]:
        yield Value(string_value="first")
        yield await self.answer(request, context)

    async def stream_unary(self, requests: AsyncIterator[Value], context: Any) -> Value:
        return [await self.answer(request, context) async for request in requests][-1]

    async def stream_stream(self, requests: AsyncIterator[Value], context: Any) -> AsyncIterator[Value]:
        async for request in requests:
            yield await self.answer(request, context)

    def register(self, server: grpc.aio.Server) -> None:
        handlers = {
            kind: getattr(grpc, f"{kind}_rpc_method_handler")(
                getattr(self, kind), Value.FromString, Value.SerializeToString
            )
            for kind in KINDS
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))


async def call(channel: grpc.aio.Channel, kind: str, data: bytes, **options: Any) -> list[Value]:
    """Send one request as raw bytes, and give all answers."""
    method = getattr(channel, kind)(f"/test.Echo/{kind}", None, Value.FromString)
    request = iter([data]) if kind.startswith("stream") else data
    answer = method(request, **options)
    return [one async for one in answer] if kind.endswith("stream") else [await answer]


def text(value: str) -> bytes:
    return Value(string_value=value).SerializeToString()


@pytest.fixture
async def echo(serve: Any) -> tuple[Echo, grpc.aio.Channel]:
    service = Echo()
    return service, await serve(service.register, limit=1_000_000)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_comes_with_the_request_id_and_one_log_line(echo: Any, kind: str) -> None:
    service, channel = echo
    with structlog.testing.capture_logs() as lines:
        answers = await call(channel, kind, text("hello"), metadata=(("x-request-id", "abc-1"),))
        await asyncio.sleep(0)
    assert answers[-1].string_value == "hello"
    assert service.contexts[0].request_id == "abc-1"
    (line,) = [line for line in lines if line["event"] == "call"]
    assert (line["method"], line["code"], line["log_level"]) == (f"/test.Echo/{kind}", "OK", "info")
    assert line["duration_ms"] >= 0


@pytest.mark.parametrize("given", ["", "x" * 200, "two words", 'a"b'])
async def test_a_request_id_that_a_log_cannot_bear_is_replaced(echo: Any, given: str) -> None:
    _, channel = echo
    answer = channel.unary_unary("/test.Echo/unary_unary", None, None)(b"", metadata=(("x-request-id", given),))
    await answer
    made = dict(await answer.trailing_metadata())["x-request-id"]
    assert made != given
    assert len(made) == 16


@pytest.mark.parametrize("kind", KINDS)
async def test_a_domain_error_becomes_a_status_with_details(echo: Any, details_of: Any, kind: str) -> None:
    _, channel = echo
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, kind, text("missing"), metadata=(("x-request-id", "abc-2"),))
    found = details_of(caught.value)
    assert found["code"] == grpc.StatusCode.NOT_FOUND
    assert found["message"] == 'Index "docz" does not exist; did you mean "docs"?'
    assert (found["ErrorInfo"].reason, found["ErrorInfo"].domain) == ("INDEX_NOT_FOUND", "termwise")
    assert dict(found["ErrorInfo"].metadata) == {"index": "docz"}
    assert (found["ResourceInfo"].resource_type, found["ResourceInfo"].resource_name) == ("index", "docz")
    assert found["BadRequest"].field_violations[0].field == "indices[0]"
    assert dict(caught.value.trailing_metadata() or ())["x-request-id"] == "abc-2"


async def test_a_full_queue_says_when_to_retry(echo: Any, details_of: Any) -> None:
    _, channel = echo
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "unary_unary", text("full"))
    found = details_of(caught.value)
    assert found["code"] == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 250


@pytest.mark.parametrize("bug", ["bug", "panic"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_bug_is_internal_and_its_traceback_stays_in_the_log(
    echo: Any, details_of: Any, kind: str, bug: str
) -> None:
    _, channel = echo
    with structlog.testing.capture_logs() as lines, pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, kind, text(bug), timeout=30)
    found = details_of(caught.value)
    assert found["code"] == grpc.StatusCode.INTERNAL
    error_id = found["ErrorInfo"].metadata["error_id"]
    assert error_id in found["message"]
    assert "secret" not in str(caught.value)
    (line,) = [line for line in lines if line["event"] == "internal_error"]
    assert line["error_id"] == error_id
    assert "the secret" in str(line["exc_info"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"\xff\xff\xff", BROKEN_UTF8, nested(150), nested(1_000)])
async def test_what_cannot_be_decoded_is_an_invalid_argument(
    echo: Any, details_of: Any, kind: str, data: bytes
) -> None:
    service, channel = echo
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, kind, data)
    found = details_of(caught.value)
    assert found["code"] == grpc.StatusCode.INVALID_ARGUMENT
    assert found["ErrorInfo"].reason == "REQUEST_UNDECODABLE"
    assert not service.contexts


async def test_what_cannot_be_decoded_amid_a_stream_leaves_the_answers_before_it(echo: Any, details_of: Any) -> None:
    _, channel = echo
    method = channel.stream_stream("/test.Echo/stream_stream", None, Value.FromString)
    stream = method(iter([text("one"), BROKEN_UTF8, text("two")]))
    assert (await stream.read()).string_value == "one"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert details_of(caught.value)["code"] == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("kind", KINDS)
async def test_a_long_error_still_fits_in_a_clients_headers(echo: Any, details_of: Any, kind: str) -> None:
    _, channel = echo
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, kind, text("long"))
    found = details_of(caught.value)
    assert found["code"] == grpc.StatusCode.INVALID_ARGUMENT
    assert found["BadRequest"].field_violations[0].description.startswith("üü")


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_over_the_limit_is_refused_by_name(echo: Any, details_of: Any, kind: str) -> None:
    _, channel = echo
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, kind, text("large"))
    found = details_of(caught.value)
    assert found["ErrorInfo"].reason == "ANSWER_TOO_LARGE"
    assert found["ErrorInfo"].metadata["limit"] == "1000000"


async def test_a_request_over_the_limit_is_refused(echo: Any) -> None:
    _, channel = echo
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "unary_unary", b"x" * 1_100_000)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_method_is_unimplemented_with_details(echo: Any, details_of: Any) -> None:
    _, channel = echo
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/test.Echo/Nothing", None, None)(b"")
    found = details_of(caught.value)
    assert found["code"] == grpc.StatusCode.UNIMPLEMENTED
    assert "/test.Echo/Nothing" in found["message"]


@pytest.mark.parametrize("kind", KINDS)
async def test_leaving_a_call_ends_its_handler_and_is_logged(echo: Any, kind: str) -> None:
    service, channel = echo
    with structlog.testing.capture_logs() as lines:
        request = iter([text("sleep")]) if kind.startswith("stream") else text("sleep")
        running = getattr(channel, kind)(f"/test.Echo/{kind}", None, None)(request)
        await service.entered.wait()
        running.cancel()
        await asyncio.wait_for(service.left.wait(), 60)
        await asyncio.sleep(0)
    assert [line["code"] for line in lines if line["event"] == "call"] == ["CANCELLED"]


async def test_a_deadline_reaches_the_context_and_ends_the_handler(serve: Any) -> None:
    seconds = 1.0  # for a call to get as far as its handler

    async def outlast(kind: str) -> None:
        service = Echo()
        channel = await serve(service.register)
        await channel.channel_ready()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, kind, text("sleep"), timeout=seconds)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(service.left.wait(), 60)
        remaining = service.contexts[0].remaining()
        assert remaining is not None
        assert remaining < seconds

    with structlog.testing.capture_logs() as lines:
        await asyncio.gather(*map(outlast, KINDS))
        await asyncio.sleep(0)
    ended = {line["method"]: line["code"] for line in lines if line["event"] == "call"}
    assert ended == {f"/test.Echo/{kind}": "DEADLINE_EXCEEDED" for kind in KINDS}


async def test_a_call_without_deadline_has_none(echo: Any) -> None:
    service, channel = echo
    await call(channel, "unary_unary", text("hello"))
    assert service.contexts[0].deadline is None
    assert service.contexts[0].remaining() is None


@pytest.mark.parametrize("kind", KINDS)
async def test_draining_lets_calls_finish_and_refuses_new_ones(serve: Any, details_of: Any, kind: str) -> None:
    service = Echo()
    interceptor = CallInterceptor(max_message_bytes=1_000_000)
    channel = await serve(service.register, interceptor=interceptor)
    running = asyncio.create_task(call(channel, kind, text("wait")))
    await service.entered.wait()
    draining = asyncio.create_task(interceptor.drain(60))
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, kind, text("late"))
    found = details_of(caught.value)
    assert (found["code"], found["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
    assert "RetryInfo" in found
    assert not draining.done()
    service.go_on.set()
    assert (await running)[-1].string_value == "wait"
    await draining
    assert interceptor.running == 0


async def test_draining_waits_no_longer_than_its_grace(serve: Any) -> None:
    service = Echo()
    interceptor = CallInterceptor(max_message_bytes=1_000_000)
    channel = await serve(service.register, interceptor=interceptor)
    running = asyncio.create_task(call(channel, "unary_unary", text("wait")))
    await service.entered.wait()
    await interceptor.drain(0.01)
    assert interceptor.running == 1
    service.go_on.set()
    await running
    assert interceptor.running == 0
