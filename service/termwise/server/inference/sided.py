"""An encoder whose sides are encoded by different parts of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from termwise.server.inference.base import NO_TURN, Encoder, Expansion, Side, TokenizedText

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager


class SidedEncoder:
    """Hands each side to its own encoder. Thread-safe."""

    sides_differ = True

    def __init__(self, document: Encoder, query: Encoder) -> None:
        """Take an encoder a side."""
        self._encoders = {Side.DOCUMENT: document, Side.QUERY: query}
        # What is said of the whole is said of the side that has a network.
        self._main = query if document.engine == "static" else document

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens in the larger vocabulary."""
        return max(encoder.vocabulary_size for encoder in self._encoders.values())

    @property
    def precision(self) -> str:
        """Arithmetic in use."""
        return self._main.precision

    @property
    def device(self) -> str:
        """Where it computes."""
        return self._main.device

    @property
    def engine(self) -> str:
        """What computes; "static" where neither side has a network."""
        return self._main.engine

    def fingerprint(self, side: Side) -> str:
        """Identity of a side."""
        return self._encoders[side].fingerprint(side)

    def tokenize(self, texts: Sequence[str], side: Side) -> list[TokenizedText]:
        """Cut texts into vocabulary ids; see `Encoder.tokenize`."""
        return self._encoders[side].tokenize(texts, side)

    def encode(
        self, texts: Sequence[TokenizedText], side: Side, turn: AbstractContextManager[None] = NO_TURN
    ) -> list[Expansion]:
        """Expand texts; see `Encoder.encode`."""
        return self._encoders[side].encode(texts, side, turn)
