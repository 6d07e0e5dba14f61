"""Cuts text into words, the same way for every backend.

The analyzers are tantivy's, so that the default backend and everything beside it agree on every word. A name has
versions ("english" is short for the newest, such as "english.1"): an index keeps the version that it was made with.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from tantivy import Filter, TextAnalyzer, TextAnalyzerBuilder, Tokenizer

from termwise.storage.errors import SchemaError

_VERSIONS: Final = {"standard": 1, "english": 1, "whitespace": 1, "keyword": 1}
"""The newest version by name."""

_LONGEST_WORD: Final = 255
"""Longer words, in UTF-8 bytes, are dropped (Lucene's limit for a word)."""

_LONGEST_KEYWORD: Final = 32_766
"""Longer texts under "keyword", in UTF-8 bytes, are dropped (Lucene's limit for a term)."""

_UNSPACED: Final = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that put no spaces between words: each character is a word, so that any part of a text is found."""

_SPACED: Final = rf"[\p{{Alphabetic}}\p{{M}}\p{{N}}&&[^{_UNSPACED}]]"

_WORDS: Final = "|".join(
    (
        rf"\b(?:[\p{{L}}&&[^{_UNSPACED}]]\.)+[\p{{L}}&&[^{_UNSPACED}]]\b",
        rf"[{_UNSPACED}]\p{{M}}*",
        rf"{_SPACED}+(?:'{_SPACED}+)*",
    )
)
"""A word is an acronym ("e.g.", "U.S.A."), or a run of letters, marks and digits with apostrophes inside ("don't").

Taken apart, such words leave single letters that match where nothing is meant: on the CACM collection that costs BM25
.02 of NDCG@10. The English stemmer takes off "'s". Dotted names ("os.path") are several words, so that each is found.
"""


def analyzer_names() -> list[str]:
    """Name the analyzers, sorted, without versions."""
    return sorted(_VERSIONS)


def check_analyzer(name: str) -> None:
    """Check that an analyzer exists, with or without a version.

    Raises:
        SchemaError: it does not.

    """
    base, dot, version = name.partition(".")
    known = _VERSIONS.get(base)
    if known is None or (dot and version not in map(str, range(1, known + 1))):
        names = ", ".join(f'"{known}"' for known in analyzer_names())
        msg = f'Analyzer "{name}" does not exist; use one of {names}.'
        raise SchemaError(msg)


def versioned(name: str) -> str:
    """Give the name with its version, the newest where it has none. SchemaError where there is no such analyzer."""
    check_analyzer(name)
    return name if "." in name else f"{name}.{_VERSIONS[name]}"


def analyze(name: str, text: str) -> list[str]:
    """Cut text into words, in order. SchemaError where there is no such analyzer."""
    return text_analyzer(versioned(name)).analyze(text)


@cache
def text_analyzer(name: str) -> TextAnalyzer:
    """Build tantivy's analyzer of a versioned name."""
    base = name.partition(".")[0]
    if base == "keyword":
        builder = TextAnalyzerBuilder(Tokenizer.raw()).filter(Filter.remove_long(_LONGEST_KEYWORD + 1))
    elif base == "whitespace":
        builder = TextAnalyzerBuilder(Tokenizer.whitespace()).filter(Filter.remove_long(_LONGEST_WORD + 1))
    else:
        builder = TextAnalyzerBuilder(Tokenizer.regex(_WORDS)).filter(Filter.remove_long(_LONGEST_WORD + 1))
        builder = builder.filter(Filter.lowercase())
        if base == "english":
            builder = builder.filter(Filter.stopword("english")).filter(Filter.stemmer("english"))
    return builder.build()
