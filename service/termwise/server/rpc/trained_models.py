"""TrainedModels over gRPC: convert, call, modelling."""

# ruff: noqa: N802 - the methods bear the names of the RPCs

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from termwise.server.context import authorize
from termwise.server.errors import TermwiseError
from termwise.server.models.streams import TextStreams
from termwise.server.rpc import paging
from termwise.server.rpc.context import request_context
from termwise.server.rpc.convert import deployments as deploying
from termwise.server.rpc.convert import inference as inferring
from termwise.server.rpc.convert import models as modelling
from termwise.server.rpc.convert.statistics import model_statistics
from termwise.server.rpc.convert.values import several
from termwise.v1 import trained_models_pb2 as pb
from termwise.v1 import trained_models_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc.aio

    from termwise.server.models.catalog import ModelCatalog
    from termwise.server.models.deployments import Deployments
    from termwise.server.models.stats import Statistics

    Context = grpc.aio.ServicerContext[Any, Any]


Message = TypeVar("Message")


class TrainedModelsServicer(trained_models_pb2_grpc.TrainedModelsServicer):
    """Models and deployments. Errors of the domain are raised; an interceptor makes them statuses."""

    def __init__(self, catalog: ModelCatalog, deployments: Deployments, statistics: Statistics) -> None:
        """Serve these."""
        self._catalog = catalog
        self._deployments = deployments
        self._statistics = statistics
        self._streams = TextStreams(deployments)

    async def PutTrainedModel(
        self, request: pb.PutTrainedModelRequest, grpc_context: Context
    ) -> pb.PutTrainedModelResponse:
        """Store a model and start its download."""
        context = request_context(grpc_context)
        authorize(context, "models.write", f"model/{request.model_id}")
        model = await self._catalog.put(context, modelling.new_model(request), modelling.model_wait(request))
        return pb.PutTrainedModelResponse(trained_model=modelling.trained_model(model))

    async def GetTrainedModel(
        self, request: pb.GetTrainedModelRequest, grpc_context: Context
    ) -> pb.GetTrainedModelResponse:
        """Give one model."""
        authorize(request_context(grpc_context), "models.read", f"model/{request.model_id}")
        model = await self._catalog.get(modelling.model_id(request))
        return pb.GetTrainedModelResponse(trained_model=modelling.trained_model(model))

    async def ListTrainedModels(
        self, request: pb.ListTrainedModelsRequest, grpc_context: Context
    ) -> pb.ListTrainedModelsResponse:
        """Give a page of models."""
        authorize(request_context(grpc_context), "models.read", "model/*")
        size = paging.page_size(request.page_size)
        after = paging.after_token(request.page_token, "ListTrainedModels")
        names, tags = several(request.model_ids, "model_ids"), several(request.tags, "tags")
        found = await self._catalog.list(after, size + 1, patterns=names, tags=tags)
        models, token = paging.page(found, size, "ListTrainedModels", lambda model: model.record.model_id)
        return pb.ListTrainedModelsResponse(
            trained_models=[modelling.trained_model(model) for model in models], next_page_token=token
        )

    async def DeleteTrainedModel(
        self, request: pb.DeleteTrainedModelRequest, grpc_context: Context
    ) -> pb.DeleteTrainedModelResponse:
        """Delete a model."""
        context = request_context(grpc_context)
        authorize(context, "models.write", f"model/{request.model_id}")
        await self._deployments.delete_model(context, modelling.model_id(request), force=request.force)
        return pb.DeleteTrainedModelResponse()

    async def DownloadTrainedModel(
        self, request: pb.DownloadTrainedModelRequest, grpc_context: Context
    ) -> AsyncIterator[pb.DownloadTrainedModelResponse]:
        """Start or join a download, and give its progress."""
        context = request_context(grpc_context)
        authorize(context, "models.write", f"model/{request.model_id}")
        async for progress in self._catalog.download(context, modelling.model_id(request)):
            yield pb.DownloadTrainedModelResponse(progress=modelling.progress(progress))

    async def CancelDownload(
        self, request: pb.CancelDownloadRequest, grpc_context: Context
    ) -> pb.CancelDownloadResponse:
        """End a download."""
        authorize(request_context(grpc_context), "models.write", f"model/{request.model_id}")
        model = await self._catalog.cancel(modelling.model_id(request))
        return pb.CancelDownloadResponse(trained_model=modelling.trained_model(model))

    async def UploadTrainedModel(
        self, request_iterator: AsyncIterator[pb.UploadTrainedModelRequest], grpc_context: Context
    ) -> pb.UploadTrainedModelResponse:
        """Take a model's files."""
        first = await anext(request_iterator, pb.UploadTrainedModelRequest())
        authorize(request_context(grpc_context), "models.write", f"model/{first.header.model_id}")
        model = await self._catalog.upload(modelling.upload_parts(_chain(first, request_iterator)))
        return pb.UploadTrainedModelResponse(trained_model=modelling.trained_model(model))

    async def PutModelAlias(self, request: pb.PutModelAliasRequest, grpc_context: Context) -> pb.PutModelAliasResponse:
        """Give a model another name."""
        authorize(request_context(grpc_context), "models.write", f"model/{request.model_id}")
        model = await self._catalog.put_alias(
            modelling.alias(request), modelling.model_id(request), reassign=request.reassign
        )
        return pb.PutModelAliasResponse(trained_model=modelling.trained_model(model))

    async def DeleteModelAlias(
        self, request: pb.DeleteModelAliasRequest, grpc_context: Context
    ) -> pb.DeleteModelAliasResponse:
        """Take a model's other name away."""
        authorize(request_context(grpc_context), "models.write", f"model/{request.model_id or request.alias}")
        await self._catalog.delete_alias(modelling.alias(request), request.model_id)
        return pb.DeleteModelAliasResponse()

    async def StartDeployment(
        self, request: pb.StartDeploymentRequest, grpc_context: Context
    ) -> pb.StartDeploymentResponse:
        """Start a deployment."""
        context = request_context(grpc_context)
        authorize(context, "deployments.write", f"deployment/{request.deployment_id or request.model_id}")
        new, wait = deploying.new_deployment(request), deploying.deployment_wait(request)
        if request.validate_only:
            deployment = await self._deployments.estimate(new)
        else:
            deployment = await self._deployments.start(context, new, wait)
        return pb.StartDeploymentResponse(deployment=deploying.deployment(deployment))

    async def UpdateDeployment(
        self, request: pb.UpdateDeploymentRequest, grpc_context: Context
    ) -> pb.UpdateDeploymentResponse:
        """Change a deployment."""
        authorize(request_context(grpc_context), "deployments.write", f"deployment/{request.deployment_id}")
        deployment = await self._deployments.update(
            deploying.deployment_id(request), deploying.deployment_update(request)
        )
        return pb.UpdateDeploymentResponse(deployment=deploying.deployment(deployment))

    async def StopDeployment(
        self, request: pb.StopDeploymentRequest, grpc_context: Context
    ) -> pb.StopDeploymentResponse:
        """Stop a deployment."""
        context = request_context(grpc_context)
        authorize(context, "deployments.write", f"deployment/{request.deployment_id}")
        await self._deployments.stop(context, deploying.deployment_id(request), force=request.force)
        return pb.StopDeploymentResponse()

    async def GetDeployment(self, request: pb.GetDeploymentRequest, grpc_context: Context) -> pb.GetDeploymentResponse:
        """Give one deployment."""
        authorize(request_context(grpc_context), "deployments.read", f"deployment/{request.deployment_id}")
        deployment = self._deployments.get(deploying.deployment_id(request))
        return pb.GetDeploymentResponse(deployment=deploying.deployment(deployment))

    async def ListDeployments(
        self, request: pb.ListDeploymentsRequest, grpc_context: Context
    ) -> pb.ListDeploymentsResponse:
        """Give a page of deployments."""
        authorize(request_context(grpc_context), "deployments.read", "deployment/*")
        size = paging.page_size(request.page_size)
        after = paging.after_token(request.page_token, "ListDeployments")
        found = self._deployments.list(after, size + 1)
        deployments, token = paging.page(found, size, "ListDeployments", lambda item: item.record.deployment_id)
        return pb.ListDeploymentsResponse(
            deployments=[deploying.deployment(deployment) for deployment in deployments], next_page_token=token
        )

    async def ClearDeploymentCache(
        self, request: pb.ClearDeploymentCacheRequest, grpc_context: Context
    ) -> pb.ClearDeploymentCacheResponse:
        """Forget what a deployment keeps."""
        authorize(request_context(grpc_context), "deployments.write", f"deployment/{request.deployment_id}")
        self._deployments.clear_cache(deploying.deployment_id(request))
        return pb.ClearDeploymentCacheResponse()

    async def GetTrainedModelStats(
        self, request: pb.GetTrainedModelStatsRequest, grpc_context: Context
    ) -> pb.GetTrainedModelStatsResponse:
        """Give a page of figures."""
        authorize(request_context(grpc_context), "models.read", "model/*")
        size = paging.page_size(request.page_size)
        after = paging.after_token(request.page_token, "GetTrainedModelStats")
        names = several(request.model_ids, "model_ids")
        found = await self._statistics.gather(names, after, size + 1)
        models, token = paging.page(found, size, "GetTrainedModelStats", lambda each: each.model.record.model_id)
        return pb.GetTrainedModelStatsResponse(
            trained_model_stats=[model_statistics(each) for each in models], next_page_token=token
        )

    async def Infer(self, request: pb.InferRequest, grpc_context: Context) -> pb.InferResponse:
        """Expand texts."""
        context = request_context(grpc_context)
        authorize(context, "deployments.infer", f"deployment/{request.deployment_id}")
        side = inferring.side(request)
        expansions = await self._deployments.expand(
            context, deploying.deployment_id(request), list(request.texts), side
        )
        return inferring.infer_response(expansions, token_ids=request.include_token_ids)

    async def StreamInfer(
        self, request_iterator: AsyncIterator[pb.StreamInferRequest], grpc_context: Context
    ) -> AsyncIterator[pb.StreamInferResponse]:
        """Expand a stream of texts."""
        context = request_context(grpc_context)
        first = await anext(request_iterator, pb.StreamInferRequest())
        authorize(context, "deployments.infer", f"deployment/{first.options.deployment_id}")
        options, messages = inferring.stream_options(first), inferring.stream_texts(request_iterator)
        try:
            async with aclosing(self._streams.run(context, options, messages)) as answers:
                async for answer in answers:
                    yield inferring.stream_answer(answer, token_ids=first.options.include_token_ids)
        except TermwiseError as error:
            raise inferring.in_stream(error) from error


async def _chain(first: Message, rest: AsyncIterator[Message]) -> AsyncIterator[Message]:
    yield first
    async for each in rest:
        yield each
