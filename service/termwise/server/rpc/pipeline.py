"""The Pipeline service: convert, call, convert."""

# ruff: noqa: N802 - the methods bear the names of the RPCs

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from termwise.server.context import authorize
from termwise.server.errors import invalid_field
from termwise.server.rpc import paging
from termwise.server.rpc.context import request_context
from termwise.server.rpc.convert import pipeline as convert
from termwise.v1 import pipeline_pb2 as pb
from termwise.v1 import pipeline_pb2_grpc

if TYPE_CHECKING:
    import grpc.aio

    from termwise.server.ingest.pipelines import Pipelines

    Context = grpc.aio.ServicerContext[Any, Any]


class PipelineServicer(pipeline_pb2_grpc.PipelineServicer):
    """Ingest pipelines. Errors of the domain are raised; an interceptor makes them statuses."""

    def __init__(self, pipelines: Pipelines) -> None:
        """Serve these."""
        self._pipelines = pipelines

    async def PutPipeline(self, request: pb.PutPipelineRequest, grpc_context: Context) -> pb.PutPipelineResponse:
        """Store a pipeline."""
        authorize(request_context(grpc_context), "pipelines.write", f"pipeline/{request.pipeline_id}")
        stored = await self._pipelines.put(request.pipeline_id, convert.pipeline_from_proto(request.pipeline))
        return pb.PutPipelineResponse(pipeline_id=request.pipeline_id, pipeline=convert.pipeline_to_proto(stored))

    async def GetPipeline(self, request: pb.GetPipelineRequest, grpc_context: Context) -> pb.GetPipelineResponse:
        """Give a pipeline."""
        authorize(request_context(grpc_context), "pipelines.read", f"pipeline/{request.pipeline_id}")
        pipeline = await self._pipelines.get(request.pipeline_id)
        return pb.GetPipelineResponse(pipeline_id=request.pipeline_id, pipeline=convert.pipeline_to_proto(pipeline))

    async def ListPipelines(self, request: pb.ListPipelinesRequest, grpc_context: Context) -> pb.ListPipelinesResponse:
        """Give a page of pipelines."""
        authorize(request_context(grpc_context), "pipelines.read", "pipeline/*")
        size = paging.page_size(request.page_size)
        after = paging.after_token(request.page_token, "ListPipelines")
        found = await self._pipelines.list(after, size + 1)
        pipelines, token = paging.page(found, size, "ListPipelines", lambda entry: entry[0])
        return pb.ListPipelinesResponse(
            pipelines=[
                pb.ListPipelinesResponse.Entry(pipeline_id=id_, pipeline=convert.pipeline_to_proto(pipeline))
                for id_, pipeline in pipelines
            ],
            next_page_token=token,
        )

    async def DeletePipeline(
        self, request: pb.DeletePipelineRequest, grpc_context: Context
    ) -> pb.DeletePipelineResponse:
        """Delete a pipeline."""
        authorize(request_context(grpc_context), "pipelines.write", f"pipeline/{request.pipeline_id}")
        await self._pipelines.delete(request.pipeline_id)
        return pb.DeletePipelineResponse()

    async def SimulatePipeline(
        self, request: pb.SimulatePipelineRequest, grpc_context: Context
    ) -> pb.SimulatePipelineResponse:
        """Try a pipeline."""
        context = request_context(grpc_context)
        authorize(context, "pipelines.simulate", f"pipeline/{request.pipeline_id}")
        if bool(request.pipeline_id) == request.HasField("pipeline"):
            raise invalid_field("pipeline", "Give exactly one of pipeline_id and pipeline.")
        if request.pipeline_id:
            pipeline = await self._pipelines.get(request.pipeline_id)
        else:
            pipeline = convert.pipeline_from_proto(request.pipeline)
        documents = await asyncio.to_thread(convert.documents_from_proto, request.documents)
        drafts = await self._pipelines.simulate(context, pipeline, documents, verbose=request.verbose)
        return await asyncio.to_thread(convert.simulation_to_proto, drafts)
