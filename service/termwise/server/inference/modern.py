"""ModernBERT in torch's operations: texts packed end to end, weights laid out once, the head pooled as it is made.

It differs from the stack of `layouts`: norms stand before what they feed, positions are rotations of queries and keys,
a gate multiplies the feed-forward net, and most layers attend to near tokens alone. Source: `ModernBertForMaskedLM` in
transformers, which the check at load compares it with.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.architectures import ACTIVATIONS, Dimensions, read_dimensions
from termwise.server.inference.base import Side
from termwise.server.inference.body import DTYPES, Norm
from termwise.server.inference.hardware import set_compute_threads, torch_has_bfloat16
from termwise.server.inference.head import PooledHead
from termwise.server.inference.layouts import Architecture
from termwise.server.inference.linear import make_linear
from termwise.server.inference.packing import group_lengths
from termwise.server.inference.parity import Judge
from termwise.server.inference.plain import plain_weights
from termwise.server.inference.plain_folder import MODERN_BERT
from termwise.server.inference.splade import SpladeEncoder
from termwise.server.inference.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from termwise.server.inference.base import ExpansionConfig
    from termwise.server.inference.computing import Computing
    from termwise.server.inference.extraction import Weighing
    from termwise.server.inference.packing import Group
    from termwise.server.inference.plain_folder import PlainFolder
    from termwise.server.inference.text import TextTokenizer

_log = logging.getLogger(__name__)

_FULL, _NEAR = "full_attention", "sliding_attention"
# The bases of rotation where config.json has none.
_BASES: Final = {_FULL: ("global_rope_theta", 160_000.0), _NEAR: ("local_rope_theta", 10_000.0)}
_MODERN = Architecture(
    name=MODERN_BERT,
    dimensions={
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "intermediate": "intermediate_size",
        "activation": "hidden_activation",
        "epsilon": "norm_eps",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
    },
    embeddings={"word": "model.embeddings.tok_embeddings", "norm": "model.embeddings.norm"},
    layer={
        "attention_norm": "model.layers.{layer}.attn_norm",
        "mixed": "model.layers.{layer}.attn.Wqkv",
        "attention": "model.layers.{layer}.attn.Wo",
        "output_norm": "model.layers.{layer}.mlp_norm",
        "intermediate": "model.layers.{layer}.mlp.Wi",
        "output": "model.layers.{layer}.mlp.Wo",
    },
    head={"transform": "head.dense", "norm": "head.norm", "decoder": "decoder"},
    bias=("decoder.bias",),
    defaults={"activation": "gelu", "epsilon": 1e-5},
)


@dataclass(frozen=True, slots=True)
class ModernFigures:
    """A ModernBERT's figures.

    `kinds`: of each layer, "full_attention" or "sliding_attention"; `bases`: of the rotation, by such a kind; `reach`:
    how many tokens before and after it a token of a sliding layer attends to.
    """

    dimensions: Dimensions
    kinds: tuple[str, ...]
    bases: Mapping[str, float]
    reach: int


def read_figures(config: Mapping[str, Any]) -> ModernFigures | None:
    """Read a ModernBERT's figures; None where it needs what this path lacks."""
    head_activation = config.get("classifier_activation", "gelu")
    if str(head_activation) not in ACTIVATIONS or config.get("rope_scaling"):
        return None
    try:
        dimensions = replace(read_dimensions(_MODERN, config), head_activation=str(head_activation))
        bases = {kind: _base(config, kind) for kind in (_FULL, _NEAR)}
        every = int(config.get("global_attn_every_n_layers", 3))
        stated = config.get("layer_types")
        kinds = tuple(stated or (_NEAR if number % every else _FULL for number in range(dimensions.layers)))
        reach = int(config.get("local_attention", 128)) // 2
    except (FailedPreconditionError, TypeError, ValueError, KeyError, ZeroDivisionError):
        return None
    if len(kinds) != dimensions.layers or not set(kinds) <= {_FULL, _NEAR} or dimensions.hidden // dimensions.heads % 2:
        return None
    return ModernFigures(dimensions, kinds, bases, reach)


def _base(config: Mapping[str, Any], kind: str) -> float:
    parameters = (config.get("rope_parameters") or {}).get(kind) or {}
    if parameters.get("rope_type", "default") != "default":
        raise ValueError(kind)
    key, default = _BASES[kind]
    return float(parameters.get("rope_theta", config.get(key, default)))


class _Layer:
    """One layer: attention and a gated feed-forward net, a norm before each."""

    def __init__(
        self, tensor: Callable[[str], Tensor], number: int, figures: ModernFigures, dtype: torch.dtype
    ) -> None:
        def both(part: str) -> tuple[Tensor, Tensor]:
            return tensor(f"{names[part]}.weight"), tensor(f"{names[part]}.bias")

        names = {part: name.format(layer=number) for part, name in _MODERN.layer.items()}
        dimensions, width = figures.dimensions, figures.dimensions.intermediate
        self.near = figures.kinds[number] == _NEAR
        self._heads = dimensions.heads
        # What feeds the first layer is normed already.
        self._attention_norm = _norm(tensor, names["attention_norm"], dimensions, dtype) if number else None
        self._mix = make_linear(*both("mixed"), dtype)
        self._attention = make_linear(*both("attention"), dtype)
        self._output_norm = _norm(tensor, names["output_norm"], dimensions, dtype)
        weight, bias = both("intermediate")
        self._intermediate = make_linear(weight[:width], bias[:width], dtype, ACTIVATIONS[dimensions.activation])
        self._gate = make_linear(weight[width:], bias[width:], dtype)
        self._output = make_linear(*both("output"), dtype)

    def __call__(self, x: Tensor, groups: Sequence[Group], turns: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Run over `[tokens, hidden]`."""
        mixed = self._mix(x if self._attention_norm is None else self._attention_norm(x))
        attended = [self._attend(mixed, group, turns, mask) for group in groups]
        x = self._attention.plus(torch.cat(attended) if len(attended) > 1 else attended[0], x)
        normed = self._output_norm(x)
        return self._output.plus(self._intermediate(normed).mul_(self._gate(normed)), x)

    def _attend(self, mixed: Tensor, group: Group, turns: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Attend inside each text of a group; all have one length."""
        rows = mixed[group.start : group.start + group.count * group.length]
        parts = rows.view(group.count, group.length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        cosines, sines = (each[: group.length] for each in turns)
        query, key = (_turn(each, cosines, sines) for each in parts[:2].unbind(0))
        inside = None if mask is None else mask[: group.length, : group.length]
        attended = F.scaled_dot_product_attention(query, key, parts[2], attn_mask=inside)
        return attended.transpose(1, 2).reshape(rows.shape[0], -1)


def _turn(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate vectors `[texts, heads, tokens, width]` by their positions: halves of a vector are its pairs."""
    wide = x.float()
    left, right = wide.chunk(2, dim=-1)
    return (wide * cosines + torch.cat((-right, left), dim=-1) * sines).to(x.dtype)


def _rotations(base: float, dimensions: Dimensions, longest: int) -> tuple[Tensor, Tensor]:
    """Give cosines and sines `[positions, width of a head]`."""
    width = dimensions.hidden // dimensions.heads
    frequencies = 1.0 / (base ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    angles = torch.outer(torch.arange(longest, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def _band(longest: int, reach: int) -> Tensor:
    """Tell, for `[tokens, tokens]`, whether one is within reach of the other."""
    places = torch.arange(longest)
    return (places[None, :] - places[:, None]).abs() <= reach


def _norm(tensor: Callable[[str], Tensor], name: str, dimensions: Dimensions, dtype: torch.dtype) -> Norm:
    return Norm(tensor(f"{name}.weight"), tensor(f"{name}.bias"), dimensions.epsilon, dtype)


class ModernNetwork:
    """A ModernBERT. Thread-safe."""

    engine = kernel = "torch"
    place = "cpu"

    def __init__(
        self, figures: ModernFigures, weights: Mapping[str, NDArray[np.float32]], precision: str, longest: int
    ) -> None:
        """Lay the weights out, for texts of at most `longest` tokens.

        Raises:
            KeyError: a tensor is missing.

        """

        def tensor(name: str) -> Tensor:
            if name not in weights and name.endswith(".bias"):
                # Most of its products and norms have none.
                return torch.zeros(weights[f"{name.removesuffix('.bias')}.weight"].shape[0])
            return torch.from_numpy(weights[name])

        dimensions, dtype = figures.dimensions, DTYPES[precision]
        names = _MODERN.embeddings
        head = {"decoder.bias": weights.get("decoder.bias", np.zeros(dimensions.vocabulary, dtype=np.float32))}
        with torch.inference_mode():
            self._words = tensor(f"{names['word']}.weight").to(dtype)
            self._norm = _norm(tensor, names["norm"], dimensions, dtype)
            self._last_norm = _norm(tensor, "model.final_norm", dimensions, dtype)
            near, full = (_rotations(figures.bases[kind], dimensions, longest) for kind in (_NEAR, _FULL))
            self._near, self._full = (near, _band(longest, figures.reach)), (full, None)
            self._layers = [_Layer(tensor, number, figures, dtype) for number in range(dimensions.layers)]
            self._head = PooledHead(
                lambda name: torch.from_numpy(head[name]) if name in head else tensor(name),
                _MODERN,
                dimensions,
                "decoder.bias",
                dtype,
                dtype,
            )

    def pool(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Give the largest logits; see `networks.Network.pool`."""
        groups = group_lengths([len(ids) for ids in texts])
        with torch.inference_mode():
            packed = torch.tensor([number for ids in texts for number in ids])
            x = self._norm(F.embedding(packed, self._words))
            for layer in self._layers:
                x = layer(x, groups, *(self._near if layer.near else self._full))
            logits: NDArray[np.float32] = self._head(self._last_norm(x), groups).numpy()
        return logits


def load_modern(
    folder: PlainFolder,
    config: ExpansionConfig,
    tokenizer: TextTokenizer,
    fingerprints: dict[Side, str],
    computing: Computing,
    weighing: Weighing,
) -> SpladeEncoder | None:
    """Load a ModernBERT into this path; None where the model, the precision or the device wants another."""
    figures = read_figures(folder.config)
    choices = ["bfloat16", "float32"] if computing.precision == "auto" else [computing.precision]
    choices = [each for each in choices if each == "float32" or (each == "bfloat16" and torch_has_bfloat16())]
    if figures is None or not choices or (computing.device != "cpu" and torch.cuda.is_available()):
        return None
    set_compute_threads(computing.threads)
    weights = read_weights(folder)
    judge = Judge(tokenizer, fingerprints[Side.DOCUMENT], computing.cache, partial(plain_weights, folder.path))
    for choice in choices:
        try:
            network = ModernNetwork(figures, weights, choice, tokenizer.max_tokens)
            encoder = SpladeEncoder(config, tokenizer, fingerprints, network, choice, weighing)
            problem = judge.compare(encoder)
        except (RuntimeError, MemoryError, KeyError) as error:
            _log.warning("encoder in %s does not run here", choice, exc_info=error)
            continue
        if problem is None:
            _log.info("encoder in %s by %s", choice, network.kernel)
            return encoder
        _log.warning("encoder in %s by %s is refused: %s", choice, network.kernel, problem)
    return None
