from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from termwise.server.models.patterns import Patterns


def plain(pattern: str, name: str) -> bool:
    """Match as a regular expression does, which is slow for many stars."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


@given(st.text("ab.*", max_size=8), st.text("ab.", min_size=1, max_size=12))
def test_a_star_stands_for_any_characters_and_all_others_for_themselves(pattern: str, name: str) -> None:
    assert Patterns([pattern]).fit(name) is plain(pattern, name)


@given(st.lists(st.text("ab*", min_size=1, max_size=5), max_size=4), st.lists(st.text("ab", min_size=1), min_size=1))
def test_one_of_the_patterns_fits_one_of_the_names(patterns: list[str], names: list[str]) -> None:
    expected = not patterns or any(plain(pattern, name) for pattern in patterns for name in names)
    assert Patterns(patterns).fit(*names) is expected


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    assert not Patterns(["*a" * 120 + "*b"]).fit("a" * 255)
    assert Patterns(["*a" * 120 + "*"]).fit("a" * 255)


def test_whole_names_that_nobody_has_are_told() -> None:
    assert Patterns(["b", "a*", "c", "d"]).missing(["c"]) == ["b", "d"]
    assert Patterns([]).missing([]) == []
