"""Products with a model's weights, laid out once so that oneDNN need not do it at each call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from termwise.server.inference.hardware import has_onednn

if TYPE_CHECKING:
    from torch import Tensor

NO_ACTIVATION = ("none", "")


class Linear(Protocol):
    """`activation(x @ weight.T + bias)`, and the same plus another tensor in place of the activation."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply rows `[tokens, inputs]` to `[tokens, outputs]`."""
        ...

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Multiply, and add `other` `[tokens, outputs]`."""
        ...


def make_linear(
    weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: tuple[str, str] = NO_ACTIVATION
) -> Linear:
    """Make the fastest product there is for `weight` `[outputs, inputs]`: 2 times plain float32 on AVX512, measured."""
    if has_onednn():
        return _Prepacked(weight, bias, dtype, activation)
    return PlainLinear(weight, bias, dtype, activation)


class _Prepacked:
    """The weight in oneDNN's own blocked layout."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: tuple[str, str]) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), None)  # noqa: SLF001 - the only door to it
        self._bias = bias.to(dtype).contiguous()
        self._activation, self._algorithm = activation
        self._product = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
        self._sum = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = self._product(x, self._weight, self._bias, self._activation, [], self._algorithm)
        return product

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        product: Tensor = self._sum(x, other, self._weight, self._bias, "add")
        return product


class PlainLinear:
    """The weight as torch has it: for devices, and for processors and builds without oneDNN."""

    def __init__(
        self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: tuple[str, str] = NO_ACTIVATION
    ) -> None:
        """Keep `weight` `[outputs, inputs]` and `bias` where they are."""
        self._weight = weight.to(dtype).contiguous()
        self._bias = bias.to(dtype).contiguous()
        self._activation, self._algorithm = activation

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply rows; see `Linear`."""
        product = F.linear(x, self._weight, self._bias)
        if self._activation == "gelu":
            return F.gelu(product, approximate=self._algorithm)
        return F.relu_(product) if self._activation == "relu" else product

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Multiply rows and add `other`; see `Linear`."""
        return F.linear(x, self._weight, self._bias).add_(other)
