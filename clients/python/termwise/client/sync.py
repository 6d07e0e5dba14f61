"""The synchronous client."""

from __future__ import annotations

import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from termwise.client import indices, pipelines, searching, trained_models
from termwise.client.bulk import BulkProgress, BulkReport, BulkSession, StreamBrokenError, check_items, stream_ended
from termwise.client.calls import Paged, Streaming, Stubs, Unary, as_method, channel_options
from termwise.client.errors import TermwiseError, error_from_rpc
from termwise.client.retry import Attempts, RetryPolicy, unlimited

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterable, Iterator

    from termwise.client.types import Document, JsonObject, Operation
    from termwise.v1 import indices_pb2

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 30.0
"""Seconds for a call, retries included."""
MAX_MESSAGE_BYTES = 32 << 20
"""The server's default limit of a message."""


class Connection:
    """A channel, its stubs, and the rules of sending. Safe to use from many threads."""

    def __init__(
        self,
        channel: grpc.Channel,
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

    def unary(self, call: Unary[R]) -> R:
        """Send one request, again where that is safe, and read its answer."""
        return call.read(self._send(call, idempotent=call.idempotent))

    def paged(self, call: Paged[R]) -> R:
        """Fetch all pages."""
        pages = [self._send(call, idempotent=True)]
        while call.after(pages[-1]):
            pages.append(self._send(call, idempotent=True))
        return call.read(pages)

    def streaming(self, call: Streaming[R]) -> Iterator[R]:
        """Go through a stream of answers; leaving it early cancels the call."""
        stream = self.stubs.method(call.method)(call.request, timeout=call.timeout, metadata=self.metadata)
        try:
            for answer in stream:
                yield call.read(answer)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        finally:
            stream.cancel()

    def bulk(self, session: BulkSession, items: Iterable[Any], attempts: Attempts) -> None:
        """Run a bulk session to its end, over as many connections as it takes. Raises BulkIndexError."""
        source = iter(items)
        requests = [session.opening()]
        while True:
            try:
                self._bulk_once(session, source, requests, attempts)
            except StreamBrokenError as broken:
                try:
                    delay = attempts.delay_or_raise(broken.error, idempotent=True)
                except TermwiseError as final:
                    raise session.give_up(final) from final
                requests = [session.opening(), *session.resume()]
                time.sleep(delay)
            else:
                return

    def _bulk_once(
        self,
        session: BulkSession,
        source: Iterator[Any],
        requests: list[indices_pb2.BulkIndexRequest],
        attempts: Attempts,
    ) -> None:
        # The queue never holds more than the session's window. gRPC empties it from a thread of its own; documents are
        # drawn in the caller's.
        outgoing: SimpleQueue[indices_pb2.BulkIndexRequest | None] = SimpleQueue()
        for request in requests:
            outgoing.put(request)
        stream = self.stubs.method("Indices/BulkIndex")(
            iter(outgoing.get, None), timeout=attempts.remaining(), metadata=self.metadata
        )
        try:
            while True:
                while session.full:
                    _acknowledge(session, stream, attempts)
                item = next(source, _END)
                if item is _END:
                    break
                if (taken := session.take(item)) is not None:
                    outgoing.put(taken)
            outgoing.put(None)
            while session.pending_count:
                _acknowledge(session, stream, attempts)
        finally:
            outgoing.put(None)
            stream.cancel()

    def _send(self, call: Unary[Any] | Paged[Any], *, idempotent: bool) -> Any:
        attempts = Attempts(self.retry, self.timeout if call.timeout is None else call.timeout)
        send = self.stubs.method(call.method)
        while True:
            try:
                return send(call.request, timeout=attempts.remaining(), metadata=self.metadata)
            except grpc.RpcError as error:
                time.sleep(_delay(error, attempts, idempotent=idempotent))


_END: Any = object()


def _acknowledge(session: BulkSession, stream: Iterator[indices_pb2.BulkIndexResponse], attempts: Attempts) -> None:
    try:
        response = next(stream, None)
    except grpc.RpcError as error:
        raise StreamBrokenError(error_from_rpc(error)) from error
    if response is None:
        raise stream_ended()
    session.acknowledge(response)
    attempts.progressed()


def _delay(error: grpc.RpcError, attempts: Attempts, *, idempotent: bool) -> float:
    try:
        return attempts.delay_or_raise(error_from_rpc(error), idempotent=idempotent)
    except TermwiseError as final:
        raise final from error


class _Service:
    """The calls of one service over a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection


def _unary(build: Callable[P, Unary[R]]) -> Callable[Concatenate[Any, P], R]:
    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._connection.unary(build(*args, **kwargs))  # type: ignore[no-any-return]

    return as_method(method, build)  # type: ignore[no-any-return]


def _paged(build: Callable[P, Paged[R]]) -> Callable[Concatenate[Any, P], R]:
    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._connection.paged(build(*args, **kwargs))  # type: ignore[no-any-return]

    return as_method(method, build)  # type: ignore[no-any-return]


def _streaming(build: Callable[P, Streaming[R]]) -> Callable[Concatenate[Any, P], Iterator[R]]:
    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return self._connection.streaming(build(*args, **kwargs))  # type: ignore[no-any-return]

    return as_method(method, build)  # type: ignore[no-any-return]


class Models(_Service):
    """Trained models: what is stored."""

    put = _unary(trained_models.put_model)
    get = _unary(trained_models.get_model)
    list = _paged(trained_models.list_models)
    delete = _unary(trained_models.delete_model)
    download = _streaming(trained_models.download_model)


class Deployments(_Service):
    """Deployments: what is running."""

    start = _unary(trained_models.start_deployment)
    stop = _unary(trained_models.stop_deployment)
    get = _unary(trained_models.get_deployment)
    list = _paged(trained_models.list_deployments)


class Pipelines(_Service):
    """Ingest pipelines."""

    put = _unary(pipelines.put_pipeline)
    get = _unary(pipelines.get_pipeline)
    list = _paged(pipelines.list_pipelines)
    delete = _unary(pipelines.delete_pipeline)
    simulate = _unary(pipelines.simulate_pipeline)


class Indices(_Service):
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

    def bulk(
        self,
        index: str,
        documents: Iterable[Operation | Document | JsonObject],
        *,
        pipeline: str = "",
        on_progress: Callable[[BulkProgress], None] | None = None,
        raise_on_failure: bool = True,
        timeout: float | None = None,
    ) -> BulkReport:
        """Write any number of documents over one stream, slowed down to what the server takes.

        Where the connection breaks, the stream is opened again and unacknowledged puts with an id are sent again;
        anything else that was under way is reported as a failure (`OUTCOME_UNKNOWN`). It is given up after twice the
        tries of a call without an acknowledgement.

        Args:
            index: The index.
            documents: Documents, dicts `{"id": ..., "source": {...}}`, or Put, Create and Delete. Drawn as needed.
            pipeline: The pipeline; empty: the index's default; "_none": none.
            on_progress: Called after every document.
            raise_on_failure: Raise BulkIndexError at the end where a document failed; else look at the report.
            timeout: Seconds for everything; by default unlimited.
        """
        check_items(documents)
        session = BulkSession(index, pipeline, self._connection.max_message_bytes, on_progress)
        self._connection.bulk(session, documents, Attempts(self._connection.retry.patient(), unlimited(timeout)))
        return session.conclude(raise_on_failure=raise_on_failure)


class Client(_Service):
    """A client of a Termwise server.

    >>> with Client("127.0.0.1:50051") as client:
    ...     for hit in client.search("docs", "how is salmon farmed?"):
    ...         print(hit.score, hit.source["title"])

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
        """Make a client; the connection is opened by the first call.

        Args:
            address: Host and port.
            timeout: Default seconds for a call, retries included; infinite: no deadline.
            retry: How safe calls are retried; by default five tries. `NO_RETRIES` turns that off.
            credentials: TLS credentials; by default a plain connection.
            metadata: Sent with every call, such as `[("authorization", "...")]`.
            max_message_bytes: Largest message to send or receive, in bytes.
        """
        options = channel_options(max_message_bytes)
        super().__init__(
            Connection(
                grpc.insecure_channel(address, options)
                if credentials is None
                else grpc.secure_channel(address, credentials, options),
                timeout=timeout,
                retry=retry or RetryPolicy(),
                max_message_bytes=max_message_bytes,
                metadata=tuple(metadata),
            )
        )
        self.models = Models(self._connection)
        self.deployments = Deployments(self._connection)
        self.pipelines = Pipelines(self._connection)
        self.indices = Indices(self._connection)

    def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._connection.channel.close()

    def __enter__(self) -> Self:
        """Give the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()
