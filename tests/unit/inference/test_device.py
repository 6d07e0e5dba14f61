"""The path of CUDA devices: its operations on the processor, and on a device where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForMaskedLM

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.artefacts import open_folder
from termwise.server.inference.base import Encoder, ExpansionConfig, Side
from termwise.server.inference.device import DeviceNetwork, cuda_device, plan_spans
from termwise.server.inference.loader import load_encoder
from termwise.server.inference.splade import SpladeEncoder
from termwise.server.inference.text import open_tokenizer
from termwise.server.inference.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TEXTS = [
    "the cat sat",
    "a b c",
    "the cats sat on the mat " * 12,
    "sat",
    "the <pad> cat",
    "the cat sat on the mat " * 60,
]


def load_generic(folder: Path, config: ExpansionConfig, device: str = "cpu", precision: str = "float32") -> Encoder:
    opened = open_folder(folder)
    network = DeviceNetwork(opened, read_weights(opened), precision, torch.device(device))
    fingerprints = {side: side.value for side in Side}
    return SpladeEncoder(config, open_tokenizer(opened, config), fingerprints, network, precision)


def dense(encoder: Encoder, texts: Sequence[str], side: Side) -> NDArray[np.float32]:
    rows = np.zeros((len(texts), encoder.vocabulary_size), dtype=np.float32)
    for row, expansion in zip(rows, encoder.encode(encoder.tokenize(texts, side), side), strict=True):
        row[expansion.token_ids] = expansion.weights
        assert (np.diff(expansion.weights) <= 0).all()
    return rows


def plain(folder: Path, encoder: Encoder, texts: Sequence[str], side: Side) -> NDArray[np.float32]:
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    rows = []
    with torch.inference_mode():
        for text in encoder.tokenize(texts, side):
            logits = model(input_ids=torch.tensor([list(text.ids)])).logits[0]
            rows.append(torch.log1p(torch.relu(logits)).amax(0).numpy())
    return np.stack(rows)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("bert", {}),
        ("bert", {"tie_word_embeddings": False, "hidden_act": "gelu_new"}),
        ("distilbert", {"activation": "relu"}),
        ("roberta", {}),
        ("xlm-roberta", {}),
        ("mpnet", {"max_position_embeddings": 400}),
        ("electra", {}),
    ],
)
def test_its_operations_equal_plain_transformers(
    make_model: Callable[..., Path], architecture: str, changes: dict[str, Any]
) -> None:
    folder = make_model(architecture, **changes)
    encoder = load_generic(folder, ExpansionConfig(query_prefix="the cat "))
    for side in Side:
        np.testing.assert_allclose(
            dense(encoder, TEXTS, side), plain(folder, encoder, TEXTS, side), atol=1e-4, rtol=1e-4
        )


def test_limits_of_terms_and_weights_hold(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    whole = dense(load_generic(folder, ExpansionConfig()), TEXTS, Side.DOCUMENT)
    few = dense(load_generic(folder, ExpansionConfig(document_max_terms=3)), TEXTS, Side.DOCUMENT)
    assert ((few > 0).sum(1) == np.minimum((whole > 0).sum(1), 3)).all()
    least = float(np.median(whole[whole > 0]))
    heavy = dense(load_generic(folder, ExpansionConfig(min_weight=least)), TEXTS, Side.DOCUMENT)
    np.testing.assert_array_equal(heavy, np.where(whole >= np.float32(least), whole, 0))


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=60).map(sorted))
def test_spans_hold_every_text_once_and_little_padding(lengths: list[int]) -> None:
    spans = plan_spans(lengths)
    assert [place for first, last in spans for place in range(first, last)] == list(range(len(lengths)))
    for first, last in spans:
        assert lengths[last - 1] <= max(lengths[first] * 1.25, lengths[first] + 8)


def test_a_device_that_is_not_there_is_refused_by_name(make_model: Callable[..., Path]) -> None:
    if cuda_device() is None:
        with pytest.raises(FailedPreconditionError, match="device: There is no CUDA device"):
            load_encoder(make_model(), ExpansionConfig(), device="cuda")
    with pytest.raises(FailedPreconditionError, match='device: "tpu" is unknown; use one of auto, cpu, cuda'):
        load_encoder(make_model(), ExpansionConfig(), device="tpu")
    assert load_encoder(make_model(), ExpansionConfig(), device="cpu").device == "cpu"


@pytest.mark.skipif(cuda_device() is None, reason="there is no CUDA device")
@pytest.mark.parametrize(("precision", "least_cosine"), [("float32", 0.99999), ("auto", 0.999)])
def test_a_cuda_device_answers_as_plain_transformers(model_folder: Path, precision: str, least_cosine: float) -> None:
    encoder = load_encoder(model_folder, ExpansionConfig(), precision=precision)
    assert encoder.device == "cuda"
    texts = ["pluto", "is pluto a planet?", "salmon are farmed in net pens along the coast " * 30, "naïve ☃ 北京"]
    for side in Side:
        pairs = zip(dense(encoder, texts, side), plain(model_folder, encoder, texts, side), strict=True)
        for actual, expected in pairs:
            assert actual @ expected / (np.linalg.norm(actual) * np.linalg.norm(expected)) > least_cosine
