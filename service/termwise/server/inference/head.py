"""The masked-token head with its maximum over each text, in memory that does not grow with the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from termwise.server.inference.architectures import ACTIVATIONS
from termwise.server.inference.body import Norm
from termwise.server.inference.linear import make_linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from termwise.server.inference.architectures import Architecture, Dimensions
    from termwise.server.inference.packing import Group

# Columns of a chunk. With the rows of a pass (see `splade`), a chunk's logits stay near the processor.
_CHUNK = 1024
# At and below so many tokens, one product over the whole vocabulary is faster than chunks (measured: half the time).
_FEW_TOKENS = 64
# The whole vocabulary is kept a second time, in one piece, where that costs no more than this; in larger models the
# chunks' overhead is lost in the product.
_WHOLE_BYTES = 32 << 20


class PooledHead:
    """Gives the largest logit of each vocabulary entry over the tokens of each text.

    The maximum comes before ReLU and log1p, since both are monotonic; `[tokens, vocabulary]` exists only a chunk at a
    time. The bias rides inside the product, where it costs nothing and is added before the rounding to bfloat16.
    """

    def __init__(
        self,
        tensor: Callable[[str], Tensor],
        architecture: Architecture,
        dimensions: Dimensions,
        bias: str,
        dtype: torch.dtype,
        body_dtype: torch.dtype,
    ) -> None:
        """Lay the weights out; `tensor` gives one by name, in float32. The transform has the body's precision."""
        names = architecture.head
        self._transform = make_linear(
            tensor(f"{names['transform']}.weight"),
            tensor(f"{names['transform']}.bias"),
            body_dtype,
            ACTIVATIONS[dimensions.head_activation],
        )
        weight, shift = tensor(f"{names['norm']}.weight"), tensor(f"{names['norm']}.bias")
        self._norm = Norm(weight, shift, dimensions.epsilon, body_dtype)
        decoder = architecture.embeddings["word"] if dimensions.tied else names["decoder"]
        matrix, biases = tensor(f"{decoder}.weight"), tensor(bias)
        self._dtype = dtype
        self._vocabulary = dimensions.vocabulary
        self._chunks = [
            make_linear(matrix[start : start + _CHUNK], biases[start : start + _CHUNK], dtype)
            for start in range(0, dimensions.vocabulary, _CHUNK)
        ]
        fits = matrix.numel() * dtype.itemsize <= _WHOLE_BYTES
        self._whole = make_linear(matrix, biases, dtype) if fits else None

    def __call__(self, x: Tensor, groups: Sequence[Group]) -> Tensor:
        """Pool packed texts.

        Args:
            x: `[tokens, hidden]`, the body's output.
            groups: where the texts lie.

        Returns:
            `[texts, vocabulary]`, the largest logit, bias included, in float32.

        """
        x = self._norm(self._transform(x)).to(self._dtype)
        largest = torch.empty(sum(group.count for group in groups), self._vocabulary, dtype=self._dtype)
        if x.shape[0] <= _FEW_TOKENS and self._whole is not None:
            _pool(self._whole(x), groups, largest)
        else:
            for number, chunk in enumerate(self._chunks):
                _pool(chunk(x), groups, largest[:, number * _CHUNK : (number + 1) * _CHUNK])
        return largest.float()


def _pool(logits: Tensor, groups: Sequence[Group], out: Tensor) -> None:
    row = 0
    for group in groups:
        tokens = logits[group.start : group.start + group.count * group.length]
        if group.count == 1:
            torch.amax(tokens, 0, out=out[row])
        else:
            torch.amax(tokens.view(group.count, group.length, -1), 1, out=out[row : row + group.count])
        row += group.count
