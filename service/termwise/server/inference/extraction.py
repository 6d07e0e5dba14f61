"""From the logits of a text to its weighted tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The smallest normal float32, below which an index takes no weight (Elasticsearch's rule too).
SMALLEST_WEIGHT = np.float32(np.finfo(np.float32).tiny)


class Vocabulary:
    """The strings of a model's tokens, and their order.

    Args of the constructor: `strings`, one a vocabulary id.
    """

    def __init__(self, strings: list[str]) -> None:
        """Rank the tokens once, so that ties are broken without looking at a string."""
        self.strings = strings
        self._by_rank = np.array(sorted(range(len(strings)), key=strings.__getitem__), dtype=np.int64)
        self._ranks = np.empty(len(strings), dtype=np.uint64)
        self._ranks[self._by_rank] = np.arange(len(strings), dtype=np.uint64)

    def __len__(self) -> int:
        """Give the number of tokens."""
        return len(self.strings)

    def order(
        self, ids: NDArray[np.int64], weights: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Sort tokens by weight, heaviest first, ties by token. Weights are positive.

        The bits of positive floats sort as the floats do, so that one sort of integers, weight above rank, does both.
        """
        flipped = np.uint64(0xFFFFFFFF) - weights.view(np.uint32)
        keys = (flipped << np.uint64(32)) | self._ranks[ids]
        keys.sort()
        ordered = self._by_rank[(keys & np.uint64(0xFFFFFFFF)).astype(np.int64)]
        bits = np.uint64(0xFFFFFFFF) - (keys >> np.uint64(32))
        return ordered, bits.astype(np.uint32).view(np.float32)

    def tokens(self, ids: NDArray[np.int64]) -> tuple[str, ...]:
        """Give the strings of ids."""
        return tuple(map(self.strings.__getitem__, ids.tolist()))


@dataclass(frozen=True, slots=True)
class Weighing:
    """How what a network gives for a token becomes its weight: `log1p`, so many times; 0: it is the weight already.

    `muted` are the ids of tokens that get none.
    """

    logarithms: int = 1
    muted: frozenset[int] = frozenset()


PLAIN = Weighing()
"""`log1p`, for all tokens."""


def extract(
    logits: NDArray[np.float32],
    vocabulary: Vocabulary,
    *,
    max_terms: int,
    min_weight: float,
    weighing: Weighing = PLAIN,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Turn a text's largest logits `[vocabulary]` into weights, `log1p(relu(logit))` by default.

    Returns:
        Ids and weights, heaviest first, at most `max_terms` (0: all), none below `min_weight` or not positive.

    """
    ids = np.flatnonzero(logits > 0)
    return weigh((ids, logits[ids]), vocabulary, max_terms=max_terms, min_weight=min_weight, weighing=weighing)


def weigh(
    positive: tuple[NDArray[np.int64], NDArray[np.float32]],
    vocabulary: Vocabulary,
    *,
    max_terms: int,
    min_weight: float,
    weighing: Weighing = PLAIN,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Do the same where the ids of positive logits, and those, are known."""
    ids, weights = positive
    for _ in range(weighing.logarithms):
        weights = np.log1p(weights)
    if weighing.muted:
        kept = np.isin(ids, list(weighing.muted), invert=True)
        ids, weights = ids[kept], weights[kept]
    least = max(np.float32(min_weight), SMALLEST_WEIGHT)
    if weights.size and weights.min() < least:
        kept = weights >= least
        ids, weights = ids[kept], weights[kept]
    ids, weights = vocabulary.order(ids, weights)
    return (ids[:max_terms], weights[:max_terms]) if max_terms else (ids, weights)
