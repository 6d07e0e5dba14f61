"""Token pruning: Elasticsearch's rule (`WeightedTokensUtils`), with its float32 arithmetic.

With N documents that have the field, U distinct tokens in it, S the sum of all document frequencies df, and
avg = S / N / U:

    keep = df > 0 and (df / N < frequency_ratio * avg or weight > weight_ratio * heaviest query weight)

Both comparisons are strict: a token is left out that is frequent *and* light. `only_pruned` inverts `keep`.
Elasticsearch counts by shard, with U the largest number of a segment; here everything is of the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from termwise.storage.types import SparseVector

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from termwise.server.search.query import PruningConfig
    from termwise.storage.types import TokenStatistics


def kept_tokens(weights: NDArray[np.float32], statistics: TokenStatistics, config: PruningConfig) -> NDArray[np.bool_]:
    """Say of each query token whether it scores.

    Args:
        weights: float32 of shape `[tokens]`.
        statistics: of the field, `frequencies` in the order of `weights`.
        config: the thresholds.

    Returns:
        Booleans of shape `[tokens]`; all False where the field has no token, whatever `only_pruned` says.

    """
    nothing = np.zeros(len(weights), dtype=np.bool_)
    if not len(weights) or not statistics.document_count or not statistics.token_count:
        return nothing
    documents = np.float32(statistics.document_count)
    average = np.float32(statistics.posting_count) / documents / np.float32(statistics.token_count)
    if average == 0:
        return nothing
    frequencies = statistics.frequencies.astype(np.float32)
    rare = frequencies / documents < np.float32(config.frequency_ratio) * average
    heavy = weights > np.float32(config.weight_ratio) * weights.max()
    keep: NDArray[np.bool_] = (statistics.frequencies > 0) & (rare | heavy)
    return ~keep if config.only_pruned else keep


def prune(vector: SparseVector, statistics: TokenStatistics, config: PruningConfig) -> SparseVector:
    """Leave tokens of a query out; what is left may be empty. `statistics` are of `vector.tokens`, in that order."""
    keep = kept_tokens(vector.weights, statistics, config)
    if keep.all():
        return vector
    weights = vector.weights[keep]
    weights.flags.writeable = False
    return SparseVector(tuple(token for token, kept in zip(vector.tokens, keep.tolist(), strict=True) if kept), weights)
