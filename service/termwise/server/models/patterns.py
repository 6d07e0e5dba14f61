"""Which names a request means: whole ones, and ones with "*"."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Patterns:
    """Names and patterns, in which "*" stands for any characters; none of them fit everything."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Take them as they were asked for."""
        self._whole = frozenset(pattern for pattern in patterns if "*" not in pattern)
        self._parts = [pattern.split("*") for pattern in patterns if "*" in pattern]

    def fit(self, *names: str) -> bool:
        """Tell whether one of a thing's names is meant."""
        if not self._whole and not self._parts:
            return True
        return any(name in self._whole or any(_fits(parts, name) for parts in self._parts) for name in names)

    def missing(self, known: Iterable[str]) -> list[str]:
        """Give the whole names that are not known, sorted."""
        return sorted(self._whole - set(known))


def _fits(parts: Sequence[str], name: str) -> bool:
    """Tell whether a name is these parts, with anything between them.

    Each part is taken where it comes first, so that a pattern of many stars costs no more than one of few: a regular
    expression would try them all.
    """
    first, *between, last = parts
    if not name.startswith(first):
        return False
    place = len(first)
    for part in between:
        found = name.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return name.endswith(last) and place + len(last) <= len(name)
