from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from default_model import fetch_default_model
from termwise.server.inference.base import Encoder, ExpansionConfig
from termwise.server.inference.hardware import has_bfloat16
from termwise.server.inference.loader import load_encoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "the", "cat", "sat", "##s", "mat", "caf", "##e"]


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return fetch_default_model()


@pytest.fixture(scope="session")
def parity_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="session")
def encoder(model_folder: Path, parity_cache: Path) -> Encoder:
    """Load the default model in float32."""
    return load_encoder(model_folder, ExpansionConfig(), precision="float32", cache=parity_cache)


@pytest.fixture(scope="session")
def bfloat16_encoder(model_folder: Path, parity_cache: Path) -> Encoder:
    if not has_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    return load_encoder(model_folder, ExpansionConfig(), precision="bfloat16", cache=parity_cache)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make the folder of a small random model of an architecture, with a vocab.txt of 40 tokens."""

    def make(architecture: str = "bert", **changes: Any) -> Path:
        import torch  # noqa: PLC0415
        from transformers import (  # noqa: PLC0415
            BertConfig,
            BertForMaskedLM,
            DistilBertConfig,
            DistilBertForMaskedLM,
        )

        tokens = _TOKENS + [f"w{number}" for number in range(40 - len(_TOKENS))]
        torch.manual_seed(7)
        shared = {"vocab_size": len(tokens), "max_position_embeddings": 100, "initializer_range": 0.6} | changes
        if architecture == "bert":
            figures = {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 48,
            }
            model: Any = BertForMaskedLM(BertConfig(**(figures | shared)))
        else:
            figures = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
            model = DistilBertForMaskedLM(DistilBertConfig(**(figures | shared)))
        folder = tmp_path_factory.mktemp(architecture)
        model.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}), encoding="utf-8")
        return folder

    return make
