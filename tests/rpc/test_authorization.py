"""Every call asks whether it may, before it touches anything: the servicers here have nothing to touch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass

from termwise.server.errors import PermissionDeniedError
from termwise.server.rpc import indices, pipeline, search, trained_models
from termwise.v1 import (
    indices_pb2,
    indices_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    trained_models_pb2,
    trained_models_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from termwise.server.context import RequestContext

NOTHING: Any = None
METHODS = [
    method
    for file in (trained_models_pb2, pipeline_pb2, indices_pb2, search_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def refuse(context: RequestContext, action: str, resource: str) -> NoReturn:
    raise PermissionDeniedError(f"{context.principal} may not {action} {resource.partition('/')[0]}.")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_whoever_may_not_is_refused(
    method: Any, serve: Callable[..., Awaitable[grpc.aio.Channel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (trained_models, pipeline, indices, search):
        monkeypatch.setattr(module, "authorize", refuse)
    add = trained_models_pb2_grpc.add_TrainedModelsServicer_to_server
    channel = await serve(
        lambda server: add(trained_models.TrainedModelsServicer(NOTHING, NOTHING, NOTHING), server),
        lambda server: pipeline_pb2_grpc.add_PipelineServicer_to_server(pipeline.PipelineServicer(NOTHING), server),
        lambda server: indices_pb2_grpc.add_IndicesServicer_to_server(
            indices.IndicesServicer(NOTHING, NOTHING, NOTHING), server
        ),
        lambda server: search_pb2_grpc.add_SearchServicer_to_server(search.SearchServicer(NOTHING), server),
    )
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    request = GetMessageClass(method.input_type)()
    call = getattr(channel, shape)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    under_way = call(iter([request]) if method.client_streaming else request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (under_way.read() if method.server_streaming else under_way)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert caught.value.details().startswith("anonymous may not ")
