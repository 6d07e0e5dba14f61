"""The use case: find documents."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Protocol

from termwise.server.errors import (
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    TermwiseError,
)
from termwise.server.indices.mapping import sparse_field_of
from termwise.server.inference.base import Side
from termwise.server.search.planner import Planner, floored
from termwise.server.search.resolve import Resolved, TextKey, Tokens, resolve
from termwise.server.search.threads import in_pool, side_by_side
from termwise.server.search.view import Stop, View
from termwise.storage.types import SparseVector

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
    from concurrent.futures import Executor

    from termwise.server.context import RequestContext
    from termwise.server.indices.catalog import OpenIndex
    from termwise.server.indices.mapping import Mapping as IndexMapping
    from termwise.server.inference.base import Expander, Expansion, Expansions
    from termwise.server.search.query import SearchRequest
    from termwise.server.search.ranking import Ranked, Source

_REMEMBERED_PAIRS: Final = 1_000


class IndexOpener(Protocol):
    """Where indices are found; `indices.catalog.Indices` is one."""

    async def open(self, name: str, *, field: str = "index") -> OpenIndex:
        """Give an index that can be searched; NotFoundError names `field`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """A document found; `source` is its body as JSON."""

    id: str
    version: int
    score: float
    source: bytes
    sparse_vectors: Mapping[str, SparseVector]


@dataclass(frozen=True, slots=True, eq=False)
class QueryExpansion:
    """What became of a text: its vector before pruning, and how many of its tokens pruning left out."""

    field: str
    deployment_id: str
    vector: SparseVector
    pruned_token_count: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds."""

    total: float
    encode: float
    retrieve: float
    fetch: float


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """What a search found.

    There are `total` documents, or at least so many unless `counted`. `max_score` is None where there is none. Scores
    are off by at most `max_score_error` where they are not `exact`.
    """

    index: str
    hits: tuple[Hit, ...]
    total: int
    counted: bool
    max_score: float | None
    exact: bool
    max_score_error: float
    expansions: tuple[QueryExpansion, ...]
    timings: Timings


@dataclass(frozen=True, slots=True, eq=False)
class _Expanded:
    """A text's vector, and who made it."""

    vector: SparseVector
    truncated: bool
    model_id: str
    fingerprint: str
    aliases: Collection[str]


@dataclass(slots=True, eq=False)
class _Job:
    """One search, from plan to hits: `run` blocks, and runs in the pool."""

    pool: Executor
    request: SearchRequest
    opened: OpenIndex
    resolved: Resolved
    expanded: Mapping[TextKey, _Expanded]
    stop: Stop
    sparse_fields: frozenset[str] | None = None
    planner: Planner = field(init=False)
    source: Source = field(init=False)

    @property
    def depth(self) -> int:
        """How many hits to find; one at least, for `max_score`."""
        return max(1, self.request.offset + self.request.size)

    def run(self) -> tuple[Ranked, int, bool, tuple[Hit, ...], float]:
        """Give the best documents, how many there are, whether that is exact, the hits, and seconds of fetching."""
        side_by_side(self.pool, self._plan())
        return self._find()

    def _plan(self) -> list[Callable[[], object]]:
        """Plan the search, and give what may run side by side first."""
        self.stop.check()
        view = View(self.opened.index.reader(), self.stop)
        vectors = {key: each.vector for key, each in self.expanded.items()}
        self.planner = Planner(view, vectors, self.request.track_total_hits)
        self.source = floored(self.planner.plan(self.resolved.target), self.request.min_score)
        return self.source.openers(self.depth)

    def _find(self) -> tuple[Ranked, int, bool, tuple[Hit, ...], float]:
        view = self.planner.view
        ranked = self.source.top(self.depth)
        total, counted = ranked.total, ranked.counted
        if (
            not self.request.size
            and not counted
            and total < self.request.track_total_hits
            and (condition := self.source.condition) is not None
        ):
            # No hits wanted: it is the number that matters.
            total, counted = len(view.match(condition)), True
        fetching = perf_counter()
        page = slice(self.request.offset, self.request.offset + self.request.size)
        seq_nos, scores = ranked.seq_nos[page], ranked.scores[page]
        hits: tuple[Hit, ...] = ()
        if len(seq_nos):
            view.check()
            documents = view.reader.fetch(seq_nos, source=self.request.source, sparse=self.sparse_fields)
            hits = tuple(
                Hit(document.id, document.seq_no, score, document.source, document.sparse)
                for document, score in zip(documents, scores.tolist(), strict=True)
            )
        return ranked, total, counted, hits, perf_counter() - fetching


class Searcher:
    """Finds documents."""

    def __init__(
        self,
        indices: IndexOpener,
        expander: Expander,
        pool: Executor,
        paired: Callable[[str, str], bool] = lambda query, document: query == document,
    ) -> None:
        """Take what a search needs.

        Args:
            indices: where indices are found.
            expander: what expands texts.
            pool: the bounded pool in which storage is read; this class does not shut it down.
            paired: whether queries of one fingerprint fit documents of another; it may block. Equal ones always do.

        """
        self._indices = indices
        self._expander = expander
        self._pool = pool
        self._paired = paired
        # Fingerprints are of contents, so two that pair do so for ever.
        self._pairs: set[tuple[str, str]] = set()

    async def search(self, context: RequestContext, request: SearchRequest) -> SearchResult:
        """Find documents.

        Raises:
            NotFoundError: the index or a deployment does not exist.
            InvalidArgumentError: a field is unknown or of another kind, or a value is not of its type.
            FailedPreconditionError: a text has no started deployment, or its model does not fit the vectors.
            ResourceExhaustedError: a deployment's queue is full.
            DeadlineExceededError: the deadline passed first.

        """
        started = perf_counter()
        opened = await self._indices.open(request.index, field="indices[0]")
        sparse_fields = _sparse_fields(request.sparse_vectors, opened.mapping)
        resolved = resolve(request.retriever, opened.mapping)
        encoding = perf_counter()
        expanded: dict[TextKey, _Expanded] = {}
        if resolved.expansions:
            expanded = await self._expand(context, resolved)
            for node in resolved.expansions:
                await self._check_model(node, expanded, opened)
        retrieving = perf_counter()
        job = _Job(self._pool, request, opened, resolved, expanded, Stop(context), sparse_fields)
        ranked, total, counted, hits, fetch = await self._run(job)
        ended = perf_counter()
        return SearchResult(
            index=request.index,
            hits=hits,
            total=total,
            counted=counted,
            max_score=float(ranked.scores[0]) if len(ranked.scores) else None,
            exact=ranked.exact,
            max_score_error=ranked.max_error,
            expansions=_report(resolved, expanded, job.planner.pruned),
            timings=Timings(
                total=ended - started,
                encode=retrieving - encoding,
                retrieve=ended - retrieving - fetch,
                fetch=fetch,
            ),
        )

    async def _run(self, job: _Job) -> tuple[Ranked, int, bool, tuple[Hit, ...], float]:
        """Run a job in the pool; a caller that goes stops it at its next stage."""
        try:
            return await in_pool(self._pool, job.run)
        except BaseException:
            job.stop.leave()
            raise

    async def _expand(self, context: RequestContext, resolved: Resolved) -> dict[TextKey, _Expanded]:
        """Expand every text once, in one call a deployment."""
        texts: dict[str, dict[str, None]] = {}
        for node in resolved.expansions:
            key = _key(node)
            texts.setdefault(key.deployment_id, {})[key.text] = None
        calls = [self._expand_texts(context, resolved, deployment, list(each)) for deployment, each in texts.items()]
        answers = [await calls[0]] if len(calls) == 1 else await _gathered(calls)
        return {
            TextKey(deployment, text): _Expanded(
                _vector(expansion), expansion.truncated, answer.model_id, answer.fingerprint, answer.aliases
            )
            for (deployment, each), answer in zip(texts.items(), answers, strict=True)
            for text, expansion in zip(each, answer.expansions, strict=True)
        }

    async def _expand_texts(
        self, context: RequestContext, resolved: Resolved, deployment: str, texts: list[str]
    ) -> Expansions:
        """Expand texts by one deployment; its errors name the fields of the search."""
        try:
            return await self._expander.expand(context, deployment, texts, Side.QUERY)
        except TermwiseError as error:
            nodes = [node for node in resolved.expansions if _key(node).deployment_id == deployment]
            raise error.in_terms_of(error.sentence, _violations(error, nodes, alone=len(texts) == 1)) from error

    async def _check_model(self, node: Tokens, expanded: Mapping[TextKey, _Expanded], opened: OpenIndex) -> None:
        """Refuse a text whose model does not fit the vectors in its field."""
        key = _key(node)
        query = expanded[key]
        bound = opened.fingerprints.get(node.field, "")
        if bound:
            pair = (query.fingerprint, bound)
            if query.fingerprint == bound or pair in self._pairs:
                return
            if await asyncio.to_thread(self._paired, *pair):
                if len(self._pairs) < _REMEMBERED_PAIRS:
                    self._pairs.add(pair)
                return
            raise FailedPreconditionError(
                f'Field "{node.field}" holds vectors of model {bound}, and deployment "{key.deployment_id}" runs '
                f"{query.fingerprint}; search with a deployment of the model that made the vectors.",
                reason="MODEL_MISMATCH",
                metadata={
                    "field": node.field,
                    "deployment": key.deployment_id,
                    "field_fingerprint": bound,
                    "query_fingerprint": query.fingerprint,
                },
            )
        expected = opened.mapping.fields[node.field].model_id
        if expected and query.model_id and expected != query.model_id and expected not in query.aliases:
            raise FailedPreconditionError(
                f'Field "{node.field}" is for vectors of model "{expected}", and deployment "{key.deployment_id}" runs '
                f'"{query.model_id}"; search with a deployment of the field\'s model.',
                reason="MODEL_MISMATCH",
                metadata={"field": node.field, "deployment": key.deployment_id, "model": expected},
            )


async def _gathered(calls: Sequence[Coroutine[Any, Any, Expansions]]) -> list[Expansions]:
    """Await calls side by side; where one fails, the others end."""
    running = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*running)
    finally:
        for each in running:
            each.cancel()


def _key(node: Tokens) -> TextKey:
    """Give the text of a node that has one."""
    if not isinstance(node.vector, TextKey):
        msg = "the node's vector was given by the caller"
        raise TypeError(msg)
    return node.vector


def _violations(error: TermwiseError, nodes: Sequence[Tokens], *, alone: bool) -> list[FieldViolation]:
    """Say which fields of a search an error of their deployment is about. `alone`: the nodes have one text."""
    paths: list[str] = []
    if isinstance(error, NotFoundError | FailedPreconditionError):
        paths = [node.deployment_at for node in nodes]
    elif isinstance(error, InvalidArgumentError) and alone:  # of several texts, it does not say which
        paths = [f"{node.at}.text" for node in nodes]
    description = error.violations[0].description if error.violations else error.message
    return [FieldViolation(path, description) for path in dict.fromkeys(paths)]


def _vector(expansion: Expansion) -> SparseVector:
    """Give an expansion as storage takes it; it is sorted and valid already."""
    weights = expansion.weights.view()
    weights.flags.writeable = False
    return SparseVector(tuple(expansion.tokens), weights)


def _report(
    resolved: Resolved, expanded: Mapping[TextKey, _Expanded], pruned: Mapping[Tokens, int]
) -> tuple[QueryExpansion, ...]:
    """Tell what became of each text, once for each field and pruning."""
    told: dict[object, QueryExpansion] = {}
    for node in resolved.expansions:
        key = _key(node)
        one = expanded[key]
        told.setdefault(
            (node.field, key, node.pruning),
            QueryExpansion(node.field, key.deployment_id, one.vector, pruned.get(node, 0), one.truncated),
        )
    return tuple(told.values())


def _sparse_fields(names: tuple[str, ...], mapping: IndexMapping) -> frozenset[str] | None:
    """Check the names of sparse vector fields to give; None: all of them."""
    for place, name in enumerate(names):
        if name != "*":
            sparse_field_of(mapping, name, f"include_sparse_vectors[{place}]")
    return None if "*" in names else frozenset(names)
