"""ModernBERT's own path: vectors equal the peer's, whatever of its figures a model sets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SparseEncoder

from byte_pairs import write_byte_pairs
from termwise.server.inference.base import Encoder, ExpansionConfig, Side
from termwise.server.inference.hardware import torch_has_bfloat16
from termwise.server.inference.loader import inspect_model, load_encoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

CONFIG = ExpansionConfig()
TEXTS = ["the cat sat", "a b c the <mask> cafe", "the cats sat on the mat, " * 4, "sat", "cat the sat", "zebra"]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Make the folder of a small random ModernBERT of three layers."""

    def make(**changes: Any) -> Path:
        figures = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
        special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
        shared = {"max_position_embeddings": 128, "local_attention": 8, "initializer_range": 0.2}
        torch.manual_seed(5)
        config = transformers.ModernBertConfig(
            vocab_size=write_byte_pairs(tmp_path), **(figures | special | shared | changes)
        )
        model = transformers.ModernBertForMaskedLM(config)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                # transformers starts them at 0 and 1, where a forgotten one would not be missed.
                if name.endswith("bias") or "norm" in name:
                    tensor.add_(torch.randn_like(tensor) * 0.2)
        model.save_pretrained(tmp_path)
        return tmp_path

    return make


def dense(encoder: Encoder) -> NDArray[np.float32]:
    rows = np.zeros((len(TEXTS), encoder.vocabulary_size), dtype=np.float32)
    for row, expansion in zip(rows, encoder.encode(encoder.tokenize(TEXTS, Side.DOCUMENT), Side.DOCUMENT), strict=True):
        row[expansion.token_ids] = expansion.weights
    return rows


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True},
        {"decoder_bias": False, "tie_word_embeddings": False},
        {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "local_attention": 5},
        {"rope_parameters": {"full_attention": {"rope_theta": 500.0}, "sliding_attention": {"rope_theta": 20.0}}},
        {"hidden_activation": "gelu_new", "classifier_activation": "relu", "norm_eps": 1e-3},
    ],
)
def test_vectors_equal_the_peers(make: Callable[..., Path], changes: dict[str, Any]) -> None:
    folder = make(**changes)
    encoder = load_encoder(folder, CONFIG, device="cpu", precision="float32")
    assert (encoder.engine, encoder.precision) == ("torch", "float32")
    assert inspect_model(folder, CONFIG).architecture == "ModernBertForMaskedLM"
    expected = SparseEncoder(str(folder), device="cpu").encode_document(TEXTS, convert_to_sparse_tensor=False)
    np.testing.assert_allclose(dense(encoder), expected.numpy(), atol=1e-4)


def test_configurations_as_they_were_first_written(make: Callable[..., Path]) -> None:
    folder = make(layer_types=["full_attention", "sliding_attention", "full_attention"])
    expected = dense(load_encoder(folder, CONFIG, device="cpu", precision="float32"))
    edit(folder / "config.json", layer_types=None, rope_parameters=None, global_attn_every_n_layers=2,
         global_rope_theta=160000.0, local_rope_theta=10000.0)  # fmt: skip
    encoder = load_encoder(folder, CONFIG, device="cpu", precision="float32")
    assert encoder.engine == "torch"
    np.testing.assert_allclose(dense(encoder), expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_activation": "silu"},
        {"classifier_activation": "tanh"},
        {"rope_parameters": {"full_attention": {"rope_theta": 9.0, "rope_type": "linear", "factor": 2.0}}},
    ],
)
def test_what_this_path_lacks_runs_on_the_plain_one(make: Callable[..., Path], changes: dict[str, Any]) -> None:
    folder = make(**changes)
    encoder = load_encoder(folder, CONFIG, device="cpu", precision="float32")
    assert encoder.engine == "transformers"
    expected = SparseEncoder(str(folder), device="cpu").encode_document(TEXTS, convert_to_sparse_tensor=False)
    np.testing.assert_allclose(dense(encoder), expected.numpy(), atol=1e-4)


def test_bfloat16(make: Callable[..., Path], tmp_path: Path) -> None:
    if not torch_has_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    folder = make()
    for precision in ("auto", "bfloat16"):
        encoder = load_encoder(folder, CONFIG, device="cpu", precision=precision, cache=tmp_path / "cache")
        assert (encoder.engine, encoder.precision) == ("torch", "bfloat16")
    np.testing.assert_allclose(
        dense(encoder), dense(load_encoder(folder, CONFIG, device="cpu", precision="float32")), atol=0.25
    )
