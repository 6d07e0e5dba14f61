"""The packed SPLADE encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from termwise.server.inference.base import NO_TURN, Expansion, Side, TokenizedText
from termwise.server.inference.extraction import PLAIN, Vocabulary, Weighing, extract, weigh
from termwise.server.inference.networks import PositiveNetwork
from termwise.server.inference.packing import plan_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from termwise.server.inference.base import ExpansionConfig
    from termwise.server.inference.networks import Network
    from termwise.server.inference.text import TextTokenizer

# Tokens of one pass through the model. Measured with chunks of 512 to 2,048 columns: 2,048 tokens are the fastest in
# bfloat16 and within 5 % of it in float32; 4,096 lose 10 % in float32, since a chunk's logits leave the cache.
_BATCH_TOKENS = 2048
# The same on a device, which wants more work at a time; 32 texts of 512 tokens. Not measured: there was none at hand.
_DEVICE_TOKENS = 16_384
# Most bytes of a batch's logits: each thread that runs a model keeps the memory of its largest batch.
_LOGITS_BYTES = 32 * 1024 * 1024

_NO_IDS = np.empty(0, dtype=np.int64)
_NO_WEIGHTS = np.empty(0, dtype=np.float32)


class SpladeEncoder:
    """A masked-token model whose largest logits, through `log1p(relu(…))`, are the weights of a text.

    Texts are packed end to end, sorted by length, without padding. Thread-safe: several workers may share one.
    """

    def __init__(
        self,
        config: ExpansionConfig,
        tokenizer: TextTokenizer,
        fingerprints: dict[Side, str],
        network: Network,
        precision: str,
        weighing: Weighing = PLAIN,
    ) -> None:
        """Read texts by `tokenizer`, and compute by `network`, whose arithmetic is `precision`."""
        self._network = network
        # Of what a device computes, only the positive logits leave it.
        self._run: Callable[[Sequence[Sequence[int]]], Iterable[Any]] = network.pool
        self._read: Callable[..., tuple[NDArray[np.int64], NDArray[np.float32]]] = extract
        self._batch_tokens = _BATCH_TOKENS
        self._tokenizer = tokenizer
        self._vocabulary = Vocabulary(tokenizer.vocabulary)
        self._batch_texts: int | None = max(1, _LOGITS_BYTES // (4 * len(self._vocabulary)))
        if isinstance(network, PositiveNetwork):
            self._run, self._read, self._batch_tokens = network.positive, weigh, _DEVICE_TOKENS
            self._batch_texts = None
        self._weighing = weighing
        self._fingerprints = fingerprints
        self._precision = precision
        self._min_weight = config.min_weight
        self._max_terms = {Side.DOCUMENT: config.document_max_terms, Side.QUERY: config.query_max_terms}

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return len(self._vocabulary)

    @property
    def precision(self) -> str:
        """Arithmetic in use: "float32", "bfloat16" or "int8"."""
        return self._precision

    @property
    def kernel(self) -> str:
        """What computes: a level of instructions of the kernel, or "torch"."""
        return self._network.kernel

    @property
    def engine(self) -> str:
        """What computes: "native" or "torch"."""
        return self._network.engine

    @property
    def device(self) -> str:
        """Where it computes."""
        return self._network.place

    @property
    def sides_differ(self) -> bool:
        """Whether documents and queries are encoded differently."""
        return self._fingerprints[Side.DOCUMENT] != self._fingerprints[Side.QUERY]

    def fingerprint(self, side: Side) -> str:
        """Identity of a side."""
        return self._fingerprints[side]

    def tokenize(self, texts: Sequence[str], side: Side) -> list[TokenizedText]:
        """Cut texts into vocabulary ids; see `Encoder.tokenize`."""
        return self._tokenizer.tokenize(texts, side)

    def encode(
        self, texts: Sequence[TokenizedText], side: Side, turn: AbstractContextManager[None] = NO_TURN
    ) -> list[Expansion]:
        """Run the model, batch by batch; see `Encoder.encode`."""
        expansions = [Expansion((), _NO_IDS, _NO_WEIGHTS, 0, text.truncated) for text in texts]
        max_terms = self._max_terms[side]
        for batch in plan_batches([len(text.ids) for text in texts], self._batch_tokens, self._batch_texts):
            ids_of_texts = [texts[position].ids for position in batch]
            with turn:
                rows = self._run(ids_of_texts)
            for position, row in zip(batch, rows, strict=True):
                ids, weights = self._read(
                    row,
                    self._vocabulary,
                    max_terms=max_terms,
                    min_weight=self._min_weight,
                    weighing=self._weighing,
                )
                text = texts[position]
                tokens = self._vocabulary.tokens(ids)
                expansions[position] = Expansion(tokens, ids, weights, len(text.ids), text.truncated)
        return expansions

    def pool(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Give the largest logits `[texts, vocabulary]` of texts that are sorted by length and none of them empty.

        The array lasts until the calling thread's next call.
        """
        return self._network.pool(texts)
