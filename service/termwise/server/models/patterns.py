"""Which names a request means: whole ones, and ones with "*"."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Patterns:
    """Names and patterns, in which "*" stands for any characters; none of them fit everything."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Take them as they were asked for."""
        self._whole = frozenset(pattern for pattern in patterns if "*" not in pattern)
        self._parts = [
            re.compile(".*".join(re.escape(part) for part in re.split(r"\*+", pattern)))
            for pattern in patterns
            if "*" in pattern
        ]

    def fit(self, *names: str) -> bool:
        """Tell whether one of a thing's names is meant."""
        if not self._whole and not self._parts:
            return True
        return any(name in self._whole or any(part.fullmatch(name) for part in self._parts) for name in names)

    def missing(self, known: Iterable[str]) -> list[str]:
        """Give the whole names that are not known, sorted."""
        return sorted(self._whole - set(known))
