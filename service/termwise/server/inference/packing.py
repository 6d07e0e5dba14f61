"""Which texts share a batch, and how a batch lies in memory: end to end, by length, without padding."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbours of one length: `count` texts of `length` tokens each, the first token in row `start`."""

    start: int
    count: int
    length: int


def plan_batches(lengths: Sequence[int], budget: int, most: int | None = None) -> list[list[int]]:
    """Sort texts by length and cut the line into batches of at most `budget` tokens; a longer text is alone.

    A batch has at most `most` texts, where it is given.

    Returns:
        Positions in `lengths`, a list a batch. Texts of length 0 are in none.

    """
    batches: list[list[int]] = []
    total = budget
    for position in sorted((each for each, length in enumerate(lengths) if length), key=lengths.__getitem__):
        total += lengths[position]
        if total > budget or (batches and len(batches[-1]) == most):
            batches.append([])
            total = lengths[position]
        batches[-1].append(position)
    return batches


def group_lengths(lengths: Sequence[int]) -> list[Group]:
    """Group sorted lengths into runs of equals: attention runs once a group and needs no mask."""
    groups: list[Group] = []
    start = 0
    for length, run in groupby(lengths):
        count = sum(1 for _ in run)
        groups.append(Group(start, count, length))
        start += count * length
    return groups
