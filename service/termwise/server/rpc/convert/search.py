"""Search requests from protobuf to values, and results back. Every refusal names the path of what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from termwise.server.errors import invalid_field
from termwise.server.identifiers import check_identifier
from termwise.server.indices.source_filter import MAX_PATTERNS, SourceFilter
from termwise.server.rpc.convert.document import check_source_format, fill_body, fill_vectors, sparse_vector_to_proto
from termwise.server.rpc.convert.queries import finite
from termwise.server.rpc.convert.retrievers import RetrieverReader
from termwise.server.search import query as q
from termwise.v1 import document_pb2, search_pb2

if TYPE_CHECKING:
    from termwise.server.search.searcher import SearchResult


def search_request(message: search_pb2.SearchRequest) -> q.SearchRequest:
    """Read a SearchRequest.

    Raises:
        InvalidArgumentError: something in it cannot work, whatever the index holds.

    """
    if len(message.indices) != 1:
        raise invalid_field("indices", f"It names {len(message.indices)} indices; name exactly one.")
    index = check_identifier(message.indices[0], "indices[0]")
    size = message.size if message.HasField("size") else q.DEFAULT_SIZE
    _check_page(size, message.offset)
    track = message.track_total_hits if message.HasField("track_total_hits") else q.DEFAULT_TRACK_TOTAL_HITS
    if track < 0:
        raise invalid_field("track_total_hits", f"It is {track}; give 0 or more.")
    reader = RetrieverReader(needed=message.offset + size)
    target = message.WhichOneof("target")
    retriever: q.Retriever
    if target == "retriever":
        retriever = reader.retriever(message.retriever, "retriever", 1)
    elif target == "query":
        retriever = q.Standard(reader.query(message.query, "query", 1), at="query")
    else:
        retriever = q.Standard(q.MatchAll())
    check_source_format(message.source_format)
    _check_filter(message.source_filter)
    return q.SearchRequest(
        index=index,
        retriever=retriever,
        size=size,
        offset=message.offset,
        min_score=finite(message, "min_score", "min_score"),
        sparse_vectors=tuple(message.include_sparse_vectors),
        source=message.source_format != document_pb2.SOURCE_FORMAT_NONE,
        track_total_hits=track,
    )


def _check_page(size: int, offset: int) -> None:
    """Refuse a page that is negative or too deep."""
    for name, number in (("size", size), ("offset", offset)):
        if number < 0:
            raise invalid_field(name, f"It is {number}; give 0 or more.")
        if number > q.MAX_HITS:
            raise invalid_field(name, f"It is {number:,}; offset and size together are at most {q.MAX_HITS:,}.")
    if offset + size > q.MAX_HITS:
        raise invalid_field(
            "offset", f"Offset and size are {offset + size:,} together; they are at most {q.MAX_HITS:,}."
        )


def _check_filter(message: search_pb2.SourceFilter) -> None:
    """Refuse more patterns than bodies can be read for."""
    for name, patterns in (("includes", message.includes), ("excludes", message.excludes)):
        if len(patterns) > MAX_PATTERNS:
            raise invalid_field(
                f"source_filter.{name}", f"It has {len(patterns):,} patterns; give at most {MAX_PATTERNS}."
            )


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1_000_000_000))


def search_response(message: search_pb2.SearchRequest, result: SearchResult) -> search_pb2.SearchResponse:
    """Write the answer to `message`; its source filter and format are applied here."""
    relation = search_pb2.TotalHits.RELATION_EQUAL if result.counted else search_pb2.TotalHits.RELATION_AT_LEAST
    exactness = search_pb2.Scoring.EXACTNESS_EXACT if result.exact else search_pb2.Scoring.EXACTNESS_BOUNDED
    timings = result.timings
    response = search_pb2.SearchResponse(
        total=search_pb2.TotalHits(value=result.total, relation=relation),
        max_score=result.max_score,
        scoring=search_pb2.Scoring(exactness=exactness, max_score_error=result.max_score_error),
        expansions=[
            search_pb2.QueryExpansion(
                field=each.field,
                deployment_id=each.deployment_id,
                query_token_count=len(each.vector),
                pruned_token_count=each.pruned_token_count,
                vector=sparse_vector_to_proto(each.vector),
                truncated=each.truncated,
            )
            for each in result.expansions
        ],
        timings=search_pb2.SearchTimings(
            total=_duration(timings.total),
            encode=_duration(timings.encode),
            retrieve=_duration(timings.retrieve),
            fetch=_duration(timings.fetch),
        ),
    )
    chosen = SourceFilter(tuple(message.source_filter.includes), tuple(message.source_filter.excludes))
    for each in result.hits:
        hit = response.hits.add(index=result.index, id=each.id, version=each.version, score=each.score)
        fill_body(hit, each.source, message.source_format, chosen)
        fill_vectors(hit, each.sparse_vectors)
    return response
