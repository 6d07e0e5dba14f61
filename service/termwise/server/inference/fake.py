"""Encoders that need no model: the same words always get the same weights. For tests, and for trying the server out."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from termwise.server.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    not_found,
)
from termwise.server.inference.base import NO_TURN, Expansion, Expansions, InferenceTimings, Side, TokenizedText

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from termwise.server.context import RequestContext

_WORD = re.compile(r"\w+")


class FakeEncoder:
    """Weighs each distinct word of a text by a hash of it, in [0.5, 3.5); both sides alike, unless a prefix is given.

    Its vocabulary grows with the words that it meets. Thread-safe.
    """

    precision = "float32"
    device = "cpu"
    engine = "static"

    def __init__(
        self, *, max_tokens: int = 512, query_prefix: str = "", delay: Callable[[], object] | None = None
    ) -> None:
        """Prepare; `delay` is called before each batch, so that a test can hold a batch by an event's `wait`."""
        self._max_tokens = max_tokens
        self._query_prefix = query_prefix
        self._delay = delay
        self._lock = threading.Lock()
        self._words: list[str] = []
        self._ids: dict[str, int] = {}
        # The batches that ran, each as its texts' words, for tests to look at.
        self.batches: list[list[list[str]]] = []

    @property
    def vocabulary_size(self) -> int:
        """Words met so far."""
        return len(self._words)

    @property
    def sides_differ(self) -> bool:
        """Whether a query prefix is set."""
        return bool(self._query_prefix)

    def fingerprint(self, side: Side) -> str:
        """Hash the settings of a side."""
        prefix = self._query_prefix if side is Side.QUERY else ""
        return f"sha256:{hashlib.sha256(f'fake {self._max_tokens} {prefix}'.encode()).hexdigest()}"

    def tokenize(self, texts: Sequence[str], side: Side) -> list[TokenizedText]:
        """Cut texts into lower-case words."""
        prefix = self._query_prefix if side is Side.QUERY else ""
        tokenized = []
        for text in texts:
            words = _WORD.findall((prefix + text).lower()) if text.strip() else []
            ids = [self._id(word) for word in words[: self._max_tokens]]
            tokenized.append(TokenizedText(ids, truncated=len(words) > self._max_tokens))
        return tokenized

    def encode(
        self, texts: Sequence[TokenizedText], side: Side, turn: AbstractContextManager[None] = NO_TURN
    ) -> list[Expansion]:
        """Weigh the words."""
        del side
        with turn:
            if self._delay is not None:
                self._delay()
            self.batches.append([[self._words[number] for number in text.ids] for text in texts])
        return [self._expand(text) for text in texts]

    def _expand(self, text: TokenizedText) -> Expansion:
        weighed = sorted((-word_weight(self._words[number]), self._words[number], number) for number in set(text.ids))
        return Expansion(
            tokens=tuple(word for _, word, _ in weighed),
            token_ids=np.array([number for _, _, number in weighed], dtype=np.int64),
            weights=np.array([-weight for weight, _, _ in weighed], dtype=np.float32),
            token_count=len(text.ids),
            truncated=text.truncated,
        )

    def _id(self, word: str) -> int:
        with self._lock:
            if word not in self._ids:
                self._ids[word] = len(self._words)
                self._words.append(word)
            return self._ids[word]


def word_weight(word: str) -> float:
    """Give the weight that `FakeEncoder` gives a word: in [0.5, 3.5), exact in float32."""
    return 0.5 + int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "big") * 3 / 65536


class FakeExpander:
    """An `Expander` over fake encoders, by deployment id; it answers at once, on the event loop.

    Its model is "fake", and "invented" is an alias of that.
    """

    def __init__(self, deployments: Sequence[str] = ("for_ingest", "for_search")) -> None:
        """Name the deployments."""
        self.encoders = {name: FakeEncoder() for name in deployments}
        # The calls that were answered: deployment, texts, side.
        self.calls: list[tuple[str, list[str], Side | None]] = []

    async def expand(
        self,
        context: RequestContext,
        deployment_id: str,
        texts: Sequence[str],
        side: Side | None,
        *,
        wait: bool = False,
    ) -> Expansions:
        """Expand texts; see `Expander.expand`."""
        del wait
        if deployment_id not in self.encoders:
            raise not_found("deployment", deployment_id, self.encoders)
        if not texts:
            raise InvalidArgumentError("There is no text to expand; give at least one.", reason="NO_TEXT")
        if context.deadline is not None and time.monotonic() >= context.deadline:
            raise DeadlineExceededError("The deadline passed before the texts were expanded.")
        encoder = self.encoders[deployment_id]
        self.calls.append((deployment_id, list(texts), side))
        chosen = side or Side.DOCUMENT
        expansions = encoder.encode(encoder.tokenize(texts, chosen), chosen)
        return Expansions(expansions, "fake", encoder.fingerprint(chosen), InferenceTimings(), ("invented",))
