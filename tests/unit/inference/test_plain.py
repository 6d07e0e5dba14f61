"""Models that only transformers itself runs: vectors equal the peer's, and what cannot be run is refused in words."""

from __future__ import annotations

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import SparseEncoder

from byte_pairs import write_byte_pairs
from termwise.server.errors import FailedPreconditionError
from termwise.server.inference import plain_network
from termwise.server.inference.base import Encoder, ExpansionConfig, Side
from termwise.server.inference.hardware import torch_has_bfloat16
from termwise.server.inference.loader import inspect_model, load_encoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

CONFIG = ExpansionConfig()
TEXTS = ["the cat sat", "a b c the <mask> cafe", "the cats sat on the mat, " * 5, "sat", "cat the sat", "zebra"]
_FIGURES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_SHARED = {"max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 1}
_KINDS: dict[str, dict[str, Any]] = {
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    "Albert": {"embedding_size": 24},
    "XLMRobertaXL": {},
    "MobileBert": {"embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32},
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            size = write_byte_pairs(folder)
            figures = _FIGURES | _SHARED | _KINDS[kind]
            torch.manual_seed(5)
            config = getattr(transformers, f"{kind}Config")(vocab_size=size, **figures)
            getattr(transformers, f"{kind}ForMaskedLM")(config).save_pretrained(folder)
            made[kind] = folder
        return made[kind]

    return make


@pytest.fixture
def folder(make: Callable[[str], Path], tmp_path: Path) -> Path:
    """Copy a small DeBERTa, so that a test may break it."""
    return shutil.copytree(make("DebertaV2"), tmp_path / "model")


def dense(encoder: Encoder, texts: list[str] = TEXTS) -> NDArray[np.float32]:
    rows = np.zeros((len(texts), encoder.vocabulary_size), dtype=np.float32)
    expansions = encoder.encode(encoder.tokenize(texts, Side.DOCUMENT), Side.DOCUMENT)
    for row, expansion in zip(rows, expansions, strict=True):
        row[expansion.token_ids] = expansion.weights
    return rows


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))


@pytest.mark.parametrize("kind", _KINDS)
def test_vectors_equal_the_peers(make: Callable[[str], Path], kind: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = make(kind)
    facts = inspect_model(folder, CONFIG)
    assert (facts.architecture, facts.layout) == (f"{kind}ForMaskedLM", "transformers")
    assert facts.longest == 128 - 2 * (kind == "XLMRobertaXL")
    assert facts.hidden == 32
    parameters = transformers.AutoModelForMaskedLM.from_pretrained(folder).num_parameters()
    assert facts.weights_bytes == pytest.approx(4 * parameters, rel=0.1)
    with caplog.at_level("INFO"):
        encoder = load_encoder(folder, CONFIG, device="cpu")
    assert (encoder.engine, encoder.precision, encoder.device) == ("transformers", "float32", "cpu")
    assert "there is no faster path for it" in caplog.text
    assert encoder.fingerprint(Side.QUERY) == facts.fingerprint
    # In a batch of texts of many lengths, padded and masked.
    expected = SparseEncoder(str(folder), device="cpu").encode_document(TEXTS, convert_to_sparse_tensor=False)
    np.testing.assert_allclose(dense(encoder), expected.numpy(), atol=1e-4)


def test_a_head_in_many_parts_gives_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dense(load_encoder(folder, CONFIG))
    monkeypatch.setattr(plain_network, "_LOGITS_BYTES", 1)
    monkeypatch.setattr(plain_network, "_LEAST_CHUNK", 7)
    np.testing.assert_allclose(dense(load_encoder(folder, CONFIG)), expected, atol=1e-5)


def test_logits_that_cannot_be_cut_and_are_too_many_are_refused(
    make: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_network, "_WHOLE_LOGITS_BYTES", 40_000)
    with pytest.raises(FailedPreconditionError, match="set a smaller max_tokens"):
        load_encoder(make("MobileBert"), CONFIG)
    assert load_encoder(make("MobileBert"), ExpansionConfig(max_tokens=30)).engine == "transformers"


@pytest.mark.parametrize("kind", ["Albert", "DebertaV2"])
def test_several_threads_share_one(make: Callable[[str], Path], kind: str) -> None:
    encoder = load_encoder(make(kind), CONFIG)
    batches = [[text] for text in TEXTS * 4] + [TEXTS[::-1], TEXTS * 2]
    expected = [dense(encoder, batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        for alone, together in zip(expected, threads.map(lambda batch: dense(encoder, batch), batches), strict=True):
            np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_kept_verdict_is_believed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dense(load_encoder(folder, CONFIG, cache=tmp_path))
    monkeypatch.delattr(plain_network.PlainNetwork, "run_whole")
    np.testing.assert_array_equal(dense(load_encoder(folder, CONFIG, cache=tmp_path)), expected)


def test_precisions(folder: Path) -> None:
    with pytest.raises(FailedPreconditionError, match=r"^precision: .* does not compute in int8; use AUTO or FLOAT32"):
        load_encoder(folder, CONFIG, precision="int8")
    if not torch_has_bfloat16():
        with pytest.raises(FailedPreconditionError, match=r"^precision: This processor does not compute in bfloat16"):
            load_encoder(folder, CONFIG, precision="bfloat16")
        return
    encoder = load_encoder(folder, CONFIG, precision="bfloat16")
    assert encoder.precision == "bfloat16"
    np.testing.assert_allclose(dense(encoder), dense(load_encoder(folder, CONFIG)), atol=0.25)


def test_fingerprint_covers_the_configuration(folder: Path) -> None:
    base = inspect_model(folder, CONFIG).fingerprint
    edit(folder / "config.json", transformers_version="9", dtype="float16")
    assert inspect_model(folder, CONFIG).fingerprint == base
    edit(folder / "config.json", position_buckets=8)
    assert inspect_model(folder, CONFIG).fingerprint != base


def test_lacking_tensors_are_not_made_up(folder: Path) -> None:
    file, lacking = folder / "model.safetensors", "cls.predictions.transform.dense.weight"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != lacking}, file)
    with pytest.raises(FailedPreconditionError, match=f'lack the tensor "{re.escape(lacking)}"'):
        load_encoder(folder, CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 3_000_000}, '"vocab_size" is 3000000, and must be 1 to 1048576'),
        ({"vocab_size": "many"}, '"vocab_size" is many'),
        ({"vocab_size": 500}, "none of its tensors has 500 rows"),
        ({"num_hidden_layers": 10**9}, '"num_hidden_layers" is 1000000000; the most supported are 1024'),
        ({"hidden_size": 10**9}, '"hidden_size" is 1000000000; the most supported is 65536'),
        ({"max_position_embeddings": 10**9}, '"max_position_embeddings" is 1000000000; the most'),
        ({"intermediate_size": 10**30}, '"intermediate_size" is absurd'),
        ({"layer_norm_eps": float("inf")}, '"layer_norm_eps" is absurd'),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "weights are quantized"),
        ({"architectures": ["DebertaV2Model"]}, "what is needed is a DebertaV2ForMaskedLM"),
        ({"model_type": "no-such-model"}, 'transformers does not know "no-such-model"'),
    ],
)
def test_absurd_configurations_are_explained(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder / "config.json", **changes)
    start = time.process_time()
    with pytest.raises(FailedPreconditionError, match=message):
        inspect_model(folder, CONFIG)
    assert time.process_time() - start < 10


def test_a_model_far_larger_than_its_files_is_not_built(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=10**9, num_hidden_layers=100)
    with pytest.raises(FailedPreconditionError, match=r"config\.json describes a model of \d{12,} parameters"):
        load_encoder(folder, CONFIG)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "spiece.model")
    with pytest.raises(FailedPreconditionError, match=r"tokenizer\.json is missing; make it by loading the tokenizer"):
        inspect_model(folder, CONFIG)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FailedPreconditionError, match=r"a pickle \(pytorch_model\.bin\).*calling save_pretrained"):
        inspect_model(folder, CONFIG)


@pytest.mark.parametrize(("architecture", "name"), [("bert", "vocab.txt"), ("roberta", "vocab.json")])
def test_a_vocabulary_of_three_million_is_refused_at_once(
    make_model: Callable[..., Path], tmp_path: Path, architecture: str, name: str
) -> None:
    folder = shutil.copytree(make_model(architecture), tmp_path / "model")
    (folder / name).write_text(("word\n" if name.endswith("txt") else '"w":0,') * 3_000_000)
    start = time.process_time()
    with pytest.raises(FailedPreconditionError, match=r"knows 3000000 tokens and its weights 40"):
        inspect_model(folder, CONFIG)
    assert time.process_time() - start < 10


def test_a_huge_tokenizer_is_refused_unread(folder: Path) -> None:
    with (folder / "tokenizer.json").open("ab") as stream:
        stream.truncate(97 * 1024 * 1024)
    with pytest.raises(FailedPreconditionError, match=r"tokenizer\.json is larger than 96 MiB"):
        inspect_model(folder, CONFIG)


_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_JSON = st.recursive(_VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@given(value=_JSON, name=st.sampled_from(["config.json", "tokenizer_config.json"]), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_configuration_holds_is_read_or_refused(
    folder: Path, value: Any, name: str, data: st.DataObject
) -> None:
    whole = (folder / name).read_text()
    content = json.loads(whole)
    content[data.draw(st.sampled_from(sorted(content)))] = value
    (folder / name).write_text(json.dumps(content))
    try:
        facts = inspect_model(folder, CONFIG)
    except FailedPreconditionError as error:
        assert error.message.endswith(".")  # noqa: PT017
    else:
        assert facts.vocabulary_size == 267
    finally:
        (folder / name).write_text(whole)
