"""The transformer layers over packed texts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from termwise.server.inference.architectures import ACTIVATIONS, RELATIVE_BUCKETS
from termwise.server.inference.linear import Linear, make_linear
from termwise.server.inference.networks import NARROW

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from termwise.server.inference.architectures import Architecture, Dimensions
    from termwise.server.inference.packing import Group

Texts = TypeVar("Texts")
"""How neighbouring texts are laid out for attention."""
MakeLinear: TypeAlias = "Callable[..., Linear]"
"""Makes a product of weight, bias, dtype, and an activation where there is one; see `linear.make_linear`."""
Attend: TypeAlias = "Callable[[Tensor, Texts, int, Tensor | None], Tensor]"
"""From queries, keys and values `[tokens, 3 * hidden]`, texts, the number of heads, and a bias to `[rows, hidden]`."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""By precision."""
# Distance from which on all tokens share a bucket (MPNet's rule, fixed by transformers).
_FURTHEST = 128


def layers_dtype(dimensions: Dimensions, precision: str) -> torch.dtype:
    """Give the numbers that the layers compute in."""
    return torch.float32 if dimensions.hidden <= NARROW else DTYPES[precision]


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


class Layer(Generic[Texts]):
    """One layer: attention and a feed-forward net, a norm after each."""

    def __init__(
        self,
        tensor: Callable[[str], Tensor],
        names: Mapping[str, str],
        dimensions: Dimensions,
        dtype: torch.dtype,
        make: MakeLinear,
        attend: Attend[Texts],
    ) -> None:
        """Lay the weights out: `tensor` gives one by name, `make` a product, and `attend` lets texts attend."""

        def both(part: str) -> tuple[Tensor, Tensor]:
            return tensor(f"{names[part]}.weight"), tensor(f"{names[part]}.bias")

        three = [both(part) for part in ("query", "key", "value")]
        self._heads = dimensions.heads
        self._attend = attend
        self._mix = make(torch.cat([each[0] for each in three]), torch.cat([each[1] for each in three]), dtype)
        self._attention = make(*both("attention"), dtype)
        self._attention_norm = Norm(*both("attention_norm"), dimensions.epsilon, dtype)
        self._intermediate = make(*both("intermediate"), dtype, ACTIVATIONS[dimensions.activation])
        self._output = make(*both("output"), dtype)
        self._output_norm = Norm(*both("output_norm"), dimensions.epsilon, dtype)

    def __call__(self, x: Tensor, texts: Sequence[Texts], bias: Tensor | None) -> Tensor:
        """Run over `[tokens, hidden]`; `bias` `[heads, positions, positions]` is added to attention unless None."""
        mixed = self._mix(x)
        attended = [self._attend(mixed, each, self._heads, bias) for each in texts]
        x = self._attention_norm(self._attention.plus(torch.cat(attended) if len(attended) > 1 else attended[0], x))
        return self._output_norm(self._output.plus(self._intermediate(x), x))


def make_layers(
    tensor: Callable[[str], Tensor],
    architecture: Architecture,
    dimensions: Dimensions,
    dtype: torch.dtype,
    make: MakeLinear,
    attend: Attend[Texts],
) -> list[Layer[Texts]]:
    """Give a model's layers; see `Layer`."""
    names = [
        {part: name.format(layer=number) for part, name in architecture.layer.items()}
        for number in range(dimensions.layers)
    ]
    return [Layer(tensor, each, dimensions, dtype, make, attend) for each in names]


def position_table(tensor: Callable[[str], Tensor], architecture: Architecture) -> Tensor:
    """Give what is added to a token's vector by its position, `[positions, embedding]`."""
    names = architecture.embeddings
    positions = tensor(f"{names['position']}.weight")
    if "type" in names:
        # A single text is all of the first type, so its vector is a constant.
        positions = positions + tensor(f"{names['type']}.weight")[0]
    return positions


def attend_inside(rows: Tensor, texts: int, heads: int, mask: Tensor | None) -> Tensor:
    """Let each of some texts of one length attend to itself.

    Args:
        rows: queries, keys and values `[texts * tokens, 3 * hidden]`.
        texts: how many there are.
        heads: of the model.
        mask: what is added to the scores `[texts, heads, tokens, tokens]`, or to what that is broadcast from.

    Returns:
        `[texts * tokens, hidden]`.

    """
    parts = rows.view(texts, rows.shape[0] // texts, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = parts.unbind(0)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.transpose(1, 2).reshape(rows.shape[0], -1)


def _attend(mixed: Tensor, group: Group, heads: int, bias: Tensor | None) -> Tensor:
    """Attend inside each text of a group; all have one length, so nothing is masked.

    `bias` `[heads, positions, positions]` depends on distances alone, so its corner serves a shorter text.
    """
    rows = mixed[group.start : group.start + group.count * group.length]
    mask = bias[None, :, : group.length, : group.length] if bias is not None else None
    return attend_inside(rows, group.count, heads, mask)


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
        self._offset = dimensions.position_offset
        self._table = positions = position_table(tensor, architecture)
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
        self._layers = make_layers(tensor, architecture, dimensions, dtype, make_linear, _attend)

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
