"""The identity of a model's sides: what two vectors must share to be comparable."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from termwise.server.inference.architectures import current_name
from termwise.server.inference.base import Side
from termwise.server.inference.files import file_digest
from termwise.server.inference.modules import NetworkPart, OpenedModel, Pooling
from termwise.server.inference.plain_folder import PlainFolder
from termwise.server.inference.static import StaticFolder
from termwise.server.inference.text import resolve_max_tokens

if TYPE_CHECKING:
    from termwise.server.inference.artefacts import ModelFolder
    from termwise.server.inference.base import ExpansionConfig
    from termwise.server.inference.tokenizer_files import TextSource

_LOGARITHMS = {"relu": "log1p", "log1p_relu": "log1p-log1p"}
# Keys of config.json that no vector depends on.
_IDLE = frozenset({"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"})
# Keys of tokenizer_config.json that vocab.txt is read with.
_VOCABULARY_SETTINGS = (
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "unk_token",
    "cls_token",
    "sep_token",
)


def fingerprint_sides(model: OpenedModel, config: ExpansionConfig) -> dict[Side, str]:
    """Give each side's fingerprint. Sides that are encoded alike have the same one.

    It covers the files of the weights, the figures of config.json that the encoder computes with, the tokenizer,
    pooling, `max_tokens`, `min_weight`, and the side's prefix and term limit; of a table, its file. Precision and
    engine are left out: they are the processor's choice, and their drift is within what the check at load allows.
    """
    sides = {
        Side.DOCUMENT: {"prefix": config.document_prefix, "max_terms": config.document_max_terms},
        Side.QUERY: {"prefix": config.query_prefix, "max_terms": config.query_max_terms},
    }
    shared = [_part_facts(part, config) for part in model.parts]
    return {
        side: f"sha256:{_digest({**facts, **own})}"
        for (side, own), facts in zip(sides.items(), shared * (len(sides) // len(shared)), strict=True)
    }


def _part_facts(part: NetworkPart | StaticFolder, config: ExpansionConfig) -> dict[str, Any]:
    """Give what a part's vectors depend on beside its side."""
    folder = part.folder if isinstance(part, NetworkPart) else part
    facts: dict[str, Any] = {
        "tokenizer": _tokenizer_digest(folder),
        "max_tokens": resolve_max_tokens(folder, config),
        "min_weight": config.min_weight,
    }
    if folder.lowercase:
        facts["lowercase"] = True
    if isinstance(part, StaticFolder):
        return facts | {"table": file_digest(part.table)}
    facts |= {"weights": [file_digest(file) for file in part.folder.weights], "pooling": _pooling_name(part.pooling)}
    if part.pooling.muted:
        facts["muted"] = "special"
    if isinstance(part.folder, PlainFolder):
        stated = part.folder.config.items()
        figures = {key: value for key, value in stated if key not in _IDLE and value is not None}
        return facts | {"architecture": part.folder.name, "config": figures}
    return facts | _packed_facts(part.folder)


def _packed_facts(folder: ModelFolder) -> dict[str, Any]:
    dimensions = folder.dimensions
    facts = {
        "architecture": folder.architecture.name,
        "heads": dimensions.heads,
        "activation": dimensions.activation,
        "epsilon": dimensions.epsilon,
        "tied": dimensions.tied,
        "bias": current_name(folder.bias),
    }
    # Only where they differ from BERT's, so that fingerprints from before they were known still hold.
    apart = {
        "position_offset": dimensions.position_offset,
        "relative_buckets": dimensions.relative_buckets,
        "projected": dimensions.projects,
    }
    return facts | {name: value for name, value in apart.items() if value}


def _pooling_name(pooling: Pooling) -> str:
    """Name how a text's logits become weights; another way must get another name."""
    return f"splade-{pooling.strategy}-{_LOGARITHMS[pooling.activation]}-relu"


def _tokenizer_digest(folder: TextSource) -> str:
    """Hash the tokenizer's file without its truncation and padding, which are not used, and without its formatting."""
    if folder.tokenizer[0].name == "tokenizer.json":
        content = json.loads(folder.tokenizer[0].read_bytes())
        return _digest({key: value for key, value in content.items() if key not in {"truncation", "padding"}})
    settings = {key: folder.tokenizer_config.get(key) for key in _VOCABULARY_SETTINGS}
    first, *others = map(file_digest, folder.tokenizer)
    if others:
        settings["add_prefix_space"] = folder.tokenizer_config.get("add_prefix_space")
    return _digest({"vocabulary": first, "settings": settings} | ({"others": others} if others else {}))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
