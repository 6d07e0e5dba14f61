"""A call as a value: which method, which request, how its answer is read, and whether it may be sent twice.

`trained_models`, `pipelines`, `indices` and `searching` are plain functions that make these; `sync` and `aio` send
them. So every method has one signature, one docstring and one meaning in both clients.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from termwise.client.errors import TermwiseError, UnavailableError
from termwise.v1 import indices_pb2_grpc, pipeline_pb2_grpc, search_pb2_grpc, trained_models_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)

LIFECYCLE_TIMEOUT = 300.0
"""Default timeout in seconds of calls that load, build or wait: they take as long as a model or a disk takes."""


@dataclass(frozen=True, slots=True)
class Unary(Generic[ResultT]):
    """One request, one answer.

    Attributes:
        method: Service and method: "Search/Search".
        request: The request.
        read: Makes the result of the answer.
        idempotent: Whether sending it twice does no harm.
        timeout: Seconds for all tries together; None: the client's default.
    """

    method: str
    request: Message
    read: Callable[[Any], ResultT]
    idempotent: bool
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Paged(Generic[ResultT]):
    """A listing: each answer has a `next_page_token`, each request a `page_token`. `read` makes the result of all."""

    method: str
    request: Any
    read: Callable[[list[Any]], ResultT]
    timeout: float | None = None

    def after(self, page: Any) -> bool:
        """Turn the request to the page after `page`; False where that was the last."""
        self.request.page_token = page.next_page_token
        return bool(page.next_page_token)


@dataclass(frozen=True, slots=True)
class Streaming(Generic[ResultT]):
    """One request, a stream of answers. It has no deadline unless `timeout` gives one, and is never retried."""

    method: str
    request: Message
    read: Callable[[Any], ResultT]
    timeout: float | None = None


class Duplex(Protocol[ResultT_co]):
    """A stream of requests and a stream of answers: the bookkeeping of one, over as many connections as it takes.

    It does no I/O. What was sent and is not answered is pending; when the connection breaks, it is sent again.
    """

    @property
    def method(self) -> str:
        """Service and method."""
        ...

    @property
    def full(self) -> bool:
        """Whether answers have to come before more is sent."""
        ...

    @property
    def pending_count(self) -> int:
        """How many requests wait for their answer."""
        ...

    def opening(self) -> Message:
        """Give the first message of every connection."""
        ...

    def take(self, item: Any) -> Message | None:
        """Give the message that sends an item; None where there is nothing to send."""
        ...

    def acknowledge(self, response: Any) -> ResultT_co:
        """Take one answer in. Raises TermwiseError where it belongs to nothing that was sent."""
        ...

    def resume(self) -> Sequence[Message]:
        """Give what has to be sent again over a new connection, in order."""
        ...

    def give_up(self, error: TermwiseError) -> TermwiseError:
        """Give the error of a stream that broke for good."""
        ...


class StreamBrokenError(Exception):
    """The stream itself failed. Of a kind of its own: the caller's items may raise anything, TermwiseError too."""

    def __init__(self, error: TermwiseError) -> None:
        """Keep why."""
        super().__init__(error.message)
        self.error = error


def stream_ended() -> StreamBrokenError:
    """Make the error of a stream that the server ended although acknowledgements are due."""
    return StreamBrokenError(UnavailableError("The server ended the stream before it answered everything."))


class Stubs:
    """The stubs of the four services over one channel."""

    def __init__(self, channel: Any) -> None:
        """Make them. `channel` is of grpc or grpc.aio; the calls' kind follows it."""
        self._services: dict[str, Any] = {
            "TrainedModels": trained_models_pb2_grpc.TrainedModelsStub(channel),
            "Pipeline": pipeline_pb2_grpc.PipelineStub(channel),
            "Indices": indices_pb2_grpc.IndicesStub(channel),
            "Search": search_pb2_grpc.SearchStub(channel),
        }

    def method(self, name: str) -> Any:
        """Give what calls "Service/Method"."""
        service, _, method = name.partition("/")
        return getattr(self._services[service], method)


def as_method(method: Any, build: Callable[..., Any]) -> Any:
    """Give `method` the name, documentation and signature of `build`, with `self` before it."""
    signature = inspect.signature(build)
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__name__ = build.__name__
    method.__doc__ = build.__doc__
    method.__signature__ = signature.replace(
        parameters=[me, *signature.parameters.values()], return_annotation=inspect.Signature.empty
    )
    return method


CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # After a failed connection, try again soon: servers restart in seconds, and deadlines bound retries anyway.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Give the channel's options: message limits in bytes, and quick reconnection."""
    return [
        *CHANNEL_OPTIONS,
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
    ]
