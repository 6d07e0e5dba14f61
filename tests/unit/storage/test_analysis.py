from __future__ import annotations

import pytest

from termwise.storage.analysis import analyze, analyzer_names, check_analyzer, versioned
from termwise.storage.errors import SchemaError


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("standard", "The Quick-brown fox, 3 times!", ["the", "quick", "brown", "fox", "3", "times"]),
        ("standard", "Ünïted हिन्दी स्थिति Ёлка", ["ünïted", "हिन्दी", "स्थिति", "ёлка"]),
        ("standard", "我住在abc北京", ["我", "住", "在", "abc", "北", "京"]),
        ("standard", "서울에 산다", ["서울에", "산다"]),
        ("standard", "", []),
        ("standard", "I don't know 'quoted' words", ["i", "don't", "know", "quoted", "words"]),
        ("standard", "i.e. the U.S.A, os.path.join(a)", ["i.e", "the", "u.s.a", "os", "path", "join", "a"]),
        ("standard", "dog\u2019s 日.本", ["dog", "s", "日", "本"]),
        ("english", "The farmers are farming salmon", ["farmer", "farm", "salmon"]),
        ("english", "It's the dog's bones", ["it", "dog", "bone"]),
        ("whitespace", "A-b C,d\te", ["A-b", "C,d", "e"]),
        ("keyword", "New York, NY", ["New York, NY"]),
    ],
)
def test_words(name: str, text: str, words: list[str]) -> None:
    assert analyze(name, text) == words
    assert analyze(versioned(name), text) == words


def test_words_of_up_to_255_bytes_stay() -> None:
    for name in ("standard", "english", "whitespace"):
        assert analyze(name, f"{'z' * 255} {'z' * 256} end") == ["z" * 255, "end"]
    assert analyze("keyword", "x" * 32_766) == ["x" * 32_766]
    assert analyze("keyword", "x" * 32_767) == []


def test_names_without_a_version_mean_the_newest() -> None:
    assert versioned("english") == "english.1"
    assert versioned("english.1") == "english.1"
    assert analyzer_names() == ["english", "keyword", "standard", "whitespace"]


@pytest.mark.parametrize("name", ["", "french", "english.0", "english.2", "english.", "english.x", ".1", "english.1.1"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(SchemaError, match="does not exist"):
        check_analyzer(name)
