"""Folders of sentence-transformers' SparseEncoder and OpenSearch's doc-only models: vectors equal the peers' own."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding, SpladePooling, Transformer
from transformers import AutoModelForMaskedLM, AutoTokenizer

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.base import Encoder, ExpansionConfig, Side, TokenizedText
from termwise.server.inference.batcher import Batcher
from termwise.server.inference.loader import inspect_model, load_encoder
from termwise.server.inference.static import StaticEncoder, Table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

CONFIG = ExpansionConfig()
TEXTS = ["the cat sat", "a b c the [SEP] cafe", "The Cats sat on the mat, " * 7, "sat", "c c c c w20 w39 zebra"]


@pytest.fixture(scope="module")
def bert(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy a small model, and give it a tokenizer.json as transformers makes it."""
    folder = shutil.copytree(make_model(), tmp_path_factory.mktemp("peer") / "bert")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    """Give each of 40 tokens a weight; some have none, one has a negative one."""
    weights = torch.rand(40, generator=torch.Generator().manual_seed(3)) * 4
    weights[::7] = 0
    weights[11] = -1
    return weights


def network(folder: Path) -> Transformer:
    return Transformer(str(folder), transformer_task="fill-mask")


def routed(folder: Path, weights: torch.Tensor, **pooling: Any) -> Router:
    documents = network(folder)
    return Router.for_query_document(
        query_modules=[SparseStaticEmbedding(documents.tokenizer, weight=weights, frozen=True)],
        document_modules=[documents, SpladePooling(**pooling)],
    )


def save(modules: list[Any], folder: Path, **settings: Any) -> Path:
    SparseEncoder(modules=modules, device="cpu", **settings).save_pretrained(str(folder), create_model_card=False)
    return folder


def dense(encoder: Encoder, side: Side, texts: list[str] = TEXTS) -> NDArray[np.float32]:
    rows = np.zeros((len(texts), encoder.vocabulary_size), dtype=np.float32)
    for row, expansion in zip(rows, encoder.encode(encoder.tokenize(texts, side), side), strict=True):
        row[expansion.token_ids] = expansion.weights
        assert (np.diff(expansion.weights) <= 0).all()
    return rows


def assert_like_the_peer(folder: Path, encoder: Encoder) -> None:
    peer = SparseEncoder(str(folder), device="cpu", local_files_only=True)
    for side, encode in ((Side.DOCUMENT, peer.encode_document), (Side.QUERY, peer.encode_query)):
        expected = encode(TEXTS, convert_to_sparse_tensor=False).numpy()
        np.testing.assert_allclose(dense(encoder, side), np.maximum(expected, 0), atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_poolings(bert: Path, tmp_path: Path, strategy: Any, activation: Any) -> None:
    folder = save([network(bert), SpladePooling(strategy, activation)], tmp_path / "model")
    encoder = load_encoder(folder, CONFIG, precision="float32")
    facts = inspect_model(folder, CONFIG)
    assert (encoder.engine == "transformers") == (strategy == "sum")
    assert (facts.layout, facts.architecture, facts.sides_differ) == ("sparse_encoder", "BertForMaskedLM", False)
    assert_like_the_peer(folder, encoder)
    assert (facts.fingerprint == inspect_model(bert, CONFIG).fingerprint) == ((strategy, activation) == ("max", "relu"))


def test_queries_without_a_network(bert: Path, table: torch.Tensor, tmp_path: Path) -> None:
    folder = save([routed(bert, table, activation_function="log1p_relu")], tmp_path / "model")
    assert (folder / "document_0_Transformer" / "model.safetensors").is_file()
    encoder = load_encoder(folder, CONFIG, precision="float32")
    facts = inspect_model(folder, CONFIG)
    assert encoder.engine in {"native", "torch"}
    assert encoder.sides_differ
    assert (facts.layout, facts.sides_differ, facts.longest) == ("sparse_encoder", True, 100)
    assert encoder.fingerprint(Side.DOCUMENT) == facts.fingerprint != facts.query_fingerprint
    assert encoder.fingerprint(Side.QUERY) == facts.query_fingerprint
    assert_like_the_peer(folder, encoder)


async def test_queries_without_a_network_go_through_the_batcher(
    bert: Path, table: torch.Tensor, tmp_path: Path
) -> None:
    encoder = load_encoder(save([routed(bert, table)], tmp_path / "model"), CONFIG, precision="float32")
    batcher = Batcher(encoder, allocations=1, threads=1, queue_capacity=16)
    batcher.start()
    try:
        for side in Side:
            expansions, _ = await batcher.submit(TEXTS, side, deadline=None, wait=False)
            alone = encoder.encode(encoder.tokenize(TEXTS, side), side)
            assert [each.tokens for each in expansions] == [each.tokens for each in alone]
    finally:
        await batcher.close()


def test_a_network_at_the_top_beside_its_table(bert: Path, table: torch.Tensor, tmp_path: Path) -> None:
    """OpenSearch's repositories have it so, with the names that modules had first."""
    folder = shutil.copytree(bert, tmp_path / "model")
    made = save([routed(bert, table, activation_function="log1p_relu")], tmp_path / "made")
    shutil.copytree(made / "query_0_SparseStaticEmbedding", folder / "query_0_IDF")
    shutil.copytree(made / "document_1_SpladePooling", folder / "document_1_SpladePooling")
    kinds = {
        "query_0_IDF": "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding",
        "": "sentence_transformers.sparse_encoder.models.MLMTransformer",
        "document_1_SpladePooling": "sentence_transformers.sparse_encoder.models.SpladePooling",
    }
    structure = {"query": ["query_0_IDF"], "document": ["", "document_1_SpladePooling"]}
    router = {"types": kinds, "structure": structure, "parameters": {"default_route": "document"}}
    (folder / "router_config.json").write_text(json.dumps(router))
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}])
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 50, "do_lower_case": True}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "SparseEncoder"}))
    (folder / "idf.json").write_text("{}")  # what modules.json says comes first
    assert inspect_model(folder, CONFIG).longest == 50
    assert_like_the_peer(folder, load_encoder(folder, CONFIG, precision="float32"))


def test_prompts_limits_and_small_letters_that_the_folder_states(bert: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_active_dims": 5, "prompts": {"query": "the mat ", "document": "sat: "}}
    folder = save([network(bert), SpladePooling()], tmp_path / "model", **settings)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    stated = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(json.dumps(stated | {"do_lower_case": True}))
    encoder = load_encoder(folder, CONFIG, precision="float32")
    assert encoder.sides_differ
    assert_like_the_peer(folder, encoder)
    own = load_encoder(folder, ExpansionConfig(query_prefix="cat ", query_max_terms=3), precision="float32")
    assert not np.array_equal(dense(own, Side.QUERY), dense(encoder, Side.QUERY))
    assert (dense(own, Side.QUERY) > 0).sum(1).max() == 3


def test_both_sides_from_a_table(bert: Path, table: torch.Tensor, tmp_path: Path) -> None:
    folder = save([SparseStaticEmbedding(network(bert).tokenizer, weight=table)], tmp_path / "model")
    encoder = load_encoder(folder, CONFIG)
    facts = inspect_model(folder, CONFIG)
    assert (encoder.engine, encoder.sides_differ) == ("static", False)
    assert (facts.architecture, facts.vocabulary_size, facts.hidden) == ("SparseStaticEmbedding", 40, 0)
    assert facts.weights_bytes == 160
    assert_like_the_peer(folder, encoder)
    limited = load_encoder(folder, ExpansionConfig(max_tokens=3, min_weight=1.5, query_max_terms=1))
    assert (dense(limited, Side.QUERY) > 0).sum(1).max() == 1
    assert dense(limited, Side.DOCUMENT)[dense(limited, Side.DOCUMENT) > 0].min() >= 1.5


def test_two_networks(bert: Path, make_model: Callable[..., Path], tmp_path: Path) -> None:
    other = shutil.copytree(make_model(num_hidden_layers=1), tmp_path / "other")
    router = Router.for_query_document(
        query_modules=[network(other), SpladePooling()], document_modules=[network(bert), SpladePooling("sum")]
    )
    folder = save([router], tmp_path / "model")
    encoder = load_encoder(folder, CONFIG, precision="float32")
    assert encoder.engine == "transformers"
    assert_like_the_peer(folder, encoder)


# --- OpenSearch's doc-only models


@pytest.fixture
def doc_only(bert: Path, table: torch.Tensor, tmp_path: Path) -> Path:
    folder = shutil.copytree(bert, tmp_path / "doc_only")
    tokens = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(list(range(40)))
    idf = {token: weight for token, weight in zip(tokens, table.tolist(), strict=True) if weight > 0}
    (folder / "idf.json").write_text(json.dumps(idf | {"not in the vocabulary": 3.5}))
    return folder


def test_a_doc_only_model(doc_only: Path, table: torch.Tensor) -> None:
    """As OpenSearch's pages describe them: special tokens weigh nothing, and a query's tokens their idf."""
    encoder = load_encoder(doc_only, CONFIG, precision="float32")
    facts = inspect_model(doc_only, CONFIG)
    assert (facts.layout, facts.sides_differ) == ("doc_only", True)
    tokenizer = AutoTokenizer.from_pretrained(doc_only)
    model = AutoModelForMaskedLM.from_pretrained(doc_only).eval()
    special = tokenizer.all_special_ids
    assert len(special) == 5
    for text, document, query in zip(TEXTS, dense(encoder, Side.DOCUMENT), dense(encoder, Side.QUERY), strict=True):
        features = tokenizer([text], return_tensors="pt", truncation=True, max_length=100)
        with torch.inference_mode():
            expected = model(**features).logits[0].amax(0).relu().log1p().numpy()
        expected[special] = 0
        np.testing.assert_allclose(document, expected, atol=1e-4)
        looked_up = np.zeros(40, dtype=np.float32)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:100]
        looked_up[ids] = np.maximum(table.numpy()[ids], 0)
        np.testing.assert_allclose(query, looked_up, atol=1e-6)


def test_a_doc_only_model_shares_no_fingerprint_with_the_plain_one(doc_only: Path, bert: Path) -> None:
    base = inspect_model(doc_only, CONFIG)
    assert base.fingerprint != inspect_model(bert, CONFIG).fingerprint
    idf = json.loads((doc_only / "idf.json").read_text())
    (doc_only / "idf.json").write_text(json.dumps(idf | {"cat": 9.0}))
    changed = inspect_model(doc_only, CONFIG)
    assert changed.fingerprint == base.fingerprint
    assert changed.query_fingerprint != base.query_fingerprint


def test_a_third_version_without_its_activation_is_refused(doc_only: Path) -> None:
    (doc_only / "README.md").write_text("---\nlicense: x\n---\n# opensearch-neural-sparse-encoding-doc-v3-distill\n")
    with pytest.raises(FailedPreconditionError, match=r"v3, which apply log1p twice, and modules\.json"):
        inspect_model(doc_only, CONFIG)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cat": "heavy"}', 'idf.json gives the token "cat" no number'),
        ('{"cat": NaN}', 'idf.json gives the token "cat" no number'),
        ('{"dog": 1}', "holds none of the tokenizer's tokens"),
        ("[]", "idf.json does not hold a JSON object"),
        ("{", "idf.json is not readable JSON"),
    ],
)
def test_a_broken_idf_is_named(doc_only: Path, content: str, message: str) -> None:
    (doc_only / "idf.json").write_text(content)
    with pytest.raises(FailedPreconditionError, match=message):
        inspect_model(doc_only, CONFIG)


# --- what is refused


@pytest.fixture(scope="module")
def saved(bert: Path, table: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save([routed(bert, table)], tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def kinds(*types: str) -> str:
    return json.dumps([{"path": f"{number}_x", "type": kind} for number, kind in enumerate(types)])


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            kinds("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"),
            r"its modules \(Transformer, Pooling\) are not those of a sparse encoder",
        ),
        (kinds("custom_module.MLMTransformer"), "its module custom_module.MLMTransformer is code that comes with"),
        ("{}", "modules.json does not list modules"),
        ("[1]", "modules.json does not list modules"),
        ('[{"type": 1, "path": ""}]', "modules.json is broken"),
        ('[{"type": "sentence_transformers.models.Router", "path": "../up"}]', r'"\.\./up", which is outside'),
        ('[{"type": "sentence_transformers.models.Router", "path": "/etc"}]', '"/etc", which is outside'),
        ('[{"type": "sentence_transformers.models.Router", "path": "a"}]', r"a/config\.json is missing"),
        ("[", r"modules\.json is not readable JSON"),
    ],
)
def test_other_modules_are_refused(folder: Path, modules: str, message: str) -> None:
    (folder / "modules.json").write_text(modules)
    with pytest.raises(FailedPreconditionError, match=message):
        inspect_model(folder, CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structure": {"document": []}}, "has no route for a query; its routes are document"),
        ({"structure": {"document": ["a"], "query": ["b"]}}, r"router_config\.json is broken"),
        ({"types": {"document_0_Transformer": "os.system"}}, "code that comes with the model|broken"),
        ({"types": []}, r"router_config\.json is broken"),
        ({"structure": {"query": ["query_0_SparseStaticEmbedding"] * 2, "document": []}}, "not those of a sparse"),
    ],
)
def test_other_routes_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder / "router_config.json", **changes)
    with pytest.raises(FailedPreconditionError, match=message):
        inspect_model(folder, CONFIG)


@pytest.mark.parametrize("name", ["document_0_Transformer", "query_0_SparseStaticEmbedding"])
def test_a_missing_folder_is_named(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)
    with pytest.raises(FailedPreconditionError, match=f"its folder {name} is missing"):
        inspect_model(folder, CONFIG)


def test_routes_by_task_and_kind_of_input(folder: Path, table: torch.Tensor) -> None:
    content = json.loads((folder / "router_config.json").read_text())
    structure = {"looked_up": content["structure"]["query"], "text": content["structure"]["document"]}
    parameters = {"route_mappings": {"('query', None)": "looked_up", "not a pair": "text"}, "default_route": "text"}
    edit(folder / "router_config.json", structure=structure, parameters=parameters)
    encoder = load_encoder(folder, CONFIG, precision="float32")
    assert dense(encoder, Side.QUERY, ["cat"]).max() == pytest.approx(float(table[9]))
    assert_like_the_peer(folder, encoder)


def test_a_broken_table_is_named(folder: Path, bert: Path) -> None:
    file = folder / "query_0_SparseStaticEmbedding" / "model.safetensors"
    save_file({"weight": torch.ones(39)}, file)
    with pytest.raises(FailedPreconditionError, match="knows 40 tokens and its weights 39"):
        inspect_model(folder, CONFIG)
    save_file({"weight": torch.full((40,), float("nan"))}, file)
    with pytest.raises(FailedPreconditionError, match="not a number"):
        inspect_model(folder, CONFIG)
    save_file({"other": torch.ones(40)}, file)
    with pytest.raises(FailedPreconditionError, match=r'query_0_.*/model.safetensors lacks the tensor "weight"'):
        inspect_model(folder, CONFIG)
    file.rename(file.with_name("pytorch_model.bin"))
    with pytest.raises(FailedPreconditionError, match=r"pickle \(pytorch_model\.bin\)") as caught:
        inspect_model(folder, CONFIG)
    assert caught.value.reason_code == "MODEL_IS_PICKLE"
    file.with_name("config.json").write_text(json.dumps({"path": "../../secret.json"}))
    with pytest.raises(FailedPreconditionError, match=r"^The model cannot be used: secret\.json is missing, which"):
        inspect_model(folder, CONFIG)
    tokens = AutoTokenizer.from_pretrained(bert).get_vocab()
    file.with_name("idf.json").write_text(json.dumps(dict.fromkeys(tokens, 2.5)))
    file.with_name("config.json").write_text(json.dumps({"path": "somewhere/else/idf.json"}))
    assert dense(load_encoder(folder, CONFIG, precision="float32"), Side.QUERY, ["cat"]).max() == 2.5


def test_sides_with_other_tokens_are_refused(folder: Path) -> None:
    file = folder / "query_0_SparseStaticEmbedding" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["sat"] = vocabulary["sat"], vocabulary["cat"]
    file.write_text(json.dumps(content))
    with pytest.raises(FailedPreconditionError, match='token 9 is "cat" for documents and "sat" for queries'):
        inspect_model(folder, CONFIG)


def test_settings_of_a_network_that_would_change_it_are_refused(folder: Path) -> None:
    file = folder / "document_0_Transformer" / "sentence_bert_config.json"
    edit(file, processing_kwargs={"text": {"max_length": 20, "truncation": True}})
    assert inspect_model(folder, CONFIG).longest == 20
    edit(file, transformer_task="feature-extraction")
    with pytest.raises(FailedPreconditionError, match=r'gives no logits of tokens .its task is "feature-extraction"'):
        inspect_model(folder, CONFIG)
    edit(file, transformer_task="fill-mask", processing_kwargs={"text": {"add_special_tokens": False}})
    with pytest.raises(FailedPreconditionError, match=r'sentence_bert_config.json calls the tokenizer with "add_sp'):
        inspect_model(folder, CONFIG)


# --- whatever the files hold

_SOME = st.sampled_from(
    [
        "",
        "query",
        "text",
        "query_0_SparseStaticEmbedding",
        "document_0_Transformer",
        "..",
        "a\x00b",
        "sentence_transformers.models.Router",
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.SpladePooling",
    ]
)
_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | _SOME
_JSON = st.recursive(_VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_SOME, inner, max_size=3))


@given(
    name=st.sampled_from(
        [
            "modules.json",
            "router_config.json",
            "config_sentence_transformers.json",
            "document_0_Transformer/config.json",
            "document_0_Transformer/sentence_bert_config.json",
            "document_0_Transformer/tokenizer_config.json",
            "document_1_SpladePooling/config.json",
            "query_0_SparseStaticEmbedding/config.json",
            "query_0_SparseStaticEmbedding/tokenizer_config.json",
        ]
    ),
    value=_JSON,
    data=st.data(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_is_read_or_refused(
    saved: Path, tmp_path: Path, name: str, value: Any, data: st.DataObject
) -> None:
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    content = json.loads((folder / name).read_text())
    if isinstance(content, dict) and content:
        # Deep enough to be read at all: one value of what was right.
        content[data.draw(st.sampled_from(sorted(content)))] = value
    else:
        content = value
    (folder / name).write_text(json.dumps(content))
    try:
        facts = inspect_model(folder, CONFIG)
    except FailedPreconditionError as error:
        assert error.message.endswith(".")  # noqa: PT017
    else:
        assert facts.vocabulary_size == 40


@given(value=_JSON, data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_tokenizer_holds_is_read_or_refused(
    bert: Path, tmp_path: Path, value: Any, data: st.DataObject
) -> None:
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bert, folder)
    content = node = json.loads((folder / "tokenizer.json").read_text())
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not node[key] or not isinstance(node[key], dict | list) or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = value
    (folder / "tokenizer.json").write_text(json.dumps(content))
    try:
        facts = inspect_model(folder, CONFIG)
    except FailedPreconditionError as error:
        assert error.message.endswith(".")  # noqa: PT017
    else:
        assert facts.vocabulary_size == 40


@given(texts=st.lists(st.lists(st.integers(0, 39), max_size=30), max_size=5), limit=st.integers(0, 6))
def test_a_table_gives_each_distinct_token_its_weight(table: torch.Tensor, texts: list[list[int]], limit: int) -> None:
    strings = [f"t{number % 7}{number}" for number in range(40)]
    weights = table.numpy().round(1)  # so that some are equal
    tokenizer = SimpleNamespace(vocabulary=strings)
    config = ExpansionConfig(query_max_terms=limit, min_weight=0.5)
    encoder = StaticEncoder(Table(weights, tokenizer), config, dict.fromkeys(Side, ""))  # type: ignore[arg-type]
    expansions = encoder.encode([TokenizedText(text) for text in texts], Side.QUERY)
    for text, expansion in zip(texts, expansions, strict=True):
        expected = sorted((-weights[number], strings[number]) for number in set(text) if weights[number] >= 0.5)
        expected = expected[: limit or None]
        assert list(zip((-expansion.weights).tolist(), expansion.tokens, strict=True)) == expected
        assert [strings[number] for number in expansion.token_ids] == list(expansion.tokens)
        assert expansion.token_count == len(text)
