"""The Search service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from termwise.server.context import authorize
from termwise.server.rpc.context import request_context
from termwise.server.rpc.convert.search import search_request, search_response
from termwise.v1 import search_pb2_grpc

if TYPE_CHECKING:
    import grpc.aio

    from termwise.server.search.searcher import Searcher, SearchResult
    from termwise.v1 import search_pb2

_LARGE: Final = 64 * 1024
_MANY_HITS: Final = 50
"""Converting more bytes or hits than this would keep the event loop from other calls for milliseconds."""
_WEIGHT_BYTES: Final = 24
"""What a weight and its token take, about."""


class SearchServicer(search_pb2_grpc.SearchServicer):
    """Convert, call, convert."""

    def __init__(self, searcher: Searcher) -> None:
        """Serve `searcher`."""
        self._searcher = searcher

    async def Search(  # noqa: N802 - the RPC's name
        self, request: search_pb2.SearchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> search_pb2.SearchResponse:
        """Find documents."""
        caller = request_context(context)
        authorize(caller, "search.search", f"index/{request.indices[0] if request.indices else ''}")
        large = request.ByteSize() > _LARGE
        wanted = await asyncio.to_thread(search_request, request) if large else search_request(request)
        result = await self._searcher.search(caller, wanted)
        if _is_large(request, result):
            return await asyncio.to_thread(search_response, request, result)
        return search_response(request, result)


def _is_large(request: search_pb2.SearchRequest, result: SearchResult) -> bool:
    """Whether an answer is made in a thread; each pattern of a source filter reads the bodies once more."""
    if len(result.hits) > _MANY_HITS:
        return True
    readings = 1 + len(request.source_filter.includes) + len(request.source_filter.excludes)
    bodies = sum(len(hit.source) for hit in result.hits)
    weights = sum(len(vector) for hit in result.hits for vector in hit.sparse_vectors.values())
    return readings * bodies + _WEIGHT_BYTES * weights > _LARGE
