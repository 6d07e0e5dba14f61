from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.models.repositories.ranges import Part, Ranges

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 40
PIECES = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)))


@given(PIECES, st.integers(1, SIZE))
def test_ranges_are_the_set_of_their_bytes(pieces: list[tuple[int, int]], piece: int) -> None:
    ranges = Ranges(pieces)
    there = {byte for start, end in pieces for byte in range(start, end)}
    kept = list(ranges)
    assert {byte for start, end in kept for byte in range(start, end)} == there
    assert ranges.count() == len(there)
    assert all(before[1] < after[0] for before, after in pairwise(kept))
    missing = ranges.missing(SIZE, piece)
    assert [byte for start, end in missing for byte in range(start, end)] == sorted(set(range(SIZE)) - there)
    assert all(0 < end - start <= piece for start, end in missing)


def test_what_was_noted_is_there_after_a_kill_and_the_rest_is_not(tmp_path: Path) -> None:
    part = Part(tmp_path / "part", 100, "a")
    part.write(10, b"x" * 20)
    part.note(at_once=True)
    part.write(50, b"y" * 20)
    # Killed here: nothing is closed.
    again = Part(tmp_path / "part", 100, "a")
    assert again.missing(1_000) == [(0, 10), (30, 100)]
    assert (tmp_path / "part").read_bytes()[10:30] == b"x" * 20


def test_a_closed_part_is_gone_on_with(tmp_path: Path) -> None:
    with Part(tmp_path / "part", 100, "a") as part:
        part.write(0, b"x" * 60)
    with Part(tmp_path / "part", 100, "a") as part:
        assert (part.count, part.missing(30)) == (60, [(60, 90), (90, 100)])
    with pytest.raises(OSError, match="Bad file"):
        part.write(60, b"late")


@pytest.mark.parametrize("change", ["source", "size", "note", "lies", "shorter"])
def test_what_is_of_another_file_is_thrown_away(tmp_path: Path, change: str) -> None:
    with Part(tmp_path / "part", 100, "a") as part:
        part.write(0, b"x" * 60)
    note = tmp_path / "part.ranges"
    if change == "note":
        note.write_bytes(note.read_bytes()[:-4])
    if change == "lies":
        note.write_text(note.read_text().replace("60", "101"))
    if change == "shorter":
        (tmp_path / "part").write_bytes(b"x" * 60)
    with Part(tmp_path / "part", 101 if change == "size" else 100, "b" if change == "source" else "a") as part:
        assert part.count == 0
