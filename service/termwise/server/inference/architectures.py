"""What a model's config.json says: which of the architectures it is, its figures, and the tensors that it must have.

Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.layouts import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ACTIVATIONS",
    "ARCHITECTURES",
    "MOST_LAYERS",
    "MOST_TOKENS",
    "RELATIVE_BUCKETS",
    "Architecture",
    "Dimensions",
    "current_name",
    "find_architecture",
    "packed_architecture",
    "read_dimensions",
    "tensor_shapes",
]

# Activations that oneDNN fuses into a product, as (its name, its algorithm), by their names in a model's config.json.
ACTIVATIONS = {
    "gelu": ("gelu", "none"),
    "gelu_python": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}
# The architecture of a kind of model where config.json names none.
_KINDS = {
    "bert": "BertForMaskedLM",
    "camembert": "CamembertForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "electra": "ElectraForMaskedLM",
    "mpnet": "MPNetForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "xlm-roberta": "XLMRobertaForMaskedLM",
}
# Most tokens of a vocabulary, and most layers: more than any model has (XLM-V has 901,629 tokens), few enough that
# what is made of them before the weights are seen to differ takes no memory to speak of.
MOST_TOKENS = 1 << 20
MOST_LAYERS = 1024
_MOST_FIGURE = 1 << 24
_MOST = {"vocabulary": MOST_TOKENS, "layers": MOST_LAYERS}
# Buckets of distances, by MPNet's rule, which transformers fixes whatever config.json says.
RELATIVE_BUCKETS = 32


@dataclass(frozen=True, slots=True)
class Dimensions:
    """A model's figures, in one set of words.

    `epsilon` is that of its layer norms; `tied`: the decoder's matrix is the embedding's; `types`: how many kinds of
    segments it tells apart, 0 where it tells none. What sets an architecture apart from BERT:

    `embedding`: width of the embeddings and of the decoder, `hidden` where nothing projects between them.
    `position_offset`: the position of a text's first token. Where it is not 0, the padding token (number
    `position_offset - 1`), should a text hold it, stands at its own number and is not counted (transformers' rule).
    `relative_buckets`: rows of the table of biases by distance that all layers add to attention; 0 where there is none.
    `head_activation`: the activation in the head.
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
    embedding: int
    head_activation: str
    types: int = 0
    position_offset: int = 0
    relative_buckets: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest text that there are positions for."""
        return self.positions - self.position_offset

    @property
    def projects(self) -> bool:
        """Whether a product stands between the embeddings and the first layer."""
        return self.embedding != self.hidden


def packed_architecture(config: Mapping[str, Any]) -> Architecture | None:
    """Give the architecture by which the fast path runs a model; None where it does not.

    It knows the names that config.json states, or the kind where it states none, and the activation.
    """
    names = architecture_names(config) or [_KINDS.get(str(config.get("model_type")), "")]
    found = next((ARCHITECTURES[name] for name in names if name in ARCHITECTURES), None)
    if found is None:
        return None
    activation = config.get(found.dimensions["activation"], found.defaults.get("activation"))
    return found if str(activation) in ACTIVATIONS else None


def architecture_names(config: Mapping[str, Any]) -> list[str]:
    """Give the architectures that a config.json names."""
    stated = config.get("architectures")
    return [str(name) for name in stated] if isinstance(stated, list) else []


def find_architecture(config: Mapping[str, Any]) -> Architecture:
    """Give the architecture that a model's config.json names.

    Raises:
        FailedPreconditionError: it names none, or one that is not supported.

    """
    names = architecture_names(config)
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
    figures = _read_figures(architecture, config)
    figures.setdefault("embedding", figures["hidden"])
    dimensions = Dimensions(
        tied=config.get("tie_word_embeddings") is not False,
        head_activation=architecture.head_activation or figures["activation"],
        position_offset=_position_offset(architecture, config),
        **figures,
    )
    if dimensions.longest <= 0:
        raise _broken('"max_position_embeddings" leaves no room for a text')
    if 0 < dimensions.relative_buckets < RELATIVE_BUCKETS:
        raise _broken(f'"relative_attention_num_buckets" is below {RELATIVE_BUCKETS}, which is not supported')
    if dimensions.hidden % dimensions.heads:
        raise _broken("its attention heads do not divide its hidden size")
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise _broken("it needs relative positions or is a decoder, which is not supported")
    return dimensions


def _read_figures(architecture: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = dict(architecture.defaults)
    for name, key in architecture.dimensions.items():
        if config.get(key) is not None:
            figures[name] = config[key]
    for name, key in architecture.dimensions.items():
        value = figures.get(name)
        if name == "activation":
            if str(value) not in ACTIVATIONS:
                raise _broken(f'its activation "{value}" is not supported; supported are {", ".join(ACTIVATIONS)}')
        elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise _broken(f'"{key}" is missing or not a positive number')
        elif name != "epsilon":
            if not float(value).is_integer():  # nor infinite, nor NaN
                raise _broken(f'"{key}" is not a whole number')
            figures[name] = int(value)
            if value > _MOST.get(name, _MOST_FIGURE):
                raise _broken(f'"{key}" is {int(value)}; the most supported are {_MOST.get(name, _MOST_FIGURE)}')
    return figures


def _position_offset(architecture: Architecture, config: Mapping[str, Any]) -> int:
    if architecture.padding is None:
        return 0
    padding = config.get(architecture.padding_key)
    if padding is None:
        padding = architecture.padding
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise _broken(f'"{architecture.padding_key}" is not the number of a token')
    return padding + 1


def tensor_shapes(architecture: Architecture, dimensions: Dimensions) -> dict[str, tuple[int, ...]]:
    """Give the tensors that a model must have, and their shapes.

    The vocabulary bias has several names and is not here.
    """
    hidden, intermediate, embedding = dimensions.hidden, dimensions.intermediate, dimensions.embedding
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        shapes[f"{name}.bias"] = (rows,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    names = architecture.embeddings
    shapes[f"{names['word']}.weight"] = (dimensions.vocabulary, embedding)
    shapes[f"{names['position']}.weight"] = (dimensions.positions, embedding)
    if "type" in names:
        shapes[f"{names['type']}.weight"] = (dimensions.types, embedding)
    if "relative" in names:
        shapes[f"{names['relative']}.weight"] = (dimensions.relative_buckets, dimensions.heads)
    if dimensions.projects:
        linear(names["project"], hidden, embedding)
    norm(names["norm"], embedding)
    for number in range(dimensions.layers):
        parts = {part: name.format(layer=number) for part, name in architecture.layer.items()}
        for part in ("query", "key", "value", "attention"):
            linear(parts[part], hidden, hidden)
        linear(parts["intermediate"], intermediate, hidden)
        linear(parts["output"], hidden, intermediate)
        norm(parts["attention_norm"], hidden)
        norm(parts["output_norm"], hidden)
    linear(architecture.head["transform"], embedding, hidden)
    norm(architecture.head["norm"], embedding)
    if not dimensions.tied:
        shapes[f"{architecture.head['decoder']}.weight"] = (dimensions.vocabulary, embedding)
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
