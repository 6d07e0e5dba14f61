"""Models in ELSER's package layout: what they answer, re-hosted and as they are."""

from __future__ import annotations

import json
import shutil
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archives import replace_archive, save
from elser_package import as_model_folder, elser_package, make_package, tiny_package
from termwise.server.errors import FailedPreconditionError, InvalidArgumentError
from termwise.server.inference.base import Encoder, Expansion, ExpansionConfig, Side
from termwise.server.inference.loader import inspect_model, load_encoder
from termwise.server.inference.torchscript import names
from termwise.server.inference.torchscript.archive import Archive
from termwise.server.inference.torchscript.pickles import Tensor as StoredTensor
from termwise.server.inference.torchscript.pickles import read_pickle, walk
from termwise.server.inference.torchscript.rehosting import read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

CONFIG = ExpansionConfig()
TEXTS = [
    "is pluto a planet?",
    "Pluto",
    "How are salmon farmed in Norway, and what do they eat?",
    "The committee met on 14 March 1977; its report (no. 12/B) named three causes: rust, salt & neglect. " * 4,
    "",
]


def expand(encoder: Encoder, texts: list[str], side: Side = Side.DOCUMENT) -> list[Expansion]:
    return encoder.encode(encoder.tokenize(texts, side), side)


def difference(left: Expansion, right: Expansion) -> float:
    """Give the largest difference of a token's weight; a token that one lacks weighs nothing there."""
    weights = [dict(zip(each.tokens, each.weights.tolist(), strict=True)) for each in (left, right)]
    return max(
        (abs(weights[0].get(token, 0) - weights[1].get(token, 0)) for token in {*weights[0], *weights[1]}), default=0
    )


def edit_metadata(folder: Path, **tokenization: Any) -> None:
    file = folder / names.METADATA
    says = json.loads(file.read_text())
    says["inference_config"]["text_expansion"]["tokenization"]["bert"].update(tokenization)
    file.write_text(json.dumps(says))


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_model_folder(elser_package(), tmp_path_factory.mktemp("packaged") / "model")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return as_model_folder(tiny_package(tmp_path / "package"), tmp_path / "model")


def test_facts_of_a_package_are_told_without_torch(packaged: Path, model_folder: Path) -> None:
    facts, plain = inspect_model(packaged, CONFIG), inspect_model(model_folder, CONFIG)
    assert facts.layout == "torchscript"
    assert facts.architecture == "BertForMaskedLM"
    assert (facts.vocabulary_size, facts.longest, facts.hidden) == (30522, 512, 128)
    assert facts.weights_bytes == pytest.approx(plain.weights_bytes, rel=0.001)
    assert facts.fingerprint == facts.query_fingerprint != plain.fingerprint


@pytest.fixture(scope="module")
def hosted(packaged: Path, parity_cache: Path) -> Encoder:
    return load_encoder(packaged, CONFIG, precision="float32", cache=parity_cache)


def test_a_package_of_a_known_architecture_is_re_hosted_with_equal_vectors(hosted: Encoder, encoder: Encoder) -> None:
    assert hosted.engine in {"native", "torch"}
    for side in Side:
        for mine, original in zip(expand(hosted, TEXTS, side), expand(encoder, TEXTS, side), strict=True):
            assert difference(mine, original) < 1e-4
            assert mine.token_count == original.token_count


@given(text=st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(TEXTS))
@settings(max_examples=60)
def test_any_text_has_equal_vectors(text: str, hosted: Encoder, encoder: Encoder) -> None:
    [mine], [original] = expand(hosted, [text]), expand(encoder, [text])
    assert (mine.token_count, mine.truncated) == (original.token_count, original.truncated)
    assert difference(mine, original) < 1e-4


def test_the_verdict_is_kept_so_that_the_archive_is_not_loaded_again(
    packaged: Path, parity_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_encoder(packaged, CONFIG, precision="float32", cache=parity_cache)

    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("the archive was loaded")

    monkeypatch.setattr(torch.jit, "load", refuse)
    assert load_encoder(packaged, CONFIG, precision="float32", cache=parity_cache).engine != "torchscript"


@pytest.mark.parametrize("variant", ["pooled", "logits"])
def test_a_package_runs_as_it_is_with_equal_vectors(variant: str, encoder: Encoder, tmp_path: Path) -> None:
    folder = as_model_folder(elser_package(variant), tmp_path / "model")
    as_it_is = load_encoder(unhosted(folder), CONFIG)
    assert (as_it_is.engine, as_it_is.precision, as_it_is.device) == ("torchscript", "float32", "cpu")
    for mine, original in zip(expand(as_it_is, TEXTS), expand(encoder, TEXTS), strict=True):
        assert difference(mine, original) < 1e-4
        assert mine.token_count == original.token_count


def test_an_archive_that_answers_otherwise_than_its_tensors_say_runs_as_it_is(
    make_model: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = make_package(make_model("bert"), tmp_path / "package", "halved", max_sequence_length=90)
    folder, cache = as_model_folder(package, tmp_path / "model"), tmp_path / "cache"
    assert inspect_model(folder, CONFIG).architecture == "BertForMaskedLM"
    for said in ("the archive runs as it is", ""):
        caplog.clear()
        encoder = load_encoder(folder, CONFIG, cache=cache)
        assert encoder.engine == "torchscript"
        # The second time it is known.
        assert said in caplog.text
        assert bool(said) == bool(caplog.text)
    with pytest.raises(FailedPreconditionError, match="precision: This TorchScript model"):
        load_encoder(unhosted(folder), CONFIG, precision="bfloat16")


def unhosted(folder: Path) -> Path:
    """Make a model whose tensors have names that no architecture has."""
    module: Any = torch.jit.load(str(folder / names.ARCHIVE))

    class Shown(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:
            return self.model(ids, mask, types, places)  # type: ignore[no-any-return]

    frozen = torch.jit.freeze(torch.jit.script(Shown(module)).eval())
    return replace_archive(folder, save(frozen))


def test_what_the_metadata_says_of_texts_holds(tiny: Path) -> None:
    [expansion] = expand(load_encoder(tiny, CONFIG), ["Salmon FARM farm"])
    assert dict(zip(expansion.tokens, expansion.weights.tolist(), strict=True)) == {"farm": 1.5, "salmon": 1.25}
    assert expansion.token_count == 5

    edit_metadata(tiny, do_lower_case=False)
    [expansion] = expand(load_encoder(tiny, CONFIG), ["Salmon FARM farm"])
    assert expansion.tokens == ("farm",)

    edit_metadata(tiny, with_special_tokens=False, max_sequence_length=4)
    cut = load_encoder(tiny, CONFIG)
    [expansion] = expand(cut, ["farm " * 9])
    assert (expansion.token_count, expansion.truncated) == (4, True)

    edit_metadata(tiny, truncate="none")
    with pytest.raises(InvalidArgumentError, match="4 tokens"):
        load_encoder(tiny, CONFIG).tokenize(["farm " * 9], Side.QUERY)


def test_the_configuration_limits_terms_and_prefixes_texts(tiny: Path) -> None:
    plain = load_encoder(tiny, CONFIG)
    limited = load_encoder(
        tiny, ExpansionConfig(query_prefix="fish ", query_max_terms=2, min_weight=1.3, max_tokens=16)
    )
    assert not plain.sides_differ
    assert limited.sides_differ
    assert limited.fingerprint(Side.QUERY) != plain.fingerprint(Side.QUERY)
    [expansion] = expand(limited, ["salmon salmon fish farm farm farm"], Side.QUERY)
    assert expansion.tokens == ("farm", "fish")
    with pytest.raises(FailedPreconditionError, match="max_tokens is 513"):
        inspect_model(tiny, ExpansionConfig(max_tokens=513))


def test_fingerprints_follow_what_is_computed(tiny: Path, tmp_path: Path) -> None:
    first = inspect_model(tiny, CONFIG)
    again = inspect_model(shutil.copytree(tiny, tmp_path / "again"), CONFIG)
    assert again.fingerprint == first.fingerprint == load_encoder(tiny, CONFIG).fingerprint(Side.DOCUMENT)
    seen = {first.fingerprint}
    edit_metadata(tiny, do_lower_case=False)
    seen.add(inspect_model(tiny, CONFIG).fingerprint)
    edit_metadata(tiny, max_sequence_length=64)
    seen.add(inspect_model(tiny, CONFIG).fingerprint)
    words = json.loads((tiny / names.VOCABULARY).read_text())
    words["vocabulary"][-1] = "other"
    (tiny / names.VOCABULARY).write_text(json.dumps(words))
    seen.add(inspect_model(tiny, CONFIG).fingerprint)
    assert len(seen) == 4


class Handwritten(torch.nn.Module):
    """What a test model of Elasticsearch's kind does: a seed, chance, a loop, writing at places."""

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        torch.manual_seed(7)
        weights = torch.rand(64)
        answer = torch.zeros(14)
        for place in range(ids.size(1)):
            token = ids[0, place]
            if int(token) >= 5:
                answer.index_put_((token.unsqueeze(0),), weights[place].unsqueeze(0), accumulate=True)
        return answer.to(torch.float64), ids


def test_a_model_written_by_hand_runs_and_answers_the_same_on_many_threads(tiny: Path) -> None:
    edit_metadata(tiny, max_sequence_length=32)
    replace_archive(tiny, save(torch.jit.script(Handwritten())))
    encoder = load_encoder(tiny, CONFIG)
    texts = [f"salmon {'farm ' * (number % 5)} the planet" for number in range(12)]
    expected = [(each.tokens, each.weights.tobytes()) for each in expand(encoder, texts)]
    answers: list[Any] = []

    def ask() -> None:
        torch.rand(3)
        answers.append([(each.tokens, each.weights.tobytes()) for each in expand(encoder, texts)])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 6


SHAPES: list[tuple[str, Callable[[Tensor], Any]]] = [
    ("[14]", lambda ids: ids.new_ones(14).float()),
    ("[1, 14]", lambda ids: ids.new_ones(1, 14).double()),
    ("[1, 1, 14]", lambda ids: ids.new_ones(1, 1, 14).float()),
    ("[n, 14]", lambda ids: ids.new_ones(14).float().expand(ids.shape[1], 14)),
    ("[1, n, 14]", lambda ids: ids.new_ones(14).float().expand(1, ids.shape[1], 14)),
    ("tuple", lambda ids: (ids.new_ones(1, 14).float(), ids)),
]


def test_rows_of_logits_become_weights_by_log1p(tiny: Path) -> None:
    rows = torch.tensor([[1.0] * 14])
    replace_archive(tiny, traced(lambda ids: (rows + ids[0, :, None] * 0).float()))
    assert expand(load_encoder(tiny, CONFIG), ["salmon"])[0].weights.tolist() == [1.0] * 14
    says = json.loads((tiny / names.METADATA).read_text())
    says["inference_config"]["text_expansion"]["expansion_type"] = "splade"
    (tiny / names.METADATA).write_text(json.dumps(says))
    assert expand(load_encoder(tiny, CONFIG), ["salmon"])[0].weights.tolist() == pytest.approx([np.log(2)] * 14)


def traced(answer: Callable[[Tensor], Any]) -> bytes:
    class Fixed(torch.nn.Module):
        def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Any:  # noqa: ARG002
            return answer(ids)

    return save(torch.jit.trace(Fixed(), (torch.ones(1, 4, dtype=torch.long),) * 4, check_trace=False))


@pytest.mark.parametrize("answer", [each[1] for each in SHAPES], ids=[each[0] for each in SHAPES])
def test_answers_of_one_to_three_dimensions_are_one_vector(answer: Callable[[Tensor], Any], tiny: Path) -> None:
    replace_archive(tiny, traced(answer))
    [expansion] = expand(load_encoder(tiny, CONFIG), ["salmon"])
    assert expansion.weights.tolist() == [1.0] * 14


WRONG: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("width", lambda ids: ids.new_ones(1, 13).float(), r"\[1, 13\].*14 tokens"),
    ("dimensions", lambda ids: ids.new_ones(1, 1, 1, 14).float(), "shape"),
    ("batch", lambda ids: ids.new_ones(2, 1, 14).float(), "shape"),
    ("rows", lambda ids: ids.new_ones(3, 14).float(), "3 rows"),
    ("type", lambda ids: ids.new_ones(1, 14), "float32 or float64"),
    ("nan", lambda ids: ids.new_ones(1, 14).float().log().log() * 0, "not a number"),
]


@pytest.mark.parametrize(("answer", "said"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG])
def test_an_answer_that_is_no_vector_is_refused_at_load(answer: Callable[[Tensor], Any], said: str, tiny: Path) -> None:
    replace_archive(tiny, traced(answer))
    with pytest.raises(FailedPreconditionError, match=said):
        load_encoder(tiny, CONFIG)


def test_a_model_of_other_arguments_is_refused(tiny: Path) -> None:
    class Two(torch.nn.Module):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return (ids + mask).sum() * torch.ones(1, 14)

    archive = save(torch.jit.trace(Two(), (torch.ones(1, 4, dtype=torch.long),) * 2))
    replace_archive(tiny, archive)
    with pytest.raises(FailedPreconditionError, match="takes 2 arguments"):
        load_encoder(tiny, CONFIG)


def test_too_few_positions_are_found_at_load(tiny: Path) -> None:
    class Placed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = torch.nn.Embedding(40, 14)

        def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
            return self.places(places).amax(1)  # type: ignore[no-any-return]

    ones = torch.ones(1, 4, dtype=torch.long)
    replace_archive(tiny, save(torch.jit.trace(Placed(), (ones, ones, ones, ones))))
    with pytest.raises(FailedPreconditionError, match="does not run on 5 to 512 tokens"):
        load_encoder(tiny, CONFIG)
    edit_metadata(tiny, max_sequence_length=40)
    assert load_encoder(tiny, CONFIG).engine == "torchscript"


@pytest.mark.parametrize(
    ("asked", "reason"), [({"precision": "int8"}, "PRECISION_UNSUPPORTED"), ({"device": "cuda"}, "DEVICE_UNSUPPORTED")]
)
def test_an_archive_that_runs_as_it_is_has_one_precision_and_runs_on_the_processor(
    asked: dict[str, str], reason: str, tiny: Path
) -> None:
    with pytest.raises(FailedPreconditionError) as raised:
        load_encoder(tiny, CONFIG, **asked)  # type: ignore[arg-type]
    assert raised.value.reason_code == reason


@pytest.mark.parametrize("missing", [names.METADATA, names.VOCABULARY])
def test_a_missing_file_is_named(missing: str, tiny: Path) -> None:
    (tiny / missing).unlink()
    with pytest.raises(FailedPreconditionError, match=missing):
        inspect_model(tiny, CONFIG)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("bert", {"layer_norm_eps": 1e-5, "num_attention_heads": 8}),
        ("bert", {"hidden_act": "gelu_new"}),
        ("distilbert", {}),
        ("electra", {}),
        ("mpnet", {}),
        ("roberta", {}),
        ("xlm-roberta", {}),
    ],
)
def test_packages_of_known_architectures_are_re_hosted(
    architecture: str, changes: dict[str, Any], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(architecture, **changes)
    folder = as_model_folder(make_package(model, tmp_path / "package", max_sequence_length=90), tmp_path / "model")
    hosted = load_encoder(folder, CONFIG, precision="float32")
    original = load_encoder(model, CONFIG, precision="float32")
    assert hosted.engine in {"native", "torch"}
    texts = ["the cat sat", "a b c", "The caf\u00e9's mat ", "the " * 40, "?"]
    for mine, theirs in zip(expand(hosted, texts), expand(original, texts), strict=True):
        assert mine.token_count == theirs.token_count
        assert difference(mine, theirs) < 1e-4


def test_a_package_in_int8_is_re_hosted_within_what_int8_is_off(encoder: Encoder, tmp_path: Path) -> None:
    folder = as_model_folder(elser_package("int8"), tmp_path / "model")
    assert inspect_model(folder, CONFIG).architecture == "BertForMaskedLM"
    hosted = load_encoder(folder, CONFIG, precision="float32")
    assert hosted.engine in {"native", "torch"}
    own = load_encoder(unhosted(folder), CONFIG)
    assert (own.engine, own.precision) == ("torchscript", "int8")
    for mine, archives, original in zip(expand(hosted, TEXTS), expand(own, TEXTS), expand(encoder, TEXTS), strict=True):
        assert difference(mine, archives) < 0.5
        assert difference(mine, original) < 0.5
        assert mine.tokens[:1] == original.tokens[:1]


@pytest.mark.parametrize("scheme", ["tensor", "channel"])
def test_weights_in_int8_are_read_as_torch_reads_them(scheme: str, tmp_path: Path) -> None:
    quantization = torch.ao.quantization
    kinds = {"tensor": quantization.default_dynamic_qconfig, "channel": quantization.per_channel_dynamic_qconfig}
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, 4))
    narrow = quantization.quantize_dynamic(model, {torch.nn.Linear: kinds[scheme]})
    file = tmp_path / "archive.pt"
    file.write_bytes(save(torch.jit.trace(narrow, torch.ones(1, 8))))
    with Archive(file) as archive:
        raw = archive.read("data.pkl")
        held = read_pickle(raw, "data.pkl", lambda key: archive.stored("data.pkl", key))
    tensors = {path: part for path, part in walk(held) if isinstance(part, StoredTensor)}
    read = read_tensors(file, tensors)
    assert len(read) == 4
    for number, layer in enumerate(narrow):
        name = f"{number}._packed_params._packed_params"
        assert np.allclose(read[f"{name}.weight"], layer.weight().dequantize().numpy(), atol=1e-7)
        assert np.array_equal(read[f"{name}.bias"], layer.bias().detach().numpy())


def test_int8_layers_run(tiny: Path) -> None:
    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(14, 16)
            self.out = torch.nn.Linear(16, 14)

        def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
            return torch.log1p(torch.relu(self.out(self.words(ids)))).amax(1)

    torch.manual_seed(3)
    model = Layers()
    ones = torch.ones(1, 4, dtype=torch.long)
    exact = torch.jit.trace(model, (ones, ones, ones, ones))
    narrow = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    for module, precision in ((exact, "float32"), (torch.jit.trace(narrow, (ones, ones, ones, ones)), "int8")):
        replace_archive(tiny, save(module))
        encoder = load_encoder(tiny, CONFIG)
        assert (encoder.engine, encoder.precision) == ("torchscript", precision)
        [expansion] = expand(encoder, ["salmon farm"])
        weights = model(torch.tensor([[2, 5, 6, 3]]), ones, ones, ones)[0].detach().numpy()
        found = np.zeros(14, np.float32)
        found[expansion.token_ids] = expansion.weights
        assert np.abs(found - weights).max() < (1e-6 if precision == "float32" else 0.05)


class Keeps(torch.nn.Module):
    """Attributes of every kind that a module may have."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.names, self.pair = [1, 14], {"a": 2}, (1, 2.5)
        self.none = torch.jit.Attribute(None, torch.Tensor | None)
        self.tensors, self.text, self.flag, self.large, self.least = [torch.ones(14)], "x", True, 2**40, float("-inf")
        self.narrow = torch.nn.Parameter(torch.ones(14).half())
        self.register_buffer("kept", torch.ones(1, 14))
        self.named = torch.nn.ModuleDict({"k": torch.nn.Linear(14, 14)})
        self.numbered = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(14))])

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        x = torch.zeros(self.sizes) + self.kept + self.narrow.float() + self.pair[1] + self.tensors[0] + self.names["a"]
        none = self.none
        if none is not None:
            x = x + none
        if self.flag and self.text == "x":
            x = torch.clamp(x, min=self.least) + float(self.large) * 0
        for layer in self.named.values():
            x = x + layer(x) * 0
        return x, ids


def test_attributes_of_every_kind_pass(tiny: Path) -> None:
    module = torch.jit.script(Keeps().eval())
    for archive in (save(module), save(torch.jit.freeze(module))):
        replace_archive(tiny, archive)
        [expansion] = expand(load_encoder(tiny, CONFIG), ["salmon"])
        assert expansion.weights.tolist() == [7.5] * 14


class Written(torch.nn.Module):
    """Of what people write: layers, a loop over them, lists, a dictionary, conditions, writing at places."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(14, 16)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(16, 16) for _ in range(2)])
        self.around = torch.nn.Conv1d(16, 16, 3, padding=1)
        self.attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = torch.nn.Linear(16, 14)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        x = self.words(ids)
        for layer in self.layers:
            x = torch.nn.functional.gelu(layer(x)) + x
        x = self.around(x.transpose(1, 2)).transpose(1, 2)
        x = self.attention(x, x, x)[0]
        kept = {"x": x}
        parts = [kept["x"] * (place + 1) for place in range(3)]
        x = torch.cat(parts, 2)[:, :, 8:24]
        assert x.dim() == 3, f"not {x.dim()}"
        x[x > 5] = 5.0
        return torch.log1p(torch.relu(self.out(torch.nn.functional.layer_norm(x, [16])))).max(1)[0]


@pytest.mark.parametrize("how", ["traced", "frozen", "half the code scripted"])
def test_what_people_write_passes(how: str, tiny: Path) -> None:
    torch.manual_seed(2)
    model = Written().eval()
    ones = torch.ones(1, 6, dtype=torch.long)
    module: Any = torch.jit.trace(model, (ones, ones, ones, ones), check_trace=False)
    if how == "frozen":
        module = torch.jit.freeze(module)
    if how.startswith("half"):
        # Attention's own code has a way that only a script sees, by operators that are not let through.
        model.attention = torch.jit.trace(model.attention, (torch.ones(1, 6, 16),) * 3, check_trace=False)  # type: ignore[assignment]
        module = torch.jit.script(model)
    replace_archive(tiny, save(module))
    encoder = load_encoder(tiny, ExpansionConfig(max_tokens=9))
    text = "salmon farm planet pluto"
    [expansion] = expand(encoder, [text])
    expected = model(torch.tensor([encoder.tokenize([text], Side.QUERY)[0].ids]), ones, ones, ones)[0]
    found = np.zeros(14, np.float32)
    found[expansion.token_ids] = expansion.weights
    assert np.abs(found - expected.detach().numpy()).max() < 1e-5
