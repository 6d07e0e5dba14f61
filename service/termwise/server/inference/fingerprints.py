"""The identity of a model's sides: what two vectors must share to be comparable."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from termwise.server.inference.architectures import current_name
from termwise.server.inference.base import Side
from termwise.server.inference.text import resolve_max_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from termwise.server.inference.artefacts import ModelFolder
    from termwise.server.inference.base import ExpansionConfig

# Names how a text's logits become weights; another way must get another name.
_POOLING = "splade-max-log1p-relu"
# Keys of tokenizer_config.json that vocab.txt is read with.
_VOCABULARY_SETTINGS = (
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "unk_token",
    "cls_token",
    "sep_token",
)


def fingerprint_sides(folder: ModelFolder, config: ExpansionConfig) -> dict[Side, str]:
    """Give each side's fingerprint. Sides that are encoded alike have the same one.

    It covers the files of the weights, the figures of config.json that the encoder computes with, the tokenizer,
    pooling, `max_tokens`, `min_weight`, and the side's prefix and term limit. Precision is left out: it is the
    processor's choice, and its drift is within what the check at load allows.
    """
    dimensions = folder.dimensions
    shared = {
        "weights": [_file_digest(file) for file in folder.weights],
        "architecture": folder.architecture.name,
        "heads": dimensions.heads,
        "activation": dimensions.activation,
        "epsilon": dimensions.epsilon,
        "tied": dimensions.tied,
        "bias": current_name(folder.bias),
        "tokenizer": _tokenizer_digest(folder),
        "pooling": _POOLING,
        "max_tokens": resolve_max_tokens(folder, config),
        "min_weight": config.min_weight,
    }
    # Only where they differ from BERT's, so that fingerprints from before they were known still hold.
    apart = {
        "position_offset": dimensions.position_offset,
        "relative_buckets": dimensions.relative_buckets,
        "projected": dimensions.projects,
    }
    shared |= {name: value for name, value in apart.items() if value}
    sides = {
        Side.DOCUMENT: {"prefix": config.document_prefix, "max_terms": config.document_max_terms},
        Side.QUERY: {"prefix": config.query_prefix, "max_terms": config.query_max_terms},
    }
    return {side: f"sha256:{_digest({**shared, **own})}" for side, own in sides.items()}


def _tokenizer_digest(folder: ModelFolder) -> str:
    """Hash the tokenizer's file without its truncation and padding, which are not used, and without its formatting."""
    if folder.tokenizer[0].name == "tokenizer.json":
        content = json.loads(folder.tokenizer[0].read_bytes())
        return _digest({key: value for key, value in content.items() if key not in {"truncation", "padding"}})
    settings = {key: folder.tokenizer_config.get(key) for key in _VOCABULARY_SETTINGS}
    first, *others = map(_file_digest, folder.tokenizer)
    if others:
        settings["add_prefix_space"] = folder.tokenizer_config.get("add_prefix_space")
    return _digest({"vocabulary": first, "settings": settings} | ({"others": others} if others else {}))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
