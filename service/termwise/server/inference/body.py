"""The transformer layers over packed texts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from termwise.server.inference.architectures import ACTIVATIONS, RELATIVE_BUCKETS
from termwise.server.inference.linear import Linear, make_linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from termwise.server.inference.architectures import Architecture, Dimensions
    from termwise.server.inference.packing import Group


# Distance from which on all tokens share a bucket (MPNet's rule, fixed by transformers).
_FURTHEST = 128


class Norm:
    """A layer norm."""

    def __init__(self, weight: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype) -> None:
        """Keep the weights in `dtype`."""
        self._shape = (weight.shape[0],)
        self._weight, self._bias = weight.to(dtype), bias.to(dtype)
        self._epsilon = epsilon

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise rows."""
        return torch.layer_norm(x, self._shape, self._weight, self._bias, self._epsilon, False)  # noqa: FBT003


class _Layer:
    """One layer: attention and a feed-forward net, a norm after each."""

    def __init__(
        self, tensor: Callable[[str], Tensor], names: dict[str, str], dimensions: Dimensions, dtype: torch.dtype
    ) -> None:
        def linear(part: str, activation: tuple[str, str] = ("none", "")) -> Linear:
            return make_linear(tensor(f"{names[part]}.weight"), tensor(f"{names[part]}.bias"), dtype, activation)

        def norm(part: str) -> Norm:
            weight, bias = tensor(f"{names[part]}.weight"), tensor(f"{names[part]}.bias")
            return Norm(weight, bias, dimensions.epsilon, dtype)

        self._heads = dimensions.heads
        three = ("query", "key", "value")
        self._query_key_value = make_linear(
            torch.cat([tensor(f"{names[part]}.weight") for part in three]),
            torch.cat([tensor(f"{names[part]}.bias") for part in three]),
            dtype,
        )
        self._attention, self._attention_norm = linear("attention"), norm("attention_norm")
        self._intermediate = linear("intermediate", ACTIVATIONS[dimensions.activation])
        self._output, self._output_norm = linear("output"), norm("output_norm")

    def __call__(self, x: Tensor, groups: Sequence[Group], bias: Tensor | None) -> Tensor:
        mixed = self._query_key_value(x)
        if len(groups) == 1:
            attended = self._attend(mixed, groups[0], bias)
        else:
            attended = torch.cat([self._attend(mixed, group, bias) for group in groups])
        x = self._attention_norm(self._attention.plus(attended, x))
        return self._output_norm(self._output.plus(self._intermediate(x), x))

    def _attend(self, mixed: Tensor, group: Group, bias: Tensor | None) -> Tensor:
        """Attend inside each text of a group; all have one length, so nothing is masked.

        `bias` `[heads, positions, positions]` depends on distances alone, so its corner serves a shorter text.
        """
        rows = mixed[group.start : group.start + group.count * group.length]
        parts = rows.view(group.count, group.length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mask = bias[None, :, : group.length, : group.length] if bias is not None else None
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attended.transpose(1, 2).reshape(rows.shape[0], -1)


class Body:
    """Embeddings and layers."""

    def __init__(
        self,
        tensor: Callable[[str], Tensor],
        architecture: Architecture,
        dimensions: Dimensions,
        dtype: torch.dtype,
    ) -> None:
        """Lay the weights out; `tensor` gives one by name, in float32."""
        names = architecture.embeddings
        self._words = tensor(f"{names['word']}.weight").to(dtype)
        positions = tensor(f"{names['position']}.weight")
        if "type" in names:
            # A single text is all of the first type, so its vector is a constant.
            positions = positions + tensor(f"{names['type']}.weight")[0]
        self._offset = dimensions.position_offset
        self._table = positions
        # Rows of a text's first token and those after it.
        self._positions = positions[self._offset :].contiguous()
        weight, bias = tensor(f"{names['norm']}.weight"), tensor(f"{names['norm']}.bias")
        self._norm = Norm(weight, bias, dimensions.epsilon, torch.float32)
        self._project: Linear | None = None
        if dimensions.projects:
            name = names["project"]
            self._project = make_linear(tensor(f"{name}.weight"), tensor(f"{name}.bias"), dtype)
        self._bias: Tensor | None = None
        if dimensions.relative_buckets:
            self._bias = relative_bias(tensor(f"{names['relative']}.weight"), dimensions.longest).to(dtype)
        self._dtype = dtype
        self._layers = [
            _Layer(
                tensor,
                {part: name.format(layer=number) for part, name in architecture.layer.items()},
                dimensions,
                dtype,
            )
            for number in range(dimensions.layers)
        ]

    def __call__(self, ids: Tensor, groups: Sequence[Group]) -> Tensor:
        """Encode packed texts.

        Args:
            ids: `[tokens]`, int64, texts end to end.
            groups: where they lie.

        Returns:
            `[tokens, hidden]` in the body's precision.

        """
        x = self._norm(F.embedding(ids, self._words) + self._place(ids, groups)).to(self._dtype)
        if self._project is not None:
            x = self._project(x)
        for layer in self._layers:
            x = layer(x, groups, self._bias)
        return x

    def _place(self, ids: Tensor, groups: Sequence[Group]) -> Tensor:
        """Give the position vectors of packed texts, `[tokens, embedding]`."""
        padding = self._offset - 1
        if self._offset and bool((ids == padding).any()):
            # A text that spells the padding token out: see `Dimensions`.
            numbers = []
            for group in groups:
                rows = ids[group.start : group.start + group.count * group.length].view(group.count, group.length)
                counted = (rows != padding).long()
                numbers.append((counted.cumsum(1) * counted + padding).flatten())
            return F.embedding(torch.cat(numbers), self._table)
        positions = [
            self._positions[: group.length].repeat(group.count, 1)
            if group.count > 1
            else self._positions[: group.length]
            for group in groups
        ]
        return torch.cat(positions) if len(positions) > 1 else positions[0]


def relative_bias(table: Tensor, positions: int) -> Tensor:
    """Give what MPNet adds to the attention of a token to another, by their distance.

    Source: `MPNetEncoder.compute_position_bias` in transformers.

    Args:
        table: `[buckets, heads]`.
        positions: tokens of the longest text.

    Returns:
        `[heads, positions, positions]`: from the token of the row to that of the column.

    """
    places = torch.arange(positions)
    distance = places[None, :] - places[:, None]
    half = RELATIVE_BUCKETS // 2
    near = half // 2
    far = distance.abs()
    # Half of the buckets are for each distance alone, the others grow with its logarithm.
    scale = math.log(_FURTHEST / near)
    large = near + (torch.log(far.clamp(min=1).float() / near) / scale * (half - near)).long()
    buckets = torch.where(far < near, far, large.clamp(max=half - 1)) + (distance > 0).long() * half
    return F.embedding(buckets, table).permute(2, 0, 1).contiguous()
