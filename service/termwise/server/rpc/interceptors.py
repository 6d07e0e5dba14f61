"""What surrounds every call: decoding, errors, the request id, and one log line.

Decoding and encoding happen inside the interceptor rather than in grpc.aio, which answers a bare UNKNOWN, without
details, where either fails.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from termwise.server.errors import InvalidArgumentError, TermwiseError, UnavailableError, UnimplementedError
from termwise.server.rpc.context import CURRENT_REQUEST_ID, REQUEST_ID_KEY, request_id
from termwise.server.rpc.status import DETAILS_KEY, status_code, to_status

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator

Context = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger()

_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}

_BUGS: Final = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})
"""Codes that an operator should look into."""


_ROUNDED_PART: Final = 0.03
_ROUNDED_SECONDS: Final = 0.05
"""How much later a deadline is here than at the caller, at the most: gRPC rounds it up so as to send the same one again
(`TimeoutCompressorImpl` in its chttp2 transport), and counts from its arrival."""


@dataclass(frozen=True, slots=True)
class _Undecodable:
    """Stands for a request that could not be decoded, until a handler's wrapper may raise."""

    cause: Exception


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler, of all four kinds, and knows which calls run."""

    def __init__(self, *, max_message_bytes: int) -> None:
        """Refuse answers over `max_message_bytes`, which no client with the same limit could read."""
        self._limit = max_message_bytes
        self._wrapped: dict[str, tuple[Any, grpc.RpcMethodHandler[Any, Any]]] = {}
        """By method: the handler and what it was wrapped into, which costs more than some calls."""
        self._running = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Number of calls that run."""
        return self._running

    async def drain(self, grace: float) -> None:
        """Refuse new calls from now on, and wait `grace` seconds at most until those that run have ended.

        Health and reflection go on answering, and nobody waits for them: a watcher stays for ever.
        """
        self._draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Give the handler of a call, wrapped; for a method that does not exist, one that says so."""
        method = str(handler_call_details.method)
        handler = await continuation(handler_call_details)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._unknown(method))
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(method, handler))
        return known[1]

    def _wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        decode = _decoder(handler.request_deserializer)
        encode = _encoder(handler.response_serializer, self._limit)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, handler.unary_unary, encode, _checked), decode
            )
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                self._unary(method, handler.stream_unary, encode, _each), decode
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream, encode, _checked), decode
            )
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(method, handler.stream_stream, encode, _each), decode
            )
        return handler

    def _unary(
        self, method: str, handler: Callable[..., Any], encode: Callable[[Any], bytes], take: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        """Wrap a handler that gives one answer."""
        waits = inspect.iscoroutinefunction(handler)

        async def wrapped(request: Any, context: Context) -> bytes:
            async with self._call(method, context):
                answer = handler(take(request), context)
                return encode(await answer if waits or inspect.isawaitable(answer) else answer)

        return wrapped

    def _stream(
        self, method: str, handler: Callable[..., Any], encode: Callable[[Any], bytes], take: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        """Wrap a handler that gives a stream of answers."""

        async def wrapped(request: Any, context: Context) -> AsyncGenerator[bytes, None]:
            async with self._call(method, context), aclosing(handler(take(request), context)) as answers:
                async for answer in answers:
                    yield encode(answer)

        return wrapped

    def _unknown(self, method: str) -> Callable[..., Any]:
        """Make the handler of a method that does not exist."""

        async def handler(request: Any, context: Context) -> None:
            del request
            async with self._call(method, context):
                raise UnimplementedError(
                    f'There is no method "{method}"; reflection lists those there are.',
                    reason="METHOD_UNKNOWN",
                    metadata={"method": method},
                )

        return handler

    @asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[None]:
        """Surround a call: give it an id, turn errors into a status, and log one line."""
        began = time.perf_counter()
        call_id = request_id(context)
        CURRENT_REQUEST_ID.set(call_id)
        structlog.contextvars.bind_contextvars(request_id=call_id)
        trailing: list[tuple[str, str | bytes]] = [(REQUEST_ID_KEY, call_id)]
        code = "OK"
        more: dict[str, Any] = {}
        try:
            context.set_trailing_metadata(tuple(trailing))
            with self._admitted(method):
                yield
            code = _name(context.code()) or code
        except (asyncio.CancelledError, GeneratorExit):
            # The caller left, or its deadline passed: gRPC tells both as a cancellation.
            late = _is_late(context.time_remaining(), time.perf_counter() - began)
            code = "DEADLINE_EXCEEDED" if late else "CANCELLED"
            raise
        except grpc.aio.AbortError:
            code = _name(context.code()) or "UNKNOWN"
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the one place where errors end; Rust's panics are no Exceptions
            status = to_status(_named(error, method, context))
            code = status_code(status).name
            more = (
                {"reason": error.reason_code} if isinstance(error, TermwiseError) else {"error": type(error).__name__}
            )
            more["message"] = status.message
            trailing.append((DETAILS_KEY, status.SerializeToString()))
            await context.abort(status_code(status), status.message, tuple(trailing))
        finally:
            duration_ms = round((time.perf_counter() - began) * 1e3, 3)
            log = partial(_log.error if code in _BUGS else _log.info, "call", method=method, code=code, **more)
            # A moment later, when the answer is on its way: the caller need not wait for the line.
            asyncio.get_running_loop().call_soon(partial(log, duration_ms=duration_ms))

    @contextmanager
    def _admitted(self, method: str) -> Iterator[None]:
        """Count a call among those that run, or refuse it while the server drains."""
        if method.startswith("/grpc."):
            yield
            return
        if self._draining:
            raise UnavailableError("The server is stopping; retry with another, or later.", reason="SERVER_STOPPING")
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if self._running == 0:
                self._idle.set()


def _is_late(remaining: float | None, elapsed: float) -> bool:
    """Tell whether a caller's deadline has passed; as the server sees it, `remaining` seconds may still be left."""
    return remaining is not None and remaining <= _ROUNDED_SECONDS + _ROUNDED_PART * (elapsed + remaining)


def _named(error: BaseException, method: str, context: Context) -> BaseException:
    """Turn what generated base classes raise for a method that nobody wrote into the domain's error."""
    if isinstance(error, NotImplementedError) and _name(context.code()) == "UNIMPLEMENTED":
        return UnimplementedError(f'"{method}" is not offered by this server.', reason="METHOD_UNIMPLEMENTED")
    return error


def _name(code: Any) -> str:
    """Give the name of a status code, which grpc.aio hands out as an enum, a number, or nothing."""
    return code.name if isinstance(code, grpc.StatusCode) else _NAMES.get(code, "")


def _decoder(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Make a deserializer that never raises."""

    def decoded(data: bytes) -> Any:
        try:
            return data if decode is None else decode(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, the bytes are the caller's
            return _Undecodable(error)

    return decoded


def _encoder(encode: Callable[[Any], bytes] | None, limit: int) -> Callable[[Any], bytes]:
    """Make a serializer that minds the message limit."""

    def encoded(answer: Any) -> bytes:
        data = answer if encode is None else encode(answer)
        if len(data) > limit:
            raise InvalidArgumentError(
                f"The answer is {len(data):,} bytes long, over the limit of {limit:,}; ask for less.",
                reason="ANSWER_TOO_LARGE",
                metadata={"limit": str(limit), "actual": str(len(data))},
            )
        return data

    return encoded


def _checked(request: Any) -> Any:
    """Give a request back, or raise where it could not be decoded."""
    if isinstance(request, _Undecodable):
        raise InvalidArgumentError(
            "The request cannot be decoded: it is no valid protobuf message of this method, holds text that is not "
            "UTF-8, or is nested too deeply; send another.",
            reason="REQUEST_UNDECODABLE",
            metadata={"cause": str(request.cause)} if isinstance(request.cause, DecodeError) else {},
        ) from request.cause
    return request


async def _each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Check the requests of a stream."""
    async for request in requests:
        yield _checked(request)
