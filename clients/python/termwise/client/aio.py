"""The asynchronous client: the same calls as `sync`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from termwise.client import indices, pipelines, searching, trained_models
from termwise.client.bulk import BulkProgress, BulkReport, BulkSession, StreamBrokenError, check_items, stream_ended
from termwise.client.calls import Paged, Streaming, Stubs, Unary, as_method, channel_options
from termwise.client.errors import TermwiseError, error_from_rpc
from termwise.client.retry import Attempts, RetryPolicy, unlimited
from termwise.client.sync import DEFAULT_ADDRESS, DEFAULT_TIMEOUT, MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Coroutine

    from termwise.client.types import Document, JsonObject, Operation
    from termwise.v1 import indices_pb2

P = ParamSpec("P")
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

    async def bulk(self, session: BulkSession, items: Iterable[Any] | AsyncIterable[Any], attempts: Attempts) -> None:
        """Run a bulk session to its end, over as many connections as it takes. Raises BulkIndexError."""
        source = aiter(items) if isinstance(items, AsyncIterable) else _each(items)
        requests = [session.opening()]
        while True:
            try:
                await self._bulk_once(session, source, requests, attempts)
            except StreamBrokenError as broken:
                try:
                    delay = attempts.delay_or_raise(broken.error, idempotent=True)
                except TermwiseError as final:
                    raise session.give_up(final) from final
                requests = [session.opening(), *session.resume()]
                await asyncio.sleep(delay)
            else:
                return

    async def _bulk_once(
        self,
        session: BulkSession,
        source: AsyncIterator[Any],
        requests: list[indices_pb2.BulkIndexRequest],
        attempts: Attempts,
    ) -> None:
        # A queue of its own, so that sending never waits for the server while acknowledgements are due. It never holds
        # more than the session's window.
        outgoing: asyncio.Queue[indices_pb2.BulkIndexRequest | None] = asyncio.Queue()
        for request in requests:
            outgoing.put_nowait(request)
        stream = self.stubs.method("Indices/BulkIndex")(
            _until_none(outgoing), timeout=attempts.remaining(), metadata=self.metadata
        )
        answers = _Answers(stream)
        try:
            while True:
                while session.full:
                    await answers.take_into(session, attempts)
                item = await anext(source, _END)
                if item is _END:
                    break
                if (taken := session.take(item)) is not None:
                    outgoing.put_nowait(taken)
            outgoing.put_nowait(None)
            while session.pending_count:
                await answers.take_into(session, attempts)
        finally:
            outgoing.put_nowait(None)
            stream.cancel()

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
    """The acknowledgements of a stream, and the status that the server ended it with.

    Where a write finds that the server has ended the call, grpc.aio sets an INTERNAL status of its own, just before or
    just after the server's, and replaces it in the latter case. So the first status is kept, unless it is that one.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._answers: AsyncIterator[indices_pb2.BulkIndexResponse] = aiter(stream)
        self._first: grpc.aio.AioRpcError | None = None
        stream.add_done_callback(self._keep)

    async def take_into(self, session: BulkSession, attempts: Attempts) -> None:
        """Take the next acknowledgement. Raises StreamBrokenError where there is none."""
        try:
            response = await anext(self._answers, None)
        except grpc.aio.AioRpcError as error:
            settled = await self._settled(error)
            ended = settled.code() is grpc.StatusCode.OK
            raise (stream_ended() if ended else StreamBrokenError(error_from_rpc(settled))) from error
        if response is None:
            raise stream_ended()
        session.acknowledge(response)
        attempts.progressed()

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


class _Service:
    """The calls of one service over a connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection


def _unary(build: Callable[P, Unary[R]]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    async def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._connection.unary(build(*args, **kwargs))  # type: ignore[no-any-return]

    return as_method(method, build)  # type: ignore[no-any-return]


def _paged(build: Callable[P, Paged[R]]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    async def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._connection.paged(build(*args, **kwargs))  # type: ignore[no-any-return]

    return as_method(method, build)  # type: ignore[no-any-return]


def _streaming(build: Callable[P, Streaming[R]]) -> Callable[Concatenate[Any, P], AsyncIterator[R]]:
    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        return self._connection.streaming(build(*args, **kwargs))  # type: ignore[no-any-return]

    return as_method(method, build)  # type: ignore[no-any-return]


class AsyncModels(_Service):
    """Trained models: what is stored."""

    put = _unary(trained_models.put_model)
    get = _unary(trained_models.get_model)
    list = _paged(trained_models.list_models)
    delete = _unary(trained_models.delete_model)
    download = _streaming(trained_models.download_model)


class AsyncDeployments(_Service):
    """Deployments: what is running."""

    start = _unary(trained_models.start_deployment)
    stop = _unary(trained_models.stop_deployment)
    get = _unary(trained_models.get_deployment)
    list = _paged(trained_models.list_deployments)


class AsyncPipelines(_Service):
    """Ingest pipelines."""

    put = _unary(pipelines.put_pipeline)
    get = _unary(pipelines.get_pipeline)
    list = _paged(pipelines.list_pipelines)
    delete = _unary(pipelines.delete_pipeline)
    simulate = _unary(pipelines.simulate_pipeline)


class AsyncIndices(_Service):
    """Indices and their documents."""

    create = _unary(indices.create_index)
    get = _unary(indices.get_index)
    list = _paged(indices.list_indices)
    delete = _unary(indices.delete_index)
    stats = _unary(indices.get_index_stats)
    put_document = _unary(indices.put_document)
    get_document = _unary(indices.get_document)
    delete_document = _unary(indices.delete_document)
    batch = _unary(indices.batch_index)

    async def bulk(
        self,
        index: str,
        documents: Iterable[Operation | Document | JsonObject] | AsyncIterable[Operation | Document | JsonObject],
        *,
        pipeline: str = "",
        on_progress: Callable[[BulkProgress], None] | None = None,
        raise_on_failure: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - a gRPC deadline, which the server learns of
    ) -> BulkReport:
        """Write any number of documents over one stream, as `Indices.bulk` does; `documents` may be asynchronous."""
        check_items(documents)
        session = BulkSession(index, pipeline, self._connection.max_message_bytes, on_progress)
        await self._connection.bulk(session, documents, Attempts(self._connection.retry.patient(), unlimited(timeout)))
        return session.conclude(raise_on_failure=raise_on_failure)


class AsyncClient(_Service):
    """An asyncio client of a Termwise server, with the calls of `Client`. Make it inside the event loop that uses it.

    >>> async with AsyncClient("127.0.0.1:50051") as client:
    ...     result = await client.search("docs", "how is salmon farmed?")

    Attributes:
        models: Trained models.
        deployments: Running models.
        pipelines: Ingest pipelines.
        indices: Indices and documents.
    """

    search = _unary(searching.search)
    infer = _unary(trained_models.infer)
    expand = _unary(trained_models.expand)

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        retry: RetryPolicy | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Iterable[tuple[str, str]] = (),
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        """Make a client; the arguments are those of `Client`."""
        options = channel_options(max_message_bytes)
        super().__init__(
            AsyncConnection(
                grpc.aio.insecure_channel(address, options)
                if credentials is None
                else grpc.aio.secure_channel(address, credentials, options),
                timeout=timeout,
                retry=retry or RetryPolicy(),
                max_message_bytes=max_message_bytes,
                metadata=tuple(metadata),
            )
        )
        self.models = AsyncModels(self._connection)
        self.deployments = AsyncDeployments(self._connection)
        self.pipelines = AsyncPipelines(self._connection)
        self.indices = AsyncIndices(self._connection)

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        await self._connection.channel.close()

    async def __aenter__(self) -> Self:
        """Give the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()
