"""A model in torch's operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from termwise.server.inference.body import DTYPES, Body, layers_dtype
from termwise.server.inference.head import PooledHead
from termwise.server.inference.packing import group_lengths

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from termwise.server.inference.artefacts import ModelFolder


class TorchNetwork:
    """A model in torch's operations, on any processor."""

    engine = kernel = "torch"
    place = "cpu"

    def __init__(self, folder: ModelFolder, weights: Mapping[str, NDArray[np.float32]], precision: str) -> None:
        """Lay the weights out."""

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(weights[name])

        architecture, dimensions = folder.architecture, folder.dimensions
        dtype, body_dtype = DTYPES[precision], layers_dtype(dimensions, precision)
        with torch.inference_mode():
            self._body = Body(tensor, architecture, dimensions, body_dtype)
            self._head = PooledHead(tensor, architecture, dimensions, folder.bias, dtype, body_dtype)

    def pool(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Give the largest logits; see `Network.pool`."""
        groups = group_lengths([len(ids) for ids in texts])
        with torch.inference_mode():
            packed = torch.tensor([number for ids in texts for number in ids])
            logits: NDArray[np.float32] = self._head(self._body(packed, groups), groups).numpy()
        return logits
