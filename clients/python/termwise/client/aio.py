"""The asynchronous client: the same calls as `sync`, awaited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from termwise.client import deployments, indices, inference, pipelines, searching, trained_models
from termwise.client.aio_connection import AsyncConnection
from termwise.client.bulk import BulkProgress, BulkReport, BulkSession, check_items
from termwise.client.calls import Paged, Streaming, Unary, as_method, channel_options
from termwise.client.retry import Attempts, RetryPolicy, unlimited
from termwise.client.streams import InferSession, check_texts
from termwise.client.sync import DEFAULT_ADDRESS, DEFAULT_TIMEOUT, MAX_MESSAGE_BYTES
from termwise.client.uploads import Files, OnUpload, UploadSession, local_files

if TYPE_CHECKING:
    import types
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable

    from termwise.client.inference import InputType
    from termwise.client.types import Document, ExpandedText, JsonObject, Operation
    from termwise.v1.trained_models_pb2 import TrainedModel

P = ParamSpec("P")
R = TypeVar("R")


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
    cancel_download = _unary(trained_models.cancel_download)
    put_alias = _unary(trained_models.put_alias)
    delete_alias = _unary(trained_models.delete_alias)
    stats = _paged(trained_models.get_model_stats)

    async def upload(
        self,
        model_id: str,
        files: Files,
        *,
        on_progress: OnUpload | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - a gRPC deadline, which the server learns of
    ) -> TrainedModel:
        """Send the files of a model that was put without a source, as `Models.upload` does."""
        session = UploadSession(model_id, await asyncio.to_thread(local_files, files))
        attempts = Attempts(self._connection.retry.patient(), unlimited(timeout))
        return await self._connection.upload(session, on_progress, attempts)


class AsyncDeployments(_Service):
    """Deployments: what is running."""

    start = _unary(deployments.start_deployment)
    update = _unary(deployments.update_deployment)
    clear_cache = _unary(deployments.clear_deployment_cache)
    stop = _unary(deployments.stop_deployment)
    get = _unary(deployments.get_deployment)
    list = _paged(deployments.list_deployments)


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
        attempts = Attempts(self._connection.retry.patient(), unlimited(timeout))
        async for _ in self._connection.duplex(session, documents, attempts):
            pass
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

    def infer_stream(
        self,
        deployment_id: str,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        input_type: InputType | None = None,
        include_token_ids: bool = False,
        raise_on_error: bool = True,
        timeout: float | None = None,
    ) -> AsyncIterator[ExpandedText]:
        """Expand any number of texts over one stream, as `Client.infer_stream` does; `texts` may be asynchronous."""
        check_texts(texts)
        limit = self._connection.max_message_bytes
        session = InferSession(deployment_id, input_type, include_token_ids, limit, raise_on_error)
        attempts = Attempts(self._connection.retry.patient(), unlimited(timeout))
        return self._connection.duplex(session, texts, attempts)

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
