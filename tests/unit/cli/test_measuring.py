"""What `termwise bench hardware` and `termwise eval --plot --markdown` are made of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.cli.evaluate import quality_table
from termwise.cli.hardware import Combination, Texts, default_combinations
from termwise.cli.output import markdown_table
from termwise.cli.plots import plot_quality
from termwise.cli.stand_in import SPECIAL, Shape, make_stand_in, make_vocabulary
from termwise.client import InvalidArgumentError
from termwise.server.inference.base import ExpansionConfig, Side
from termwise.server.inference.loader import inspect_model, load_encoder

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["salmon are raised in floating net pens", "pluto is a dwarf planet; so is ceres", "wait a moment"]


@given(st.integers(1, 300))
def test_combinations_are_those_the_api_takes_and_start_with_one(processors: int) -> None:
    found = default_combinations(processors)

    assert found[0] == Combination(1, 1)
    assert len(set(found)) == len(found)
    for each in found:
        assert 1 <= each.allocations <= 64
        assert 1 <= each.threads <= 32
        assert each.threads & (each.threads - 1) == 0, "a power of two"
        assert each.allocations * each.threads <= processors


@given(st.integers(3, 600), st.floats(0.5, 4), st.integers(1, 30))
def test_texts_have_the_wanted_length_and_none_comes_twice(tokens: int, tokens_a_word: float, count: int) -> None:
    texts = Texts([f"word{number}" for number in range(10_007)])
    texts.calibrate(lambda text: round(len(text.split()) * tokens_a_word) + 2)

    found = [texts.cut(tokens) for _ in range(count)]

    assert len(set(found)) == count
    for text in found:
        assert abs(len(text.split()) * tokens_a_word + 2 - tokens) <= max(tokens_a_word, 0.02 * tokens + 1)


def test_texts_go_on_from_the_beginning_where_the_words_end() -> None:
    texts = Texts(["a", "b", "c", "d", "e"])

    assert [texts.cut(tokens) for tokens in (9, 5, 2)] == ["a b c d e a b", "e a b", "e"]


def test_a_stand_in_is_a_model_that_keeps_about_as_many_tokens_as_wanted(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(TEXTS, 2000)
    folder = make_stand_in(tmp_path / "model", Shape(2, 64, 4, 128), vocabulary, kept=100)
    again = make_stand_in(tmp_path / "again", Shape(2, 64, 4, 128), vocabulary, kept=100)

    config = ExpansionConfig()
    assert inspect_model(folder, config) == inspect_model(again, config), "the same model each time"
    encoder = load_encoder(folder, config, precision="float32")
    (expansion,) = encoder.encode(encoder.tokenize([" ".join(TEXTS * 8)], Side.DOCUMENT), Side.DOCUMENT)
    assert 25 <= len(expansion.tokens) <= 400


@given(st.lists(st.text("abcdefg ,;éß漢0123456789", max_size=30), max_size=10), st.integers(200, 1000))
def test_a_vocabulary_has_its_size_and_no_word_twice(texts: list[str], size: int) -> None:
    found = make_vocabulary(texts, size)

    assert len(found) == len(set(found)) == size
    assert tuple(found[: len(SPECIAL)]) == SPECIAL


@given(st.lists(st.lists(st.text("ab|", max_size=4), min_size=3, max_size=3), max_size=4))
def test_a_markdown_table_has_as_many_columns_in_every_line(rows: list[list[str]]) -> None:
    lines = markdown_table(["a", "b", "c"], rows).split("\n")

    assert len(lines) == len(rows) + 2
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}


def _rows(*scores: tuple[str, str, float]) -> list[dict[str, Any]]:
    return [{"collection": name, "system": system, "ndcg@10": score} for name, system, score in scores]


def test_the_quality_table_marks_the_best_and_gives_means() -> None:
    table = quality_table(_rows(("a", "bm25", 0.25), ("a", "sparse", 0.5), ("b", "bm25", 0.75), ("b", "sparse", 0.2)))

    assert table.splitlines() == [
        "| NDCG@10 | bm25 | sparse |",
        "| --- | ---: | ---: |",
        "| a | .250 | **.500** |",
        "| b | **.750** | .200 |",
        "| mean | **.500** | .350 |",
    ]
    assert "mean" not in quality_table(_rows(("a", "bm25", 0.25), ("a", "sparse", 1.0)))


def test_a_plot_shows_every_collection_system_and_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = _rows(("adi", "bm25", 0.123), ("adi", "sparse", 0.456), ("med", "bm25", 0.789), ("med", "sparse", 0.555))

    plot_quality(rows, tmp_path / "quality.svg")

    drawn = (tmp_path / "quality.svg").read_text()
    for words in ("adi", "med", "bm25", "sparse", ".123", ".456", ".789", ".555", "NDCG@10"):
        assert f">{words}<" in drawn


def test_a_plot_of_another_kind_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r'"quality.gif" must end in .pdf, .png, .svg'):
        plot_quality([], tmp_path / "quality.gif")
