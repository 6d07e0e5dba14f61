"""Where each architecture keeps its figures and its weights: what differs between them is data, not code.

A new architecture is a new `Architecture`, as long as it is a stack of post-norm transformer layers under a
masked-token head. Nothing here needs torch. The names and the fixed figures are those of transformers' model classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The names of special tokens where tokenizer_config.json does not say otherwise."""

    classify: str = "[CLS]"
    separate: str = "[SEP]"
    unknown: str = "[UNK]"
    padding: str = "[PAD]"
    mask: str = "[MASK]"


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where a kind of model keeps its figures and its weights.

    `dimensions` maps the fields of `Dimensions` to keys of config.json. `embeddings`, `layer` and `head` map the parts
    of the packed encoder to names of tensors without their `.weight` and `.bias`; a layer's names hold `{layer}`. An
    architecture that has a `project` or `relative` among its embeddings has that part too.
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
    # The head's activation where it is fixed; None: that of the layers.
    head_activation: str | None = None
    # The id of the padding token, behind whose number positions begin; None: they begin at 0.
    padding: int | None = None
    # The key of config.json that may give another; "": it is fixed.
    padding_key: str = ""
    # Files that a tokenizer is made of where tokenizer.json is missing: vocab.txt for WordPiece; vocab.json and
    # merges.txt for pairs of bytes; none where only tokenizer.json will do.
    vocabulary_files: tuple[str, ...] = ("vocab.txt",)
    special: SpecialTokens = field(default_factory=SpecialTokens)


_FIGURES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "activation": "hidden_act",
    "epsilon": "layer_norm_eps",
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
}
_DEFAULTS = {"activation": "gelu", "epsilon": 1e-12}
_ANGLED = SpecialTokens("<s>", "</s>", "<unk>", "<pad>", "<mask>")


def _bert_embeddings(prefix: str) -> dict[str, str]:
    return {
        "word": f"{prefix}.embeddings.word_embeddings",
        "position": f"{prefix}.embeddings.position_embeddings",
        "type": f"{prefix}.embeddings.token_type_embeddings",
        "norm": f"{prefix}.embeddings.LayerNorm",
    }


def _bert_layer(prefix: str) -> dict[str, str]:
    layer = f"{prefix}.encoder.layer.{{layer}}"
    return {
        "query": f"{layer}.attention.self.query",
        "key": f"{layer}.attention.self.key",
        "value": f"{layer}.attention.self.value",
        "attention": f"{layer}.attention.output.dense",
        "attention_norm": f"{layer}.attention.output.LayerNorm",
        "intermediate": f"{layer}.intermediate.dense",
        "output": f"{layer}.output.dense",
        "output_norm": f"{layer}.output.LayerNorm",
    }


_BERT = Architecture(
    name="BertForMaskedLM",
    dimensions={**_FIGURES, "types": "type_vocab_size"},
    embeddings=_bert_embeddings("bert"),
    layer=_bert_layer("bert"),
    head={
        "transform": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "decoder": "cls.predictions.decoder",
    },
    bias=("cls.predictions.bias", "cls.predictions.decoder.bias"),
    defaults={**_DEFAULTS, "types": 2},
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
    defaults=_DEFAULTS,
)

_ROBERTA = Architecture(
    name="RobertaForMaskedLM",
    dimensions={**_FIGURES, "types": "type_vocab_size"},
    embeddings=_bert_embeddings("roberta"),
    layer=_bert_layer("roberta"),
    head={"transform": "lm_head.dense", "norm": "lm_head.layer_norm", "decoder": "lm_head.decoder"},
    bias=("lm_head.bias", "lm_head.decoder.bias"),
    defaults={**_DEFAULTS, "types": 2},
    head_activation="gelu",
    padding=1,
    padding_key="pad_token_id",
    vocabulary_files=("vocab.json", "merges.txt"),
    special=_ANGLED,
)

# RoBERTa's shape and names; their tokenizers come as tokenizer.json (SentencePiece's own file is not read).
_XLM_ROBERTA = replace(_ROBERTA, name="XLMRobertaForMaskedLM", vocabulary_files=())
_CAMEMBERT = replace(_ROBERTA, name="CamembertForMaskedLM", vocabulary_files=())

_MPNET = Architecture(
    name="MPNetForMaskedLM",
    dimensions={**_FIGURES, "relative_buckets": "relative_attention_num_buckets"},
    embeddings={
        "word": "mpnet.embeddings.word_embeddings",
        "position": "mpnet.embeddings.position_embeddings",
        "norm": "mpnet.embeddings.LayerNorm",
        "relative": "mpnet.encoder.relative_attention_bias",
    },
    layer={
        "query": "mpnet.encoder.layer.{layer}.attention.attn.q",
        "key": "mpnet.encoder.layer.{layer}.attention.attn.k",
        "value": "mpnet.encoder.layer.{layer}.attention.attn.v",
        "attention": "mpnet.encoder.layer.{layer}.attention.attn.o",
        "attention_norm": "mpnet.encoder.layer.{layer}.attention.LayerNorm",
        "intermediate": "mpnet.encoder.layer.{layer}.intermediate.dense",
        "output": "mpnet.encoder.layer.{layer}.output.dense",
        "output_norm": "mpnet.encoder.layer.{layer}.output.LayerNorm",
    },
    head={"transform": "lm_head.dense", "norm": "lm_head.layer_norm", "decoder": "lm_head.decoder"},
    bias=("lm_head.bias", "lm_head.decoder.bias"),
    defaults={**_DEFAULTS, "relative_buckets": 32},
    head_activation="gelu",
    # transformers fixes it in its code.
    padding=1,
    special=replace(_ANGLED, unknown="[UNK]"),
)

_ELECTRA = Architecture(
    name="ElectraForMaskedLM",
    dimensions={**_FIGURES, "types": "type_vocab_size", "embedding": "embedding_size"},
    embeddings={**_bert_embeddings("electra"), "project": "electra.embeddings_project"},
    layer=_bert_layer("electra"),
    head={
        "transform": "generator_predictions.dense",
        "norm": "generator_predictions.LayerNorm",
        "decoder": "generator_lm_head",
    },
    bias=("generator_lm_head.bias",),
    defaults={**_DEFAULTS, "types": 2, "embedding": 128},
    head_activation="gelu",
)

ARCHITECTURES = {each.name: each for each in (_BERT, _DISTILBERT, _ROBERTA, _XLM_ROBERTA, _CAMEMBERT, _MPNET, _ELECTRA)}
