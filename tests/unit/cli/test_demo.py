from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.cli.demo import LEAST_DOCUMENTS, QUESTIONS
from termwise.cli.output import bar
from termwise.cli.stdlib_docs import PART_CHARACTERS, Entry, entries, parts


@pytest.fixture(scope="module")
def library() -> list[Entry]:
    return list(entries())


def test_the_library_is_large_and_its_ids_are_unique(library: list[Entry]) -> None:
    assert len(library) >= LEAST_DOCUMENTS
    assert len({entry.id for entry in library}) == len(library)
    assert {entry.kind for entry in library} == {"module", "class", "function", "method", "topic"}


def test_everything_public_is_there_and_nothing_private(library: list[Entry]) -> None:
    names = {entry.name for entry in library}

    # Parsed, a submodule, compiled into the interpreter, loaded from a shared object, a builtin's method, a topic.
    expected = [
        "zipfile.ZipFile.write",
        "email.message.Message.as_string",
        "time.sleep",
        "zlib.compress",
        "topics.assert",
    ]
    assert names.issuperset([*expected, "builtins.str.join", "os.path" if "os.path" in names else "posixpath"])
    assert not [name for name in names if re.search(r"\._|^_", name)]


def test_ids_number_the_parts(library: list[Entry]) -> None:
    numbers: dict[str, list[int]] = {}
    for entry in library:
        assert entry.text.startswith(entry.name)
        numbers.setdefault(entry.name, []).append(int(entry.id.removeprefix(f"{entry.name}#")))

    assert all(found == list(range(1, len(found) + 1)) for found in numbers.values())
    assert max(len(found) for found in numbers.values()) > 1


@given(st.text(max_size=50))
def test_short_texts_stay_whole(text: str) -> None:
    found = parts(text)

    assert len(found) <= 1
    assert "".join("".join(found).split()) == "".join(text.split())


@given(st.lists(st.sampled_from(["word", " ", "\n", "\n\n", "y" * 700, "z" * 2500]), max_size=40).map("".join))
def test_long_texts_are_cut_into_parts_that_lose_nothing(text: str) -> None:
    found = parts(text)

    assert all(0 < len(part) <= PART_CHARACTERS for part in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_there_are_eight_questions_whose_answers_exist_and_share_few_words(library: list[Entry]) -> None:
    assert len(QUESTIONS) == 8
    for question in QUESTIONS:
        answers = [entry for entry in library if question.is_answered_by(entry.name)]
        assert answers, question.text
        words = set(question.text.split()) - {"a", "of", "in", "it", "is", "the", "with", "for", "at", "so", "by", "on"}
        first_lines = [set(re.findall(r"\w+", entry.text.split("\n")[1].lower())) for entry in answers]
        assert min(len(words & line) for line in first_lines) <= 1


@given(st.floats(0, 1), st.integers(1, 60))
def test_a_bar_is_as_long_as_its_share(share: float, width: int) -> None:
    drawn = bar(share, width)

    assert abs(len(drawn.rstrip("▏▎▍▌▋▊▉")) - int(share * width)) <= 1
    assert 1 <= len(drawn) <= width
