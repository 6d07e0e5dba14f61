"""Text in, ids out: against the tokenizer used plainly, whatever the text's length."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from termwise.server.errors import InvalidArgumentError
from termwise.server.inference.artefacts import open_folder
from termwise.server.inference.base import ExpansionConfig, Side
from termwise.server.inference.text import TextTokenizer, open_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

_PIECES = st.sampled_from(
    [
        "salmon ",
        "x" * 120,
        " ",
        "\n\n",
        " " * 300,
        "北京",
        "☃",
        "...",
        "don't ",
        "naïve",
        "y" * 99 + " ",
        "9.81",
        "\x00",
    ]
)


@cache
def load(folder: Path, max_tokens: int) -> tuple[TextTokenizer, Tokenizer]:
    ours = open_tokenizer(open_folder(folder), ExpansionConfig(max_tokens=max_tokens))
    return ours, Tokenizer.from_file(str(folder / "tokenizer.json"))


def plain(folder: Path, text: str, max_tokens: int) -> tuple[list[int], bool]:
    _, tokenizer = load(folder, max_tokens)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    full = len(tokenizer.encode(text).ids)
    tokenizer.enable_truncation(max_tokens)
    return tokenizer.encode(text).ids, full > max_tokens


@given(pieces=st.lists(_PIECES, min_size=1, max_size=400), max_tokens=st.sampled_from([3, 16, 64]))
@settings(max_examples=60, deadline=None)
def test_truncation_equals_the_tokenizers_own(model_folder: Path, pieces: list[str], max_tokens: int) -> None:
    text = "a " + "".join(pieces)
    tokenized = load(model_folder, max_tokens)[0].tokenize([text], Side.DOCUMENT)[0]
    ids, truncated = plain(model_folder, text, max_tokens)
    assert list(tokenized.ids) == ids
    assert tokenized.truncated == truncated


@pytest.mark.parametrize("text", ["word " * 2_000_000, "x" * 10_000_000, " " * 9_999_990 + "end", "北" * 3_000_000])
def test_ten_megabytes_are_cut_soon(model_folder: Path, text: str) -> None:
    tokenizer = open_tokenizer(open_folder(model_folder), ExpansionConfig())
    start = time.process_time()
    tokenized = tokenizer.tokenize([text], Side.DOCUMENT)[0]
    assert time.process_time() - start < 2
    assert len(tokenized.ids) <= 512
    assert tokenized.truncated


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u3000"])
def test_text_without_content_has_no_tokens(model_folder: Path, text: str) -> None:
    tokenizer = open_tokenizer(open_folder(model_folder), ExpansionConfig(document_prefix="passage: "))
    assert list(tokenizer.tokenize([text], Side.DOCUMENT)[0].ids) == []


def test_model_without_truncation_refuses_long_texts(model_folder: Path) -> None:
    tokenizer = open_tokenizer(open_folder(model_folder), ExpansionConfig(max_tokens=8, truncate=False))
    fits = tokenizer.tokenize(["one two three four five six"], Side.DOCUMENT)[0]
    assert len(fits.ids) == 8
    assert not fits.truncated
    with pytest.raises(InvalidArgumentError, match="longer than the model's 8 tokens"):
        tokenizer.tokenize(["one two three four five six seven"], Side.DOCUMENT)


def test_default_length_is_the_models_own(model_folder: Path) -> None:
    assert open_tokenizer(open_folder(model_folder), ExpansionConfig()).max_tokens == 512
