"""What an encoder is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from termwise.server.context import RequestContext


NO_TURN: Final[AbstractContextManager[None]] = nullcontext()
"""For whoever has a model to themselves."""


class Side(Enum):
    """Which side of an encoder reads a text; the two may differ."""

    # Sides are in the key of every text that is looked up, and Enum's own hash is a function in Python.
    __hash__ = object.__hash__

    DOCUMENT = "document"
    QUERY = "query"


@dataclass(frozen=True, slots=True)
class ExpansionConfig:
    """How a model's texts become weighted tokens; the fields are those of `TextExpansionConfig` in the proto.

    `max_tokens` 0 means the model's own maximum, at most 512. Term limits 0 mean none. `truncate` False refuses long
    texts.
    """

    max_tokens: int = 0
    truncate: bool = True
    document_prefix: str = ""
    query_prefix: str = ""
    document_max_terms: int = 0
    query_max_terms: int = 0
    min_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text as vocabulary ids, special ones included. `truncated`: its end was cut off."""

    ids: Sequence[int]
    truncated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Expansion:
    """What became of a text.

    `token_ids` (int64) and `weights` (float32, positive) have equal length and are sorted by weight, heaviest first,
    ties by token; `tokens` are their strings. They are empty for a text without content.
    """

    tokens: tuple[str, ...]
    token_ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    token_count: int
    truncated: bool


class Encoder(Protocol):
    """A loaded sparse encoder. One worker thread calls `encode`; `tokenize` may be called from any thread.

    `encode(tokenize(texts, side), side)` is what a caller wants; the batcher stands between the two, since it makes
    batches by length.
    """

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens in the vocabulary."""
        ...

    @property
    def precision(self) -> str:
        """Arithmetic in use: "float32", "bfloat16" or "int8"."""
        ...

    @property
    def device(self) -> str:
        """Where it computes: "cpu" or "cuda"."""
        ...

    @property
    def engine(self) -> str:
        """What computes.

        "native" (the kernel), "torch" (packed), "transformers" (plain), "torchscript" (the archive itself), or "static"
        where both sides look weights up.
        """
        ...

    @property
    def sides_differ(self) -> bool:
        """Whether documents and queries are encoded differently (weights, prefixes or term limits)."""
        ...

    def fingerprint(self, side: Side) -> str:
        """Identity of a side: `sha256:` and hex.

        It covers weights, tokenizer, pooling, max_tokens, prefix and term limits.
        """
        ...

    def tokenize(self, texts: Sequence[str], side: Side) -> list[TokenizedText]:
        """Cut texts into vocabulary ids, prefix and special tokens included.

        Raises:
            InvalidArgumentError: a text is longer than `max_tokens` and the configuration refuses to truncate.

        """
        ...

    def encode(
        self, texts: Sequence[TokenizedText], side: Side, turn: AbstractContextManager[None] = NO_TURN
    ) -> list[Expansion]:
        """Run the model. Memory is bounded by the token budget of a batch, whatever `texts` holds.

        `turn` is entered while the model computes, once or more often, and not while its answers are read out: that may
        go on beside another thread's turn.
        """
        ...


@dataclass(frozen=True, slots=True)
class InferenceTimings:
    """Where the time of a call went, in seconds; each is the longest over its texts."""

    queue: float = 0.0
    tokenize: float = 0.0
    inference: float = 0.0


@dataclass(frozen=True, slots=True)
class Expansions:
    """What a deployment answers: one expansion a text, in order, who made them, and where the time went.

    `aliases` are other names of the model.
    """

    expansions: Sequence[Expansion]
    model_id: str
    fingerprint: str
    timings: InferenceTimings
    aliases: Collection[str] = ()


class Expander(Protocol):
    """What expands texts for ingest and search: the deployments, or a fake in tests."""

    async def expand(
        self,
        context: RequestContext,
        deployment_id: str,
        texts: Sequence[str],
        side: Side | None,
        *,
        wait: bool = False,
    ) -> Expansions:
        """Expand texts by a deployment.

        `wait` makes a full queue slow the caller down (streams, bulk; any number of texts); without it the call fails
        at once. `side` None is allowed only where both sides are the same. Cancelling the awaiting task, or the
        context's deadline, keeps texts that still wait away from the model.

        Raises:
            NotFoundError: there is no such deployment.
            FailedPreconditionError: it is not STARTED.
            ResourceExhaustedError: its queue is full and `wait` is False; carries `retry_after`.
            InvalidArgumentError: more texts than its queue ever holds (not with `wait`), no text, `side` needed, or a
                text that is too long for a model that refuses to truncate.
            DeadlineExceededError: the context's deadline passed first.
            UnavailableError: the deployment stopped meanwhile.

        """
        ...
