"""What a model's folder must hold, what its fingerprint covers, and the check against plain transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file, save_file

from termwise.server.errors import FailedPreconditionError, InvalidArgumentError
from termwise.server.inference.architectures import ACTIVATIONS
from termwise.server.inference.base import ExpansionConfig, Side
from termwise.server.inference.hardware import has_amx, has_bfloat16
from termwise.server.inference.loader import inspect_model, load_encoder
from termwise.server.inference.native.library import best_level
from termwise.server.inference.native.network import NativeNetwork
from termwise.server.inference.torch_network import TorchNetwork
from termwise.server.settings import KERNEL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONFIG = ExpansionConfig()


@pytest.fixture
def folder(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    """Copy a small model, so that a test may break it."""
    return shutil.copytree(make_model(), tmp_path / "model")


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))


def test_facts_of_the_default_model(model_folder: Path) -> None:
    facts = inspect_model(model_folder, CONFIG)
    assert facts.architecture == "BertForMaskedLM"
    assert facts.vocabulary_size == 30522
    assert facts.size_bytes > 17_671_552
    # Indices are bound to it: another one would make them refuse the model.
    assert facts.fingerprint == "sha256:d6062ef5b4343349ef69ad784b87d4547027b775ac055d66d11c663f8fd744e4"
    assert facts.query_fingerprint == facts.fingerprint
    assert not facts.sides_differ
    assert (facts.layout, facts.longest, facts.hidden) == ("transformers", 512, 128)
    assert 17_000_000 < facts.weights_bytes <= facts.size_bytes


def test_fingerprints_of_the_default_model_with_settings(model_folder: Path) -> None:
    config = ExpansionConfig(max_tokens=128, query_prefix="q: ", document_max_terms=100, min_weight=0.1)
    facts = inspect_model(model_folder, config)
    assert facts.fingerprint == "sha256:5dd3b72c59841e7b8c0f4c4cdb50cc6835f6b349343399aac8438dbe3869c668"
    assert facts.query_fingerprint == "sha256:601039a8ac774584f3f6aa3a743e5f9bf8937adbb434e7f06a62a6c93b68cfd3"
    assert facts.sides_differ
    assert facts.longest == 128


def test_inspection_batcher_and_fake_do_not_import_torch(model_folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from termwise.server.inference import batcher, fake\n"
        "from termwise.server.inference.base import ExpansionConfig\n"
        "from termwise.server.inference.loader import inspect_model\n"
        "inspect_model(Path(sys.argv[1]), ExpansionConfig())\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(model_folder)], check=True)


@pytest.mark.skipif(best_level() is None or has_amx(), reason="torch computes here, or is compared with")
def test_a_model_whose_verdict_is_kept_loads_and_runs_without_torch_and_transformers(
    model_folder: Path, tmp_path: Path
) -> None:
    load_encoder(model_folder, ExpansionConfig(), cache=tmp_path, device="cpu")
    code = (
        "import sys; from pathlib import Path\n"
        "from termwise.server.inference.base import ExpansionConfig, Side\n"
        "from termwise.server.inference.loader import load_encoder\n"
        "encoder = load_encoder(Path(sys.argv[1]), ExpansionConfig(), cache=Path(sys.argv[2]), device='cpu')\n"
        "encoder.encode(encoder.tokenize(['is pluto a planet?'], Side.QUERY), Side.QUERY)\n"
        "sys.exit(', '.join({'torch', 'transformers'} & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(model_folder), str(tmp_path)], check=True)


@pytest.mark.slow  # two imports of transformers
def test_two_threads_may_load_their_first_models_at_the_same_time(make_model: Callable[..., Path]) -> None:
    code = (
        "import sys; from concurrent.futures import ThreadPoolExecutor; from pathlib import Path\n"
        "from termwise.server.inference.plain import load_model\n"
        "with ThreadPoolExecutor() as threads: list(threads.map(load_model, [Path(sys.argv[1])] * 2))"
    )
    subprocess.run([sys.executable, "-c", code, str(make_model())], check=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "model.safetensors is missing"),
        ("vocab.txt", "tokenizer.json is missing"),
    ],
)
def test_missing_file_is_named(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FailedPreconditionError, match=message):
        inspect_model(folder, CONFIG)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="folder does not exist"):
        inspect_model(tmp_path / "nowhere", CONFIG)


def test_pickle_is_refused_by_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FailedPreconditionError, match=r"pickle \(pytorch_model.bin\)") as caught:
        inspect_model(folder, CONFIG)
    assert caught.value.reason_code == "MODEL_IS_PICKLE"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe not this", b"[]", b"[" * 100_000])
def test_broken_file_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(FailedPreconditionError, match=name):
        inspect_model(folder, CONFIG)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 100_000])
def test_broken_tokenizer_is_named(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(FailedPreconditionError, match=r"tokenizer\.json is broken"):
        inspect_model(folder, CONFIG)


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FailedPreconditionError, match="incomplete"):
        inspect_model(folder, CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertModel"]}, r"BertModel\) is not supported: what is needed is a BertForMaskedLM"),
        (
            {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"},
            r"GPT2LMHeadModel\) is not supported: it is not",
        ),
        (
            {"architectures": ["X"], "model_type": "new", "auto_map": {"AutoModel": "x.X"}},
            "code that comes with a model",
        ),
        ({"architectures": None, "model_type": None}, 'config.json has no "model_type"'),
        ({"hidden_size": None}, '"hidden_size" is missing'),
        ({"hidden_size": "wide"}, '"hidden_size" is missing or not'),
        ({"num_attention_heads": 5}, "do not divide"),
        ({"position_embedding_type": "relative_key"}, "relative positions"),
        ({"hidden_size": 32.5}, '"hidden_size" is not a whole number'),
        ({"hidden_size": float("inf")}, '"hidden_size" is not a whole number'),
        ({"intermediate_size": float("nan")}, '"intermediate_size" is not a whole number'),
        ({"num_hidden_layers": 3}, 'lack the tensor "bert.encoder.layer.2'),
        ({"vocab_size": 41}, "has the shape"),
    ],
)
def test_unusable_configuration_is_explained(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(FailedPreconditionError, match=message):
        inspect_model(folder, CONFIG)


@pytest.mark.parametrize("max_tokens", [1, 2, 101, -5])
def test_max_tokens_out_of_range_is_refused(folder: Path, max_tokens: int) -> None:
    with pytest.raises(FailedPreconditionError, match="this model takes 3 to 100"):
        inspect_model(folder, ExpansionConfig(max_tokens=max_tokens))


def test_other_pooling_is_refused(folder: Path) -> None:
    kind = "sentence_transformers.sparse_encoder.modules.SpladePooling"
    network = {"path": "", "type": "sentence_transformers.sparse_encoder.modules.MLMTransformer"}
    (folder / "modules.json").write_text(json.dumps([network, {"path": "1_Pooling", "type": kind}]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_strategy": "max"}))
    inspect_model(folder, CONFIG)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_strategy": "mean"}))
    with pytest.raises(FailedPreconditionError, match='its pooling \\("mean" of "relu"\\) is not supported'):
        inspect_model(folder, CONFIG)


def test_a_model_that_refuses_long_texts_passes_the_check_at_load(folder: Path) -> None:
    refusing = load_encoder(folder, ExpansionConfig(max_tokens=8, truncate=False), precision="float32")
    with pytest.raises(InvalidArgumentError, match="longer than the model's 8 tokens"):
        refusing.tokenize(["the cat sat " * 9], Side.DOCUMENT)


def test_shards_are_read(folder: Path) -> None:
    whole = inspect_model(folder, CONFIG)
    expected = load_encoder(folder, CONFIG, precision="float32")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"one.safetensors": names[:9], "two.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert inspect_model(folder, CONFIG).vocabulary_size == whole.vocabulary_size
    actual = load_encoder(folder, CONFIG, precision="float32")
    text = ["the cat sat"]
    left, right = (
        each.encode(each.tokenize(text, Side.QUERY), Side.QUERY)[0].weights.tolist() for each in (actual, expected)
    )
    assert left == right
    (folder / "one.safetensors").unlink()
    with pytest.raises(FailedPreconditionError, match=r"one.safetensors is missing"):
        inspect_model(folder, CONFIG)


def test_fingerprint_changes_with_what_changes_vectors(folder: Path) -> None:
    base = inspect_model(folder, CONFIG)
    for config in (ExpansionConfig(max_tokens=50), ExpansionConfig(min_weight=0.1)):
        changed = inspect_model(folder, config)
        assert changed.fingerprint != base.fingerprint
        assert changed.query_fingerprint != base.query_fingerprint
    for config in (ExpansionConfig(document_prefix="p"), ExpansionConfig(document_max_terms=5)):
        changed = inspect_model(folder, config)
        assert changed.fingerprint != base.fingerprint
        assert changed.query_fingerprint == base.query_fingerprint
    for config in (ExpansionConfig(query_prefix="p"), ExpansionConfig(query_max_terms=5)):
        changed = inspect_model(folder, config)
        assert changed.fingerprint == base.fingerprint
        assert changed.query_fingerprint != base.query_fingerprint


def test_fingerprint_covers_files_and_ignores_what_does_not_matter(folder: Path) -> None:
    base = inspect_model(folder, CONFIG).fingerprint
    assert inspect_model(folder, ExpansionConfig(max_tokens=100)).fingerprint == base, "100 is the model's own maximum"
    assert inspect_model(folder, ExpansionConfig(truncate=False)).fingerprint == base
    edit(folder / "config.json", transformers_version="9", hidden_dropout_prob=0.5)
    assert inspect_model(folder, CONFIG).fingerprint == base
    edit(folder / "config.json", hidden_act="relu")
    assert inspect_model(folder, CONFIG).fingerprint != base
    edit(folder / "config.json", hidden_act="gelu")
    edit(folder / "tokenizer_config.json", do_lower_case=False)
    assert inspect_model(folder, CONFIG).fingerprint != base
    edit(folder / "tokenizer_config.json", do_lower_case=True)
    assert inspect_model(folder, CONFIG).fingerprint == base
    tensors = load_file(folder / "model.safetensors")
    tensors["cls.predictions.bias"][3] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert inspect_model(folder, CONFIG).fingerprint != base


def test_fingerprint_ignores_precision(model_folder: Path, encoder: Any, bfloat16_encoder: Any) -> None:
    facts = inspect_model(model_folder, CONFIG)
    for side, expected in ((Side.DOCUMENT, facts.fingerprint), (Side.QUERY, facts.query_fingerprint)):
        assert encoder.fingerprint(side) == bfloat16_encoder.fingerprint(side) == expected


def test_unknown_precision_is_refused(folder: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="float8"):
        load_encoder(folder, CONFIG, precision="float8")


def test_verdict_is_kept_and_believed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One network a precision, so that there is no next one to try.
    monkeypatch.setenv(KERNEL, "off")
    cache = tmp_path / "cache"
    load_encoder(folder, CONFIG, precision="float32", cache=cache)
    verdicts = list((cache / "parity").iterdir())
    assert len(verdicts) == 1
    edit(verdicts[0], problem="a test says so")
    assert load_encoder(folder, CONFIG, precision="float32", cache=cache).engine == "transformers"
    verdicts[0].write_text("{ torn")
    assert load_encoder(folder, CONFIG, precision="float32", cache=cache).engine == "torch"
    assert json.loads(verdicts[0].read_text())["problem"] is None


def test_cache_that_cannot_be_written_is_no_obstacle(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert load_encoder(folder, CONFIG, precision="float32", cache=tmp_path / "file").vocabulary_size == 40


def spoil_for_bfloat16(folder: Path) -> None:
    """Add a great constant that the bias takes off again: the same vectors, but bfloat16 loses what is beside it."""
    tensors = load_file(folder / "model.safetensors")
    constant = 300.0
    tensors["cls.predictions.transform.LayerNorm.bias"] += constant
    tensors["cls.predictions.bias"] -= constant * tensors["bert.embeddings.word_embeddings.weight"].sum(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_auto_falls_back_to_float32_where_the_fast_path_is_bad(folder: Path, tmp_path: Path) -> None:
    load_encoder(folder, CONFIG, precision="float32", cache=tmp_path)
    spoil_for_bfloat16(folder)
    assert load_encoder(folder, CONFIG, precision="auto", cache=tmp_path).precision == "float32"


def test_a_precision_that_was_asked_for_is_had_or_refused(folder: Path, tmp_path: Path) -> None:
    if not has_bfloat16():
        with pytest.raises(
            FailedPreconditionError, match=r"^precision: This processor does not .*; use AUTO or FLOAT32"
        ):
            load_encoder(folder, CONFIG, precision="bfloat16")
        return
    assert load_encoder(folder, CONFIG, precision="bfloat16", cache=tmp_path).precision == "bfloat16"
    spoil_for_bfloat16(folder)
    for _ in range(2):  # measured, then as the cache has it
        with pytest.raises(
            FailedPreconditionError, match=r"^precision: This model's .*; use AUTO or FLOAT32"
        ) as caught:
            load_encoder(folder, CONFIG, precision="bfloat16", cache=tmp_path)
        assert caught.value.reason_code == "PARITY_FAILED"
        assert caught.value.violations[0].field == "precision"


@pytest.mark.parametrize("name", ["bert.embeddings.token_type_embeddings.weight", "bert.embeddings.LayerNorm.bias"])
def test_a_lacking_tensor_is_named_before_anything_is_loaded(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FailedPreconditionError, match=name):
        inspect_model(folder, CONFIG)


def test_a_fast_path_that_differs_from_plain_transformers_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = load_encoder(folder, CONFIG, precision="float32")
    # An activation that the encoder mistakes for another stands for any error of the packed path.
    monkeypatch.setitem(ACTIVATIONS, "gelu", ("relu", ""))
    plain = load_encoder(folder, CONFIG)
    assert (plain.engine, plain.precision) == ("transformers", "float32")
    assert "the fast path is not used" in caplog.text
    texts = ["the cat sat"]
    left, other = (each.encode(each.tokenize(texts, Side.QUERY), Side.QUERY)[0] for each in (plain, right))
    assert left.tokens == other.tokens
    assert left.weights.tolist() == pytest.approx(other.weights.tolist(), abs=1e-4)
    if has_bfloat16():
        with pytest.raises(FailedPreconditionError, match="use AUTO or FLOAT32"):
            load_encoder(folder, CONFIG, precision="bfloat16")


def test_an_activation_without_a_fast_path_runs_on_the_plain_one(folder: Path) -> None:
    edit(folder / "config.json", hidden_act="silu")
    assert load_encoder(folder, CONFIG).engine == "transformers"
    edit(folder / "config.json", hidden_act="nonsense")
    with pytest.raises(FailedPreconditionError, match=r"transformers does not load it \(KeyError\)"):
        load_encoder(folder, CONFIG)


def test_a_kind_of_model_is_known_without_its_architecture(folder: Path) -> None:
    edit(folder / "config.json", architectures=None)
    assert inspect_model(folder, CONFIG).architecture == "BertForMaskedLM"


@pytest.mark.parametrize("broken", ["__init__", "pool"])
def test_a_network_that_does_not_run_leaves_the_work_to_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    if best_level() is None:
        pytest.skip("there is no network but torch's")
    monkeypatch.setattr(NativeNetwork, broken, raising(RuntimeError("could not create a primitive")))
    encoder: Any = load_encoder(folder, CONFIG, precision="float32")
    assert encoder.kernel == "torch"
    assert "float32 does not run here" in caplog.text
    assert "could not create a primitive" in caplog.text


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("could not create a primitive"), r"does not run in float32 here \(RuntimeError\)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (MemoryError(), "out of memory"),
    ],
)
def test_a_model_that_no_network_runs_is_told_from_one_that_differs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.setenv(KERNEL, "off")
    monkeypatch.setattr(TorchNetwork, "pool", raising(error))
    with pytest.raises(FailedPreconditionError, match=message) as caught:
        load_encoder(folder, CONFIG)
    assert caught.value.reason_code == "MODEL_DOES_NOT_RUN"
    assert caught.value.__cause__ is error


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail
