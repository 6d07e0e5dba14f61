"""The folder of a model that transformers itself runs: which files it must hold, and what they say."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.architectures import ARCHITECTURES, MOST_LAYERS, MOST_TOKENS, architecture_names
from termwise.server.inference.files import find_tokenizer, find_weights, read_json, read_shapes, total_size, unusable
from termwise.server.inference.importing import import_transformers
from termwise.server.inference.layouts import SpecialTokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MODERN_BERT = "ModernBertForMaskedLM"
_FLOAT32_BYTES = 4
# Most positions that a configuration may name: some models make a table of them as they are built.
_MOST_POSITIONS = 1 << 20
_MOST_WIDTH = 1 << 16
_MOST = 1 << 31
_WIDTHS = ("hidden_size", "dim", "d_model", "emb_dim", "n_embd")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
# Kinds of models whose positions begin behind the padding token's number, as RoBERTa's do: transformers' rule.
_OFFSET = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "longformer",
        "luke",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
_WORD_PIECES = frozenset({"BertTokenizer", "BertTokenizerFast"})


@dataclass(frozen=True, slots=True)
class PlainFolder:
    """A model's folder that transformers can load, as far as can be told without doing so.

    `name` is the class that runs it; `weights` are the safetensors files; `longest`: tokens of the longest text that
    there are positions for; `hidden`: width of a layer, 0 where config.json does not say; `weights_bytes`: the size of
    all tensors in float32.
    """

    path: Path
    config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    name: str
    weights: tuple[Path, ...]
    tokenizer: tuple[Path, ...]
    vocabulary: int
    longest: int
    hidden: int
    weights_bytes: int
    lowercase: bool = False
    special: SpecialTokens = field(default_factory=SpecialTokens)

    @property
    def size_bytes(self) -> int:
        """Size of the files that the encoder reads."""
        own = {self.path / "config.json", self.path / "tokenizer_config.json"}
        return total_size({*self.weights, *self.tokenizer, *own})


def open_plain(path: Path, config: dict[str, Any]) -> PlainFolder:
    """Read what the folder of a model says of itself that only transformers runs. Imports transformers.

    Raises:
        FailedPreconditionError: transformers does not know the architecture, it is no masked-token model, a figure is
            absurd, a file is missing or broken, or the weights are a pickle.

    """
    name = _model_class(config)
    _check_figures(config)
    if config.get("quantization_config"):
        raise _broken("its weights are quantized, which is not supported; save it in float32 or bfloat16")
    vocabulary = config.get("vocab_size")
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or not 0 < vocabulary <= MOST_TOKENS:
        raise _broken(f'"vocab_size" is {vocabulary}, and must be 1 to {MOST_TOKENS}')
    weights = find_weights(path)
    shapes = [shape for file in weights for shape in read_shapes(file).values()]
    if not any(vocabulary in shape for shape in shapes):
        raise unusable(f"none of its tensors has {vocabulary} rows, the vocabulary of config.json")
    settings_file = path / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    files: tuple[str, ...] = ("vocab.txt",) if str(settings.get("tokenizer_class")) in _WORD_PIECES else ()
    special = SpecialTokens()
    if name in ARCHITECTURES:  # the fast path lacks something else
        files, special = ARCHITECTURES[name].vocabulary_files, ARCHITECTURES[name].special
    return PlainFolder(
        path=path,
        config=config,
        tokenizer_config=settings,
        name=name,
        weights=weights,
        tokenizer=find_tokenizer(path, files),
        vocabulary=vocabulary,
        longest=_longest(config),
        hidden=next((config[key] for key in _WIDTHS if isinstance(config.get(key), int)), 0),
        weights_bytes=_FLOAT32_BYTES * sum(map(math.prod, shapes)),
        special=special,
    )


def _model_class(config: Mapping[str, Any]) -> str:
    """Give the class by which transformers runs the model with a masked-token head."""
    kind = config.get("model_type")
    stated = architecture_names(config)
    wanted = ", ".join(stated) or f'model type "{kind}"'
    if not isinstance(kind, str):
        raise _unsupported(wanted, 'config.json has no "model_type"')
    if kind == "modernbert" and stated == [MODERN_BERT]:  # its path needs no transformers
        return MODERN_BERT
    classes, kinds = _known_classes()
    if kind not in kinds:
        own = ", and code that comes with a model is never run" if config.get("auto_map") else ""
        raise _unsupported(wanted, f'transformers does not know "{kind}"{own}')
    if kind not in classes:
        raise _unsupported(wanted, "it is not a model that predicts masked tokens")
    if stated and classes[kind] not in stated:
        raise _unsupported(wanted, f"what is needed is a {classes[kind]}, which predicts masked tokens")
    return classes[kind]


@cache
def _known_classes() -> tuple[dict[str, str], frozenset[str]]:
    """Give transformers' classes with a masked-token head by kind of model, and all kinds that it knows."""
    auto = import_transformers().models.auto
    names = auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    classes = {kind: name if isinstance(name, str) else name[0] for kind, name in names.items()}
    return classes, frozenset(auto.configuration_auto.CONFIG_MAPPING_NAMES)


def _check_figures(config: Mapping[str, Any]) -> None:
    """Refuse figures that would have a model built for hours, or out of more memory than there is."""
    for key, value in _figures(config):
        if abs(value) > _MOST or value != value:  # noqa: PLR0124 - not a number
            raise _broken(f'"{key}" is absurd ({value})')
        if "layer" in key and value > MOST_LAYERS:
            raise _broken(f'"{key}" is {value}; the most supported are {MOST_LAYERS}')
        if "position" in key and value > _MOST_POSITIONS:
            raise _broken(f'"{key}" is {value}; the most supported are {_MOST_POSITIONS}')
        if key in _WIDTHS and value > _MOST_WIDTH:
            raise _broken(f'"{key}" is {value}; the most supported is {_MOST_WIDTH}')


def _figures(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _figures(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _figures(inner, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def _longest(config: Mapping[str, Any]) -> int:
    """Give the tokens of the longest text that a model has positions for."""
    for key in _POSITIONS:
        positions = config.get(key)
        if isinstance(positions, int) and positions > 0:
            padding = config.get("pad_token_id")
            offset = (padding if isinstance(padding, int) else 1) + 1 if str(config.get("model_type")) in _OFFSET else 0
            if positions <= offset:
                raise _broken(f'"{key}" leaves no room for a text')
            return positions - offset
    # Nothing but distances between tokens: any length does.
    return _MOST_POSITIONS


def _unsupported(wanted: str, why: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"The model's architecture ({wanted}) is not supported: {why}.",
        reason="ARCHITECTURE_UNSUPPORTED",
        metadata={"architecture": wanted},
    )


def _broken(problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"The model's config.json cannot be used: {problem}.", reason="MODEL_CONFIG_UNUSABLE"
    )
