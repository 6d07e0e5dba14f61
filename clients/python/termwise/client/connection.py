"""The synchronous client's channel, and the rules of sending over it."""

from __future__ import annotations

import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from termwise.client.calls import Duplex, Paged, StreamBrokenError, Streaming, Stubs, Unary, stream_ended
from termwise.client.errors import TermwiseError, error_from_rpc
from termwise.client.retry import Attempts, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from google.protobuf.message import Message

    from termwise.client.uploads import OnUpload, UploadProgress, UploadSession
    from termwise.v1.trained_models_pb2 import TrainedModel, UploadTrainedModelRequest

R = TypeVar("R")


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

    def duplex(self, session: Duplex[R], items: Iterable[Any], attempts: Attempts) -> Iterator[R]:
        """Run a session to its end, over as many connections as it takes; give what each answer means.

        Raises what `session.give_up` makes of a stream that broke for good.
        """
        source = iter(items)
        requests = [session.opening()]
        while True:
            try:
                yield from self._duplex_once(session, source, requests, attempts)
            except StreamBrokenError as broken:
                try:
                    delay = attempts.delay_or_raise(broken.error, idempotent=True)
                except TermwiseError as final:
                    raise session.give_up(final) from final
                requests = [session.opening(), *session.resume()]
                time.sleep(delay)
            else:
                return

    def _duplex_once(
        self, session: Duplex[R], source: Iterator[Any], requests: list[Message], attempts: Attempts
    ) -> Iterator[R]:
        # The queue never holds more than the session's window. gRPC empties it from a thread of its own; items are
        # drawn in the caller's.
        outgoing: SimpleQueue[Message | None] = SimpleQueue()
        for request in requests:
            outgoing.put(request)
        stream = self.stubs.method(session.method)(
            iter(outgoing.get, None), timeout=attempts.remaining(), metadata=self.metadata
        )
        try:
            while True:
                while session.full:
                    yield _take(session, stream, attempts)
                item = next(source, _END)
                if item is _END:
                    break
                if (taken := session.take(item)) is not None:
                    outgoing.put(taken)
            outgoing.put(None)
            while session.pending_count:
                yield _take(session, stream, attempts)
        finally:
            outgoing.put(None)
            stream.cancel()

    def upload(self, session: UploadSession, on_progress: OnUpload | None, attempts: Attempts) -> TrainedModel:
        """Send a model's files, over as many connections as it takes; each goes on where the last one broke."""
        while True:
            model = self.unary(session.look())
            if session.is_done(model):
                return model
            if session.resume(model):
                attempts.progressed()
            try:
                return self._upload_once(session, on_progress, attempts)
            except grpc.RpcError as error:
                found, goes_on = session.judge(error_from_rpc(error))
                try:
                    delay = attempts.delay_or_raise(found, idempotent=goes_on)
                except TermwiseError as final:
                    raise final from error
                time.sleep(delay)

    def _upload_once(self, session: UploadSession, on_progress: OnUpload | None, attempts: Attempts) -> TrainedModel:
        # gRPC draws the parts in a thread of its own; progress, and what goes wrong with a file, come back to ours.
        steps: SimpleQueue[UploadProgress | Exception | None] = SimpleQueue()

        def parts() -> Iterator[UploadTrainedModelRequest]:
            try:
                for part, progress in session.parts():
                    yield part
                    steps.put(progress)
            except Exception as error:
                steps.put(error)
                raise

        call = self.stubs.method(session.method).future(parts(), timeout=attempts.remaining(), metadata=self.metadata)
        call.add_done_callback(lambda _: steps.put(None))
        try:
            while (step := steps.get()) is not None:
                if isinstance(step, Exception):
                    raise step
                if on_progress is not None:
                    on_progress(step)
            return call.result().trained_model  # type: ignore[no-any-return]
        finally:
            call.cancel()

    def _send(self, call: Unary[Any] | Paged[Any], *, idempotent: bool) -> Any:
        attempts = Attempts(self.retry, self.timeout if call.timeout is None else call.timeout)
        send = self.stubs.method(call.method)
        while True:
            try:
                return send(call.request, timeout=attempts.remaining(), metadata=self.metadata)
            except grpc.RpcError as error:
                time.sleep(_delay(error, attempts, idempotent=idempotent))


_END: Any = object()


def _take(session: Duplex[R], stream: Iterator[Any], attempts: Attempts) -> R:
    try:
        response = next(stream, None)
    except grpc.RpcError as error:
        raise StreamBrokenError(error_from_rpc(error)) from error
    if response is None:
        raise stream_ended()
    attempts.progressed()
    return session.acknowledge(response)


def _delay(error: grpc.RpcError, attempts: Attempts, *, idempotent: bool) -> float:
    try:
        return attempts.delay_or_raise(error_from_rpc(error), idempotent=idempotent)
    except TermwiseError as final:
        raise final from error
