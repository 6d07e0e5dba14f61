"""What goes into and comes out of the client. Resources (models, deployments, indices ...) are plain messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

if TYPE_CHECKING:
    import grpc

    from termwise.client.errors import TermwiseError

JsonObject = Mapping[str, Any]
"""A JSON object as Python has it."""


@dataclass(frozen=True, slots=True)
class SparseVector:
    """Weighted tokens. In answers the heaviest come first."""

    tokens: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    @classmethod
    def of(cls, vector: VectorLike) -> SparseVector:
        """Give `vector` as one, made of a token-to-weight mapping where it is that."""
        return vector if isinstance(vector, SparseVector) else cls(tuple(vector), tuple(vector.values()))

    def as_dict(self) -> dict[str, float]:
        """Give weights by token."""
        return dict(zip(self.tokens, self.weights, strict=True))

    def top(self, count: int) -> SparseVector:
        """Give the `count` heaviest tokens, ties by token."""
        ranked = sorted(zip(self.tokens, self.weights, strict=True), key=lambda pair: (-pair[1], pair[0]))[:count]
        return SparseVector(tuple(token for token, _ in ranked), tuple(weight for _, weight in ranked))

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.tokens)


VectorLike = SparseVector | Mapping[str, float]
"""A sparse vector, or its weights by token."""


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON object with an identifier.

    Attributes:
        source: The JSON object; a string is JSON text, sent and stored as it is.
        id: The identifier; empty in a write: the server makes one up.
        sparse_vectors: Sparse vectors by field, beside those that a pipeline makes.
        version: The version it was read at; not looked at in a write.
    """

    source: JsonObject | str = field(default_factory=dict)
    id: str = ""
    sparse_vectors: Mapping[str, VectorLike] = field(default_factory=dict)
    version: int = 0


@dataclass(frozen=True, slots=True)
class Put:
    """Writes a document, there or not. `if_version`: only over that version; 0: only where there is none."""

    document: Document | JsonObject
    pipeline: str = ""
    if_version: int | None = None


@dataclass(frozen=True, slots=True)
class Create:
    """Writes a document that must not exist."""

    document: Document | JsonObject
    pipeline: str = ""


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes a document. `if_version`: only that version."""

    id: str
    if_version: int | None = None


Operation = Put | Create | Delete
"""One write among many."""


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of a write.

    Attributes:
        id: The document's id.
        version: Its new version; 0 where the write failed.
        result: "created", "updated" or "deleted"; empty where the write failed.
        error: Why it failed; None where it worked.
    """

    id: str
    version: int
    result: str
    error: TermwiseError | None = None

    @property
    def ok(self) -> bool:
        """Whether it worked."""
        return self.error is None


@dataclass(frozen=True, slots=True)
class Hit:
    """A document found.

    Attributes:
        id: The document's id.
        score: Its score.
        source: Its body, or the parts asked for.
        index: The index.
        version: Its version.
        sparse_vectors: The sparse vectors asked for, by field.
    """

    id: str
    score: float
    source: dict[str, Any]
    index: str
    version: int
    sparse_vectors: dict[str, SparseVector]


@dataclass(frozen=True, slots=True)
class QueryExpansion:
    """What became of a query text: the field it searched, the deployment that expanded it, and the expansion."""

    field: str
    deployment_id: str
    vector: SparseVector
    query_token_count: int
    pruned_token_count: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class SearchTimings:
    """Where the time of a search went inside the server, in seconds."""

    total: float
    encode: float
    retrieve: float
    fetch: float


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Hits, best first. Iterating gives the hits.

    Attributes:
        hits: The hits.
        total: How many documents meet the query.
        total_is_exact: Whether `total` is the number; otherwise there are at least so many.
        max_score: The best score; None without hits.
        is_exact: Whether the hits are the best ones and the scores exact.
        max_score_error: The largest error of a score; 0 where exact.
        expansions: The texts that were expanded.
        timings: Where the time went.
    """

    hits: tuple[Hit, ...]
    total: int
    total_is_exact: bool
    max_score: float | None
    is_exact: bool
    max_score_error: float
    expansions: tuple[QueryExpansion, ...]
    timings: SearchTimings

    def __iter__(self) -> Iterator[Hit]:
        """Go through the hits, best first."""
        return iter(self.hits)

    def __len__(self) -> int:
        """Count the hits."""
        return len(self.hits)


@dataclass(frozen=True, slots=True)
class Expansion:
    """What became of one text.

    Attributes:
        vector: Its weighted tokens.
        token_count: Tokens that the model read, special ones included.
        truncated: Whether the end of the text was cut off.
        token_ids: Vocabulary ids of `vector.tokens`, where asked for.
    """

    vector: SparseVector
    token_count: int
    truncated: bool
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ExpandedText:
    """What became of one text of a stream.

    Attributes:
        position: Its place in the stream, from 0.
        text: The text.
        expansion: Its expansion; None where there is an error.
        error: Why it could not be expanded; None where it was.
    """

    position: int
    text: str
    expansion: Expansion | None = None
    error: TermwiseError | None = None

    @property
    def vector(self) -> SparseVector:
        """Its weighted tokens. Raises the text's error where there are none."""
        if self.expansion is None:
            raise self.error or ValueError("there is no expansion")
        return self.expansion.vector


@dataclass(frozen=True, slots=True)
class InferenceTimings:
    """Where the time of an inference went inside the server, in seconds."""

    queue: float
    tokenize: float
    inference: float


@dataclass(frozen=True, slots=True)
class Inference:
    """One expansion a text, in order, with the model that made them."""

    results: tuple[Expansion, ...]
    model_id: str
    fingerprint: str
    timings: InferenceTimings


@dataclass(frozen=True, slots=True)
class ProcessorError:
    """Why a processor failed on a document."""

    code: grpc.StatusCode
    message: str
    processor_type: str
    processor_tag: str


@dataclass(frozen=True, slots=True)
class SimulationStep:
    """One step of a pipeline on one document.

    Attributes:
        processor_type: Its kind, such as "inference".
        tag: Its tag.
        status: "success", "error_ignored", "error" or "skipped".
        document: The document afterwards; None where the step failed.
        error: Why it failed.
    """

    processor_type: str
    tag: str
    status: str
    document: Document | None
    error: ProcessorError | None


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a pipeline makes of one document: the document or the error, and each step where asked for."""

    document: Document | None
    error: ProcessorError | None
    steps: tuple[SimulationStep, ...]


MessageLike = Message | JsonObject
"""A message, or the same in proto3 JSON form as a plain dict."""
