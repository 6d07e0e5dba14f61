"""The synchronous client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from termwise.client import deployments, indices, inference, pipelines, searching, trained_models
from termwise.client.bulk import BulkProgress, BulkReport, BulkSession, check_items
from termwise.client.calls import Paged, Streaming, Unary, as_method, channel_options
from termwise.client.connection import Connection
from termwise.client.retry import Attempts, RetryPolicy, unlimited
from termwise.client.streams import InferSession, check_texts
from termwise.client.uploads import Files, OnUpload, UploadSession, local_files

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterable, Iterator

    from termwise.client.inference import InputType
    from termwise.client.types import Document, ExpandedText, JsonObject, Operation
    from termwise.v1.trained_models_pb2 import TrainedModel

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 30.0
"""Seconds for a call, retries included."""
MAX_MESSAGE_BYTES = 32 << 20
"""The server's default limit of a message."""


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
    cancel_download = _unary(trained_models.cancel_download)
    put_alias = _unary(trained_models.put_alias)
    delete_alias = _unary(trained_models.delete_alias)
    stats = _paged(trained_models.get_model_stats)

    def upload(
        self, model_id: str, files: Files, *, on_progress: OnUpload | None = None, timeout: float | None = None
    ) -> TrainedModel:
        """Send the files of a model that was put without a source, and give it as it then stands.

        What the server holds already, from an upload that broke, is not sent again. Where the connection breaks, it
        goes on by itself; it is given up after twice the tries of a call that move nothing.

        Args:
            model_id: The model, which is stored and has no source.
            files: Its folder; or a dict of its files, such as `{"model.safetensors": "/tmp/weights"}`.
            on_progress: Called after every part.
            timeout: Seconds for everything; by default unlimited.

        Raises FailedPreconditionError where the files cannot be used, OSError where they cannot be read.
        """
        session = UploadSession(model_id, local_files(files))
        attempts = Attempts(self._connection.retry.patient(), unlimited(timeout))
        return self._connection.upload(session, on_progress, attempts)


class Deployments(_Service):
    """Deployments: what is running."""

    start = _unary(deployments.start_deployment)
    update = _unary(deployments.update_deployment)
    clear_cache = _unary(deployments.clear_deployment_cache)
    stop = _unary(deployments.stop_deployment)
    get = _unary(deployments.get_deployment)
    list = _paged(deployments.list_deployments)


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
        attempts = Attempts(self._connection.retry.patient(), unlimited(timeout))
        for _ in self._connection.duplex(session, documents, attempts):
            pass
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
    infer = _unary(inference.infer)
    expand = _unary(inference.expand)

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

    def infer_stream(
        self,
        deployment_id: str,
        texts: Iterable[str],
        *,
        input_type: InputType | None = None,
        include_token_ids: bool = False,
        raise_on_error: bool = True,
        timeout: float | None = None,
    ) -> Iterator[ExpandedText]:
        """Expand any number of texts over one stream, slowed down to what the deployment takes; give them in order.

        Where the connection breaks, the stream is opened again and texts without an answer are sent again. Leaving the
        iteration early cancels the call.

        Args:
            deployment_id: The deployment; or a model or an alias that one runs.
            texts: The texts. Drawn as needed, up to 256 ahead of the answers.
            input_type: Which side of the model reads them; may be left out only where both sides are the same.
            include_token_ids: Give vocabulary ids too.
            raise_on_error: Raise the error of the first text that cannot be expanded; else its `error` says why.
            timeout: Seconds for everything; by default unlimited.
        """
        check_texts(texts)
        limit = self._connection.max_message_bytes
        session = InferSession(deployment_id, input_type, include_token_ids, limit, raise_on_error)
        attempts = Attempts(self._connection.retry.patient(), unlimited(timeout))
        return self._connection.duplex(session, texts, attempts)

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
