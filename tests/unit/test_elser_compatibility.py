"""Every row of docs/elser-compatibility.md names a test, and the test is there."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "elser-compatibility.md"
COLUMNS = 3


def rows() -> list[list[str]]:
    """Give the cells of each row, headings left out."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] not in {"Elasticsearch", "---"} and not set(row[0]) <= set("-|")]


@lru_cache
def defined(file: Path) -> frozenset[str]:
    return frozenset(re.findall(r"^(?:async )?def (test_\w+)\(", file.read_text("utf-8"), re.MULTILINE))


def test_the_page_has_rows() -> None:
    assert len(rows()) >= 80
    assert all(len(row) == COLUMNS for row in rows()), [row for row in rows() if len(row) != COLUMNS]
    assert all(row[0] and row[1] for row in rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_names_a_test_that_is_there(row: list[str]) -> None:
    named = re.fullmatch(r"`([\w/]+\.py)::(test_\w+)`", row[-1])
    assert named, row[-1]
    file = TESTS / named[1]
    assert file.is_file(), named[1]
    assert named[2] in defined(file), row[-1]
