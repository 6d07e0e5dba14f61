"""A model with random weights and the shape of a real one, to measure speed where the real one is not at hand.

Random logits make half of the vocabulary positive; the vocabulary's bias is moved so that a passage keeps about as many
tokens as SPLADE models keep. Needs numpy and safetensors, which the server brings.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from termwise.client import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

VOCABULARY_SIZE = 30_522
"""Words of BERT's English vocabulary."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PASSAGE_TOKENS = 128
"""Length of the text that the bias is set by."""
KEPT = 175
"""Weighted tokens of a passage: SPLADE and ELSER keep 100 to 200."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Figures of a BertForMaskedLM: layers, width, attention heads and width of the inner product."""

    layers: int
    hidden: int
    heads: int
    intermediate: int


SHAPES = {"minilm": Shape(6, 384, 12, 1536), "bert-base": Shape(12, 768, 12, 3072)}
"""Shapes by the names that people know them by."""


def make_stand_in(folder: Path, shape: Shape, vocabulary: Sequence[str], *, seed: int = 1, kept: int = KEPT) -> Path:
    """Make a model's folder and give it: config.json, vocab.txt, tokenizer_config.json, model.safetensors.

    `vocabulary` holds the words of `SPECIAL`. The same arguments make the same model.
    """
    try:
        import numpy as np  # noqa: PLC0415 - comes with the server
        from safetensors.numpy import save_file  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise FailedPreconditionError("a stand-in needs numpy; run: pip install 'termwise[server]'") from error
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(_config(shape, len(vocabulary))), encoding="utf-8")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 512}))
    random = np.random.default_rng(seed)
    tensors = {name: _values(random, name, size) for name, size in _tensors(shape, len(vocabulary)).items()}
    passage = random.integers(len(SPECIAL), len(vocabulary), min(PASSAGE_TOKENS, 512))
    largest = _largest_logits(tensors, shape, passage)
    share = min(kept, len(vocabulary) // 2) / len(vocabulary)
    tensors["cls.predictions.bias"] -= np.float32(np.quantile(largest, 1 - share))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_vocabulary(texts: Iterable[str], size: int = VOCABULARY_SIZE) -> list[str]:
    """Make a vocabulary of texts' own words, the frequent ones first, that can spell every other word by characters."""
    counts = Counter(word for text in texts for word in re.findall(r"[a-z]+|\d|[^\w\s]", text.lower()))
    characters = sorted({each for word in counts for each in word} | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    words = [*SPECIAL, *characters, *(f"##{each}" for each in characters if each.isalnum())]
    words += [word for word, _ in counts.most_common() if len(word) > 1]
    words += [f"[unused{number}]" for number in range(size - len(words))]
    return words[:size]


def _config(shape: Shape, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "tie_word_embeddings": True,
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
    }


def _tensors(shape: Shape, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Give the tensors of a BertForMaskedLM and their shapes."""
    hidden, inner = shape.hidden, shape.intermediate
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (rows, columns), (rows,)

    def norm(name: str) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (hidden,)

    for name, rows in (("word", vocabulary), ("position", 512), ("token_type", 2)):
        found[f"bert.embeddings.{name}_embeddings.weight"] = (rows, hidden)
    norm("bert.embeddings.LayerNorm")
    for number in range(shape.layers):
        layer = f"bert.encoder.layer.{number}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, hidden)
        linear(f"{layer}.output.dense", hidden, inner)
        norm(f"{layer}.output.LayerNorm")
    linear("cls.predictions.transform.dense", hidden, hidden)
    norm("cls.predictions.transform.LayerNorm")
    found["cls.predictions.bias"] = (vocabulary,)
    return found


def _values(random: Any, name: str, size: tuple[int, ...]) -> Any:
    """Draw a tensor as BERT starts: a normal distribution of deviation 0.02; norms are ones, biases zeros."""
    if name.endswith("LayerNorm.weight"):
        return random.standard_normal(size, dtype="float32") * 0.02 + 1
    if len(size) == 1:
        return random.standard_normal(size, dtype="float32") * 0.02
    # Wider than 0.02 inside, so that texts differ in their logits as those of a trained model do.
    deviation = 0.02 if "embeddings" in name else 1.0 / size[1] ** 0.5
    return random.standard_normal(size, dtype="float32") * deviation


def _largest_logits(tensors: dict[str, Any], shape: Shape, ids: Any) -> Any:
    """Give each vocabulary token's largest logit over a text's tokens `[length]`: BERT in plain numpy."""
    import numpy as np  # noqa: PLC0415 - comes with the server

    length, width = len(ids), shape.hidden // shape.heads

    def linear(name: str, x: Any) -> Any:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name: str, x: Any) -> Any:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def heads(x: Any) -> Any:
        return x.reshape(length, shape.heads, width).transpose(1, 0, 2)

    def gelu(x: Any) -> Any:
        return x / (1 + np.exp(-1.702 * x))

    embeddings = "bert.embeddings"
    x = tensors[f"{embeddings}.word_embeddings.weight"][ids] + tensors[f"{embeddings}.token_type_embeddings.weight"][0]
    x = norm(f"{embeddings}.LayerNorm", x + tensors[f"{embeddings}.position_embeddings.weight"][:length])
    for number in range(shape.layers):
        layer = f"bert.encoder.layer.{number}"
        query, key, value = (heads(linear(f"{layer}.attention.self.{part}", x)) for part in ("query", "key", "value"))
        scores = query @ key.transpose(0, 2, 1) / width**0.5
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ value
        mixed = mixed.transpose(1, 0, 2).reshape(length, shape.hidden)
        x = norm(f"{layer}.attention.output.LayerNorm", x + linear(f"{layer}.attention.output.dense", mixed))
        inner = linear(f"{layer}.output.dense", gelu(linear(f"{layer}.intermediate.dense", x)))
        x = norm(f"{layer}.output.LayerNorm", x + inner)
    head = "cls.predictions.transform"
    x = norm(f"{head}.LayerNorm", gelu(linear(f"{head}.dense", x)))
    return (x @ tensors[f"{embeddings}.word_embeddings.weight"].T + tensors["cls.predictions.bias"]).max(0)
