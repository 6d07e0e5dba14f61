"""The packed encoder against plain transformers, and against itself."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForMaskedLM, AutoTokenizer

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.base import Encoder, Expansion, ExpansionConfig, Side
from termwise.server.inference.hardware import has_bfloat16
from termwise.server.inference.loader import load_encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

PROSE = (
    "The zlib module compresses data so that it takes less room, and gives it back unchanged when it is asked to. "
    "Café owners in Zürich (about 1,200 of them) don't always agree: some prefer 2-for-1 offers; others - happy hours! "
)
TEXTS = [
    "pluto",
    "is pluto a planet?",
    "how do I squeeze a file so it takes less room",
    PROSE,
    PROSE * 3,
    "supercalifragilisticexpialidocious 北京 ☃ naïve",
    PROSE * 20,
]


def expand(encoder: Encoder, texts: Sequence[str], side: Side = Side.DOCUMENT) -> list[Expansion]:
    return encoder.encode(encoder.tokenize(texts, side), side)


def dense(expansion: Expansion, size: int) -> NDArray[np.float32]:
    row = np.zeros(size, dtype=np.float32)
    row[expansion.token_ids] = expansion.weights
    return row


def plain_weights(folder: Path, texts: Sequence[str], max_length: int) -> NDArray[np.float32]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            encoded = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
            logits = model(**encoded).logits[0]
            rows.append(torch.log1p(torch.relu(logits)).amax(0).numpy())
    return np.stack(rows)


def cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


def test_float32_equals_plain_transformers(encoder: Encoder, model_folder: Path) -> None:
    expected = plain_weights(model_folder, TEXTS, 512)
    for expansion, row in zip(expand(encoder, TEXTS), expected, strict=True):
        np.testing.assert_allclose(dense(expansion, encoder.vocabulary_size), row, atol=1e-4)


def test_bfloat16_stays_near_plain_transformers(bfloat16_encoder: Encoder, model_folder: Path) -> None:
    assert bfloat16_encoder.precision == "bfloat16"
    expected = plain_weights(model_folder, TEXTS, 512)
    for expansion, row in zip(expand(bfloat16_encoder, TEXTS), expected, strict=True):
        assert cosine(dense(expansion, bfloat16_encoder.vocabulary_size), row) > 0.999


def forward(folder: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """Give the weights of a text by plain transformers."""
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(ids)])).logits[0]
    weights: NDArray[np.float32] = torch.log1p(torch.relu(logits)).amax(0).numpy()
    return weights


# The last two spell the padding token of some of the vocabularies out.
SMALL_TEXTS = [
    "the cat sat",
    "a b c",
    "the cats sat on the mat " * 12,
    "W3 w4",
    "sat the cat",
    "a <pad> cat <pad> b",
    "<pad>",
]
ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"tie_word_embeddings": False}),
    ("bert", {"hidden_act": "relu"}),
    ("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    ("distilbert", {}),
    ("distilbert", {"activation": "relu"}),
    ("roberta", {}),
    ("roberta", {"tie_word_embeddings": False, "hidden_act": "relu", "type_vocab_size": 1}),
    ("roberta", {"pad_token_id": 5}),
    ("xlm-roberta", {}),
    ("mpnet", {}),
    ("mpnet", {"tie_word_embeddings": False, "hidden_act": "relu", "max_position_embeddings": 400}),
    ("electra", {}),
    ("electra", {"embedding_size": 32}),
    ("electra", {"tie_word_embeddings": False, "hidden_act": "relu"}),
]


@pytest.mark.parametrize(("architecture", "changes"), ARCHITECTURES)
def test_each_architecture_equals_plain_transformers(
    make_model: Callable[..., Path], architecture: str, changes: dict[str, Any]
) -> None:
    folder = make_model(architecture, **changes)
    config = ExpansionConfig(query_prefix="the cat ")
    encoder = load_encoder(folder, config, precision="float32")
    texts = [*SMALL_TEXTS, "the cats sat on the mat " * 60]
    for side in Side:
        for text, expansion in zip(texts, expand(encoder, texts, side), strict=True):
            row = forward(folder, encoder.tokenize([text], side)[0].ids)
            np.testing.assert_allclose(dense(expansion, encoder.vocabulary_size), row, atol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "mpnet", "electra"])
def test_each_architecture_stays_near_plain_transformers_in_bfloat16(
    make_model: Callable[..., Path], architecture: str
) -> None:
    if not has_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    # Wide enough for layers in bfloat16.
    wide = {"dim": 160} if architecture == "distilbert" else {"hidden_size": 160}
    folder = make_model(architecture, initializer_range=0.1, **wide)
    encoder = load_encoder(folder, ExpansionConfig(query_prefix="the cat "), precision="bfloat16")
    assert encoder.precision == "bfloat16"
    for side in Side:
        for text, expansion in zip(SMALL_TEXTS, expand(encoder, SMALL_TEXTS, side), strict=True):
            row = forward(folder, encoder.tokenize([text], side)[0].ids)
            assert cosine(dense(expansion, encoder.vocabulary_size), row) > 0.998


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "mpnet", "electra"])
def test_vocabulary_without_tokenizer_json_cuts_as_transformers_does(
    make_model: Callable[..., Path], architecture: str
) -> None:
    folder = make_model(architecture)
    encoder = load_encoder(folder, ExpansionConfig(), precision="float32")
    peer = AutoTokenizer.from_pretrained(folder)
    for text in ("The CATS sat", "café, mat.", "unknown 北 w7", "the <mask> cat", "the [MASK]", "a <pad>[PAD] b"):
        assert list(encoder.tokenize([text], Side.QUERY)[0].ids) == peer(text)["input_ids"]


@pytest.mark.parametrize(("architecture", "longest"), [("bert", 100), ("roberta", 98), ("mpnet", 98), ("electra", 100)])
def test_longest_text_fills_the_positions_that_a_model_has(
    make_model: Callable[..., Path], architecture: str, longest: int
) -> None:
    folder = make_model(architecture)
    encoder = load_encoder(folder, ExpansionConfig(), precision="float32")
    assert expand(encoder, ["the cats sat " * 100])[0].token_count == longest
    with pytest.raises(FailedPreconditionError, match=f"takes 3 to {longest}"):
        load_encoder(folder, ExpansionConfig(max_tokens=longest + 1))


_WORDS = st.sampled_from(["salmon", "farm", "net", "tide", "pluto", "compress", "the", "of", "42", "naïve", "zlib"])
_TEXT = st.lists(_WORDS, max_size=90).map(" ".join)


@given(texts=st.lists(_TEXT, min_size=1, max_size=12), data=st.data())
@settings(max_examples=25, deadline=None)
def test_texts_encoded_together_in_any_order_equal_texts_encoded_alone(
    encoder: Encoder, texts: list[str], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(texts))))
    together = expand(encoder, [texts[each] for each in order])
    for position, expansion in zip(order, together, strict=True):
        alone = expand(encoder, [texts[position]])[0]
        assert expansion.token_count == alone.token_count
        size = encoder.vocabulary_size
        np.testing.assert_allclose(dense(expansion, size), dense(alone, size), atol=1e-4)


def test_bfloat16_texts_together_stay_near_texts_alone(bfloat16_encoder: Encoder) -> None:
    size = bfloat16_encoder.vocabulary_size
    for text, expansion in zip(TEXTS, expand(bfloat16_encoder, TEXTS), strict=True):
        assert cosine(dense(expansion, size), dense(expand(bfloat16_encoder, [text])[0], size)) > 0.9995


def test_expansion_is_sorted_named_and_positive(encoder: Encoder) -> None:
    expansion = expand(encoder, ["is pluto a planet?"], Side.QUERY)[0]
    assert expansion.tokens[:2] == ("pluto", "planet")
    assert (expansion.weights > 0).all()
    assert (np.diff(expansion.weights) <= 0).all()
    assert expansion.weights.dtype == np.float32
    assert expansion.token_ids.dtype == np.int64
    assert expansion.token_count == 7
    assert not expansion.truncated


def test_no_texts_give_no_expansions(encoder: Encoder) -> None:
    assert encoder.tokenize([], Side.QUERY) == []
    assert encoder.encode([], Side.QUERY) == []


def test_term_limits_keep_the_heaviest_terms_of_their_side(model_folder: Path, encoder: Encoder) -> None:
    limited = load_encoder(model_folder, ExpansionConfig(document_max_terms=5, query_max_terms=3), precision="float32")
    whole = expand(encoder, [PROSE])[0]
    document, query = expand(limited, [PROSE])[0], expand(limited, [PROSE], Side.QUERY)[0]
    assert document.tokens == whole.tokens[:5]
    assert query.tokens == whole.tokens[:3]
    assert limited.sides_differ
    assert not encoder.sides_differ


def test_min_weight_drops_lighter_terms(model_folder: Path, encoder: Encoder) -> None:
    limited = load_encoder(model_folder, ExpansionConfig(min_weight=0.5), precision="float32")
    whole = expand(encoder, [PROSE])[0]
    assert list(expand(limited, [PROSE])[0].tokens) == [
        token for token, weight in zip(whole.tokens, whole.weights, strict=True) if weight >= 0.5
    ]
    assert whole.weights.min() < 0.5


def test_prefixes_are_read_before_the_text(model_folder: Path, encoder: Encoder) -> None:
    config = ExpansionConfig(document_prefix="passage: ", query_prefix="query: ")
    prefixed = load_encoder(model_folder, config, precision="float32")
    for side, prefix in ((Side.DOCUMENT, "passage: "), (Side.QUERY, "query: ")):
        actual = expand(prefixed, ["salmon farm"], side)[0]
        assert actual.tokens == expand(encoder, [f"{prefix}salmon farm"], side)[0].tokens
    assert expand(prefixed, [" "], Side.QUERY)[0].tokens == ()


_MEMORY = """
import sys
from pathlib import Path
import psutil
from termwise.server.inference.base import ExpansionConfig, Side
from termwise.server.inference.loader import load_encoder
encoder = load_encoder(Path(sys.argv[1]), ExpansionConfig(), precision=sys.argv[2], cache=Path(sys.argv[3]))
encoder.encode(encoder.tokenize(["warm up"], Side.DOCUMENT), Side.DOCUMENT)
before = psutil.Process().memory_info().rss
words = "the committee met and its report named rust salt neglect as causes of the loss ".split()
texts = [" ".join(words[(i + j) % len(words)] for j in range(600)) for i in range(256)]
tokenized = encoder.tokenize(texts, Side.DOCUMENT)
assert all(len(text.ids) == 512 for text in tokenized)
expansions = encoder.encode(tokenized, Side.DOCUMENT)
assert len(expansions) == 256 and all(expansion.tokens for expansion in expansions)
# Not getrusage: its maximum is inherited from the parent.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - before)
"""


@pytest.mark.usefixtures("encoder")
def test_memory_is_bounded_for_256_texts_of_512_tokens(model_folder: Path, parity_cache: Path) -> None:
    # float32 is the larger of the precisions. The fixture has left its verdict, so that the process measured does not
    # load plain transformers.
    command = [sys.executable, "-c", _MEMORY, str(model_folder), "float32", str(parity_cache)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0 < grown < 600e6


def test_logits_of_a_batch_take_a_bounded_memory(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("termwise.server.inference.splade._LOGITS_BYTES", 3 * 40 * 4)
    encoder: Any = load_encoder(make_model(), ExpansionConfig(), precision="float32")
    sizes: list[int] = []
    run = encoder._run

    def record(texts: Sequence[Sequence[int]]) -> Any:
        sizes.append(len(texts))
        return run(texts)

    monkeypatch.setattr(encoder, "_run", record)
    texts = ["the cat", "sat", "a b c", "mat", "the cat", "b", "c"]
    together = encoder.encode(encoder.tokenize(texts, Side.QUERY), Side.QUERY)
    assert sizes == [3, 3, 1]
    for text, expansion in zip(texts, together, strict=True):
        (alone,) = encoder.encode(encoder.tokenize([text], Side.QUERY), Side.QUERY)
        assert alone.token_ids.tolist() == expansion.token_ids.tolist()
