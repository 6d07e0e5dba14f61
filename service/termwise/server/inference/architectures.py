"""The architectures that the packed encoder runs, as tables of names: what differs between them is data, not code.

A new architecture is a new `Architecture`, as long as it is a stack of post-norm transformer layers under a
masked-token head. Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from termwise.server.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Activations that oneDNN fuses into a product, as (its name, its algorithm), by their names in a model's config.json.
ACTIVATIONS = {
    "gelu": ("gelu", "none"),
    "gelu_python": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where a kind of model keeps its figures and its weights.

    `dimensions` maps the fields of `Dimensions` to keys of config.json. `embeddings`, `layer` and `head` map the parts
    of the packed encoder to names of tensors without their `.weight` and `.bias`; a layer's names hold `{layer}`.
    """

    name: str
    dimensions: Mapping[str, str]
    embeddings: Mapping[str, str]
    layer: Mapping[str, str]
    head: Mapping[str, str]
    # Names that the head's vocabulary bias may have.
    bias: tuple[str, ...]
    # Figures that config.json may leave out.
    defaults: Mapping[str, Any] = field(default_factory=dict)


_BERT = Architecture(
    name="BertForMaskedLM",
    dimensions={
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "intermediate": "intermediate_size",
        "activation": "hidden_act",
        "epsilon": "layer_norm_eps",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "types": "type_vocab_size",
    },
    embeddings={
        "word": "bert.embeddings.word_embeddings",
        "position": "bert.embeddings.position_embeddings",
        "type": "bert.embeddings.token_type_embeddings",
        "norm": "bert.embeddings.LayerNorm",
    },
    layer={
        "query": "bert.encoder.layer.{layer}.attention.self.query",
        "key": "bert.encoder.layer.{layer}.attention.self.key",
        "value": "bert.encoder.layer.{layer}.attention.self.value",
        "attention": "bert.encoder.layer.{layer}.attention.output.dense",
        "attention_norm": "bert.encoder.layer.{layer}.attention.output.LayerNorm",
        "intermediate": "bert.encoder.layer.{layer}.intermediate.dense",
        "output": "bert.encoder.layer.{layer}.output.dense",
        "output_norm": "bert.encoder.layer.{layer}.output.LayerNorm",
    },
    head={
        "transform": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "decoder": "cls.predictions.decoder",
    },
    bias=("cls.predictions.bias", "cls.predictions.decoder.bias"),
    defaults={"activation": "gelu", "epsilon": 1e-12, "types": 2},
)

_DISTILBERT = Architecture(
    name="DistilBertForMaskedLM",
    dimensions={
        "hidden": "dim",
        "layers": "n_layers",
        "heads": "n_heads",
        "intermediate": "hidden_dim",
        "activation": "activation",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
    },
    embeddings={
        "word": "distilbert.embeddings.word_embeddings",
        "position": "distilbert.embeddings.position_embeddings",
        "norm": "distilbert.embeddings.LayerNorm",
    },
    layer={
        "query": "distilbert.transformer.layer.{layer}.attention.q_lin",
        "key": "distilbert.transformer.layer.{layer}.attention.k_lin",
        "value": "distilbert.transformer.layer.{layer}.attention.v_lin",
        "attention": "distilbert.transformer.layer.{layer}.attention.out_lin",
        "attention_norm": "distilbert.transformer.layer.{layer}.sa_layer_norm",
        "intermediate": "distilbert.transformer.layer.{layer}.ffn.lin1",
        "output": "distilbert.transformer.layer.{layer}.ffn.lin2",
        "output_norm": "distilbert.transformer.layer.{layer}.output_layer_norm",
    },
    head={"transform": "vocab_transform", "norm": "vocab_layer_norm", "decoder": "vocab_projector"},
    bias=("vocab_projector.bias",),
    # transformers fixes the epsilon of DistilBERT's layer norms in its code.
    defaults={"activation": "gelu", "epsilon": 1e-12},
)

ARCHITECTURES = {each.name: each for each in (_BERT, _DISTILBERT)}


@dataclass(frozen=True, slots=True)
class Dimensions:
    """A model's figures, in one set of words.

    `epsilon` is that of its layer norms; `tied`: the decoder's matrix is the embedding's; `types`: how many kinds of
    segments it tells apart, 0 where it tells none.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    activation: str
    epsilon: float
    vocabulary: int
    positions: int
    tied: bool
    types: int = 0


def find_architecture(config: Mapping[str, Any]) -> Architecture:
    """Give the architecture that a model's config.json names.

    Raises:
        FailedPreconditionError: it names none, or one that is not supported.

    """
    names = [str(name) for name in config.get("architectures") or []]
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    known = ", ".join(sorted(ARCHITECTURES))
    wanted = ", ".join(names) or "none"
    raise FailedPreconditionError(
        f"The model's architecture ({wanted}) is not supported; use a model of one of these: {known}.",
        reason="ARCHITECTURE_UNSUPPORTED",
        metadata={"architecture": wanted, "supported": known},
    )


def read_dimensions(architecture: Architecture, config: Mapping[str, Any]) -> Dimensions:
    """Read a model's figures out of its config.json.

    Raises:
        FailedPreconditionError: a figure is missing or makes no sense, or the model needs what the encoder lacks.

    """
    figures: dict[str, Any] = dict(architecture.defaults)
    for name, key in architecture.dimensions.items():
        if config.get(key) is not None:
            figures[name] = config[key]
    for name, key in architecture.dimensions.items():
        value = figures.get(name)
        if name == "activation":
            if value not in ACTIVATIONS:
                raise _broken(f'its activation "{value}" is not supported; supported are {", ".join(ACTIVATIONS)}')
        elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise _broken(f'"{key}" is missing or not a positive number')
        elif name != "epsilon" and int(value) != value:
            raise _broken(f'"{key}" is not a whole number')
    dimensions = Dimensions(tied=config.get("tie_word_embeddings") is not False, **figures)
    if dimensions.hidden % dimensions.heads:
        raise _broken("its attention heads do not divide its hidden size")
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise _broken("it needs relative positions or is a decoder, which is not supported")
    return dimensions


def tensor_shapes(architecture: Architecture, dimensions: Dimensions) -> dict[str, tuple[int, ...]]:
    """Give the tensors that a model must have, and their shapes.

    The vocabulary bias has several names and is not here.
    """
    hidden, intermediate = dimensions.hidden, dimensions.intermediate
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        shapes[f"{name}.bias"] = (rows,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)

    shapes[f"{architecture.embeddings['word']}.weight"] = (dimensions.vocabulary, hidden)
    shapes[f"{architecture.embeddings['position']}.weight"] = (dimensions.positions, hidden)
    if "type" in architecture.embeddings:
        shapes[f"{architecture.embeddings['type']}.weight"] = (dimensions.types, hidden)
    norm(architecture.embeddings["norm"])
    for number in range(dimensions.layers):
        names = {part: name.format(layer=number) for part, name in architecture.layer.items()}
        for part in ("query", "key", "value", "attention"):
            linear(names[part], hidden, hidden)
        linear(names["intermediate"], intermediate, hidden)
        linear(names["output"], hidden, intermediate)
        norm(names["attention_norm"])
        norm(names["output_norm"])
    linear(architecture.head["transform"], hidden, hidden)
    norm(architecture.head["norm"])
    if not dimensions.tied:
        shapes[f"{architecture.head['decoder']}.weight"] = (dimensions.vocabulary, hidden)
    return shapes


def current_name(name: str) -> str:
    """Give a tensor's name as it is today: old checkpoints call a layer norm's weight gamma and its bias beta."""
    if name.endswith(".gamma"):
        return f"{name[:-6]}.weight"
    if name.endswith(".beta"):
        return f"{name[:-5]}.bias"
    return name


def _broken(problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"The model's config.json cannot be used: {problem}.", reason="MODEL_CONFIG_UNUSABLE"
    )
