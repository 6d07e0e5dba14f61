"""The vocabulary file of a package, and the tokenizers made of it."""

from __future__ import annotations

import json
import resource
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from elser_package import _read_vocabulary
from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.torchscript.metadata import Tokenization
from termwise.server.inference.torchscript.names import VOCABULARY_LIMIT_BYTES
from termwise.server.inference.torchscript.vocabulary import Vocabulary, make_tokenizer, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]


def write(file: Path, **values: Any) -> Path:
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def test_a_vocabulary_is_read(tmp_path: Path) -> None:
    read = read_vocabulary(write(tmp_path / "v", vocabulary=["a", "b"], scores=[0, -1.5], merges=["a b"], other=1))
    assert (read.tokens, read.scores, read.merges) == (["a", "b"], [0.0, -1.5], ["a b"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not readable JSON"),
        (b"\xff", "not readable JSON"),
        (b"[" * 100_000, "not readable JSON"),
        (b'["a"]', "JSON object"),
        (b"{}", "missing or empty"),
        (b'{"vocabulary": []}', "missing or empty"),
        (b'{"vocabulary": "a"}', "list of strings"),
        (b'{"vocabulary": ["a", 1]}', "list of strings"),
        (b'{"vocabulary": ["a"], "scores": [1, 2]}', "one number a token"),
        (b'{"vocabulary": ["a"], "scores": ["x"]}', "not a number"),
        (b'{"vocabulary": ["a"], "scores": [NaN]}', "not a number"),
        (b'{"vocabulary": ["a"], "merges": {}}', "list of strings"),
    ],
)
def test_a_broken_vocabulary_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(FailedPreconditionError, match=said):
        read_vocabulary(tmp_path / "v")


@pytest.mark.parametrize("count", [3_000_000, 1_000_001])
def test_a_vocabulary_of_millions_is_refused_before_it_takes_memory(count: int, tmp_path: Path) -> None:
    file = tmp_path / "v"
    file.write_bytes(b'{"vocabulary": [' + b'"ab",' * (count - 1) + b'"a"]}')
    assert file.stat().st_size < VOCABULARY_LIMIT_BYTES
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FailedPreconditionError, match="more than 1000000 tokens") as raised:
        read_vocabulary(file)
    assert raised.value.reason_code == "VOCABULARY_TOO_LARGE"
    # In kB: the file itself and what a million references take.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "v").open("wb") as stream:
        stream.truncate(VOCABULARY_LIMIT_BYTES + 1)
    with pytest.raises(FailedPreconditionError, match="20000001 bytes, over the 20000000"):
        read_vocabulary(tmp_path / "v")


@pytest.mark.parametrize(
    ("kind", "tokens", "said"),
    [
        ("bert", ["a", "[CLS]", "[SEP]"], r'lacks the token "\[UNK\]"'),
        ("mpnet", BERT, r'lacks the token "<s>"'),
        ("roberta", ["<s>", "</s>", "<unk>"], '"merges"'),
        ("xlm_roberta", ["<s>", "</s>", "<unk>"], '"scores"'),
    ],
)
def test_what_a_kind_of_tokenizer_lacks_is_named(kind: str, tokens: list[str], said: str) -> None:
    with pytest.raises(FailedPreconditionError, match=said):
        make_tokenizer(Vocabulary(tokens, [], []), Tokenization(kind=kind))


def test_merges_that_are_none_are_refused() -> None:
    tokens = ["<s>", "</s>", "<unk>", "a"]
    for merges in (["a"], ["a b c"], ["a b"]):
        with pytest.raises(FailedPreconditionError, match="does not make a roberta tokenizer"):
            make_tokenizer(Vocabulary(tokens, merges, []), Tokenization(kind="roberta"))


def test_words_keep_their_case_unless_the_metadata_says_otherwise() -> None:
    vocabulary = Vocabulary([*BERT, "A", "\u00e9", "e"], [], [])
    cased = make_tokenizer(vocabulary, Tokenization())
    assert cased.encode("A a \u00e9", add_special_tokens=False).tokens == ["A", "a", "\u00e9"]
    uncased = make_tokenizer(vocabulary, Tokenization(do_lower_case=True))
    assert uncased.encode("A a \u00e9").tokens == ["[CLS]", "a", "a", "e", "[SEP]"]


texts = st.text("abcehmnostw34. '\u00e9THE<s>\u4e2d\t\u3000\uff21", max_size=40) | st.text(max_size=20)


@pytest.fixture(scope="module")
def pairs(make_model: Callable[..., Path]) -> dict[str, tuple[Any, Any]]:
    """For each kind: the tokenizer of a package, and what transformers makes of the same vocabulary."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    made = {}
    for architecture in ("bert", "mpnet", "roberta", "xlm-roberta"):
        folder = make_model(architecture)
        kind, held = _read_vocabulary(folder, architecture)
        vocabulary = Vocabulary(held["vocabulary"], held.get("merges", []), held.get("scores", []))
        mine = make_tokenizer(vocabulary, Tokenization(kind=kind, do_lower_case=kind in {"bert", "mpnet"}))
        if kind == "xlm_roberta":
            made[kind] = mine, Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            made[kind] = mine, AutoTokenizer.from_pretrained(folder, use_fast=True).backend_tokenizer
    return made


@pytest.mark.parametrize("kind", ["bert", "mpnet", "roberta"])
@given(text=texts)
def test_texts_are_cut_as_transformers_cuts_them(kind: str, text: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    mine, theirs = pairs[kind]
    assert mine.encode(text).ids == theirs.encode(text).ids


words = st.text("abcehmnostw34.THE", min_size=1, max_size=9)


@given(text=st.lists(words, max_size=6).map(" ".join))
def test_unigrams_are_cut_by_their_scores(text: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    mine, theirs = pairs["xlm_roberta"]
    assert mine.encode(text).ids == theirs.encode(text).ids
    assert mine.encode(f"  {text}  ").ids == mine.encode(f" {text} ").ids
