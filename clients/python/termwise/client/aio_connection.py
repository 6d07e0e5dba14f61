"""The asynchronous client's channel, and the rules of sending over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from termwise.client.calls import Duplex, Paged, StreamBrokenError, Streaming, Stubs, Unary, stream_ended
from termwise.client.errors import TermwiseError, error_from_rpc
from termwise.client.retry import Attempts, RetryPolicy

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from termwise.client.uploads import OnUpload, UploadSession
    from termwise.v1.trained_models_pb2 import TrainedModel, UploadTrainedModelRequest

R = TypeVar("R")

FAILED_WRITE = "Internal error from Core"
"""What grpc.aio says when a write finds the call ended."""
SETTLE_SECONDS = 0.005
SETTLE_STEPS = 200
"""How long to wait for the server's own status where that comes later."""


class AsyncConnection:
    """A channel, its stubs, and the rules of sending. Belongs to one event loop."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        timeout: float,
        retry: RetryPolicy,
        max_message_bytes: int,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        """Take over the channel."""
        self.channel = channel
        self.stubs = Stubs(channel)
        self.timeout = timeout
        self.retry = retry
        self.max_message_bytes = max_message_bytes
        self.metadata = metadata

    async def unary(self, call: Unary[R]) -> R:
        """Send one request, again where that is safe, and read its answer."""
        return call.read(await self._send(call, idempotent=call.idempotent))

    async def paged(self, call: Paged[R]) -> R:
        """Fetch all pages."""
        pages = [await self._send(call, idempotent=True)]
        while call.after(pages[-1]):
            pages.append(await self._send(call, idempotent=True))
        return call.read(pages)

    async def streaming(self, call: Streaming[R]) -> AsyncIterator[R]:
        """Go through a stream of answers; leaving it early cancels the call."""
        stream = self.stubs.method(call.method)(call.request, timeout=call.timeout, metadata=self.metadata)
        try:
            async for answer in stream:
                yield call.read(answer)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        finally:
            stream.cancel()

    async def duplex(
        self, session: Duplex[R], items: Iterable[Any] | AsyncIterable[Any], attempts: Attempts
    ) -> AsyncGenerator[R, None]:
        """Run a session to its end, over as many connections as it takes; give what each answer means.

        Raises what `session.give_up` makes of a stream that broke for good.
        """
        source = aiter(items) if isinstance(items, AsyncIterable) else _each(items)
        requests = [session.opening()]
        while True:
            try:
                async with aclosing(self._duplex_once(session, source, requests, attempts)) as found:
                    async for each in found:
                        yield each
            except StreamBrokenError as broken:
                try:
                    delay = attempts.delay_or_raise(broken.error, idempotent=True)
                except TermwiseError as final:
                    raise session.give_up(final) from final
                requests = [session.opening(), *session.resume()]
                await asyncio.sleep(delay)
            else:
                return

    async def _duplex_once(
        self, session: Duplex[R], source: AsyncIterator[Any], requests: list[Message], attempts: Attempts
    ) -> AsyncGenerator[R, None]:
        # A queue of its own, so that sending never waits for the server while answers are due. It never holds more than
        # the session's window.
        outgoing: asyncio.Queue[Message | None] = asyncio.Queue()
        for request in requests:
            outgoing.put_nowait(request)
        stream = self.stubs.method(session.method)(
            _until_none(outgoing), timeout=attempts.remaining(), metadata=self.metadata
        )
        answers = _Answers(stream)
        try:
            while True:
                while session.full:
                    yield await answers.take_into(session, attempts)
                item = await anext(source, _END)
                if item is _END:
                    break
                if (taken := session.take(item)) is not None:
                    outgoing.put_nowait(taken)
            outgoing.put_nowait(None)
            while session.pending_count:
                yield await answers.take_into(session, attempts)
        finally:
            outgoing.put_nowait(None)
            stream.cancel()

    async def upload(self, session: UploadSession, on_progress: OnUpload | None, attempts: Attempts) -> TrainedModel:
        """Send a model's files, over as many connections as it takes; each goes on where the last one broke."""
        while True:
            model = await self.unary(session.look())
            if session.is_done(model):
                return model
            # Checksums are reckoned in a thread.
            if await asyncio.to_thread(session.resume, model):
                attempts.progressed()
            try:
                return await self._upload_once(session, on_progress, attempts)
            except grpc.RpcError as error:
                found, goes_on = session.judge(error_from_rpc(error))
                try:
                    delay = attempts.delay_or_raise(found, idempotent=goes_on)
                except TermwiseError as final:
                    raise final from error
                await asyncio.sleep(delay)

    async def _upload_once(
        self, session: UploadSession, on_progress: OnUpload | None, attempts: Attempts
    ) -> TrainedModel:
        broken: list[Exception] = []

        async def parts() -> AsyncIterator[UploadTrainedModelRequest]:
            source = session.parts()
            try:
                # Files are read in a thread.
                while (step := await asyncio.to_thread(next, source, None)) is not None:
                    part, progress = step
                    yield part
                    if on_progress is not None:
                        on_progress(progress)
            except Exception as error:
                broken.append(error)
                raise

        call = self.stubs.method(session.method)(parts(), timeout=attempts.remaining(), metadata=self.metadata)
        try:
            return (await call).trained_model  # type: ignore[no-any-return]
        except (grpc.RpcError, asyncio.CancelledError):
            if broken:
                raise broken[0] from None
            raise
        finally:
            call.cancel()

    async def _send(self, call: Unary[Any] | Paged[Any], *, idempotent: bool) -> Any:
        attempts = Attempts(self.retry, self.timeout if call.timeout is None else call.timeout)
        send = self.stubs.method(call.method)
        while True:
            try:
                return await send(call.request, timeout=attempts.remaining(), metadata=self.metadata)
            except grpc.RpcError as error:
                try:
                    delay = attempts.delay_or_raise(error_from_rpc(error), idempotent=idempotent)
                except TermwiseError as final:
                    raise final from error
                await asyncio.sleep(delay)


_END: Any = object()


async def _each(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def _until_none(queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (item := await queue.get()) is not None:
        yield item


class _Answers:
    """The answers of a stream, and the status that the server ended it with.

    Where a write finds that the server has ended the call, grpc.aio sets an INTERNAL status of its own, just before or
    just after the server's, and replaces it in the latter case. So the first status is kept, unless it is that one.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._answers: AsyncIterator[Any] = aiter(stream)
        self._first: grpc.aio.AioRpcError | None = None
        stream.add_done_callback(self._keep)

    async def take_into(self, session: Duplex[R], attempts: Attempts) -> R:
        """Take the next answer. Raises StreamBrokenError where there is none."""
        try:
            response = await anext(self._answers, None)
        except grpc.aio.AioRpcError as error:
            settled = await self._settled(error)
            ended = settled.code() is grpc.StatusCode.OK
            raise (stream_ended() if ended else StreamBrokenError(error_from_rpc(settled))) from error
        if response is None:
            raise stream_ended()
        attempts.progressed()
        return session.acknowledge(response)

    def _keep(self, _: Any) -> None:
        # The call is done, so its coroutines have nothing to wait for, and a later status cannot come in between.
        coroutine = self._read()
        try:
            coroutine.send(None)
        except StopIteration as ended:
            self._first = ended.value
        finally:
            coroutine.close()

    async def _read(self) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(
            await self._stream.code(),
            await self._stream.initial_metadata(),
            await self._stream.trailing_metadata(),
            details=await self._stream.details(),
        )

    async def _settled(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """Give the server's error for what was raised."""
        found = self._first or error
        for _ in range(SETTLE_STEPS):
            if found.code() is not grpc.StatusCode.INTERNAL or found.details() != FAILED_WRITE:
                break
            await asyncio.sleep(SETTLE_SECONDS)
            found = await self._read()
        return found
