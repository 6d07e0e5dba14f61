"""Calls of the Search service."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from termwise.client.calls import Unary
from termwise.client.messages import seconds, vector_from
from termwise.client.parsing import invalid, parse
from termwise.client.types import Hit, MessageLike, QueryExpansion, SearchResult, SearchTimings
from termwise.v1 import document_pb2
from termwise.v1 import search_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable


def search(  # noqa: PLR0913 - one keyword a setting of the request
    index: str,
    text: str | None = None,
    *,
    query: MessageLike | None = None,
    retriever: MessageLike | None = None,
    fields: Iterable[str] = (),
    size: int | None = None,
    offset: int = 0,
    min_score: float | None = None,
    source: bool = True,
    source_includes: Iterable[str] = (),
    source_excludes: Iterable[str] = (),
    include_sparse_vectors: Iterable[str] = (),
    track_total_hits: int | None = None,
    timeout: float | None = None,
) -> Unary[SearchResult]:
    """Search an index: by `text`, by a `query` or by a `retriever`; by none of them for all documents.

    `text` alone is a hybrid search: every text field by BM25 and every sparse vector field by expansion, fused.

    Args:
        index: The index.
        text: What to look for, in words.
        query: A Query, such as `{"match": {"field": "title", "text": "salmon"}}`.
        retriever: A Retriever, such as `{"rrf": {"text": "salmon", "fields": ["title", "text_expansion"]}}`.
        fields: With `text`: the fields to search, "field^2" for a weight; empty: all of the index.
        size: Most hits; by default 10.
        offset: Hits to leave out at the start.
        min_score: Drop hits with a lower score.
        source: Whether hits carry their body.
        source_includes: Field paths of the body to keep, `*` for any characters; empty: all.
        source_excludes: Field paths to drop, of those kept.
        include_sparse_vectors: Sparse vector fields to give with each hit; "*": all.
        track_total_hits: How far hits are counted; by default 10,000.
        timeout: Seconds; by default the client's.
    """
    if sum(each is not None for each in (text, query, retriever)) > 1:
        raise invalid("query", "give one of text, query and retriever")
    request = pb.SearchRequest(
        indices=[index],
        size=size,
        offset=offset,
        min_score=min_score,
        source_format=document_pb2.SOURCE_FORMAT_JSON if source else document_pb2.SOURCE_FORMAT_NONE,
        include_sparse_vectors=_names(include_sparse_vectors, "include_sparse_vectors"),
        track_total_hits=track_total_hits,
    )
    includes, excludes = _names(source_includes, "source_includes"), _names(source_excludes, "source_excludes")
    if includes or excludes:
        request.source_filter.CopyFrom(pb.SourceFilter(includes=includes, excludes=excludes))
    names = _names(fields, "fields")
    if names and text is None:
        raise invalid("fields", "goes with text; a query or a retriever names its own fields")
    if text is not None:
        request.retriever.linear.CopyFrom(pb.LinearRetriever(text=text, fields=names))
    elif query is not None:
        request.query.CopyFrom(parse(query, pb.Query, "query"))
    elif retriever is not None:
        request.retriever.CopyFrom(parse(retriever, pb.Retriever, "retriever"))
    return Unary("Search/Search", request, read_search, idempotent=True, timeout=timeout)


def read_search(answer: pb.SearchResponse) -> SearchResult:
    """Read the answer of Search."""
    return SearchResult(
        hits=tuple(_hit(hit) for hit in answer.hits),
        total=answer.total.value,
        total_is_exact=answer.total.relation != pb.TotalHits.RELATION_AT_LEAST,
        max_score=answer.max_score if answer.HasField("max_score") else None,
        is_exact=answer.scoring.exactness == pb.Scoring.EXACTNESS_EXACT,
        max_score_error=answer.scoring.max_score_error,
        expansions=tuple(
            QueryExpansion(
                field=each.field,
                deployment_id=each.deployment_id,
                vector=vector_from(each.vector),
                query_token_count=each.query_token_count,
                pruned_token_count=each.pruned_token_count,
                truncated=each.truncated,
            )
            for each in answer.expansions
        ),
        timings=SearchTimings(
            total=seconds(answer.timings.total),
            encode=seconds(answer.timings.encode),
            retrieve=seconds(answer.timings.retrieve),
            fetch=seconds(answer.timings.fetch),
        ),
    )


def _hit(hit: pb.Hit) -> Hit:
    return Hit(
        id=hit.id,
        score=hit.score,
        source=json.loads(hit.source_json or "{}"),
        index=hit.index,
        version=hit.version,
        sparse_vectors={field: vector_from(vector) for field, vector in hit.sparse_vectors.items()},
    )


def _names(names: Iterable[str], path: str) -> list[str]:
    if isinstance(names, str):
        raise invalid(path, f'expected a list of field names, got the string "{names}"')
    return list(names)
