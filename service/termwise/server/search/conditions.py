"""The algebra of storage's conditions: joined, and made smaller where one part decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from termwise.storage.types import AllOf, AnyOf, Everything, Lexical, Not, Nothing, Sparse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from termwise.storage.types import Condition

EVERYTHING: Final = Everything()
NOTHING: Final = Nothing()

FEW: Final = 16
"""With more parts than that, a condition is better asked as a whole, once, than part by part or for each part anew."""


def all_of(conditions: Iterable[Condition]) -> Condition:
    """Match what all of them match; with none, everything."""
    given = [condition for condition in conditions if not isinstance(condition, Everything)]
    if any(isinstance(condition, Nothing) for condition in given):
        return NOTHING
    if not given:
        return EVERYTHING
    if len(given) == 1:
        return given[0]
    parts: list[Condition] = []
    for condition in given:
        parts.extend(condition.conditions if isinstance(condition, AllOf) else [condition])
    return AllOf(tuple(parts))


def any_of(conditions: Iterable[Condition], minimum: int = 1) -> Condition:
    """Match what at least `minimum` of them match; with a minimum of 0 or less, everything."""
    parts: list[Condition] = []
    for condition in conditions:
        if isinstance(condition, Everything):
            minimum -= 1
        elif not isinstance(condition, Nothing):
            parts.append(condition)
    if minimum <= 0:
        return EVERYTHING
    if len(parts) < minimum:
        return NOTHING
    if len(parts) == minimum:
        return all_of(parts)
    return AnyOf(tuple(parts), minimum)


def negated(condition: Condition) -> Condition:
    """Match what it does not."""
    if isinstance(condition, Everything):
        return NOTHING
    if isinstance(condition, Nothing):
        return EVERYTHING
    return condition.condition if isinstance(condition, Not) else Not(condition)


def is_cheap(condition: Condition) -> bool:
    """Whether the match set needs no scored leaf: storage reads it from filters alone."""
    if isinstance(condition, (AllOf, AnyOf)):
        return all(is_cheap(part) for part in condition.conditions)
    if isinstance(condition, Not):
        return is_cheap(condition.condition)
    return not isinstance(condition, (Lexical, Sparse))
