"""Parts of a body, by field paths with `*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from termwise.server.indices.body import dump_json, parse_body

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PATTERNS: Final = 100
"""Most patterns each way: a body is read once for every one of them."""


@dataclass(frozen=True, slots=True)
class SourceFilter:
    """Which parts of a body to give; empty `includes` means all, `excludes` go off what is included.

    A pattern names a field or an object with all it holds; `*` stands for any characters, dots too. Objects and arrays
    of which nothing is left are left out; those that were empty before count as values.
    """

    includes: Sequence[str] = ()
    excludes: Sequence[str] = ()

    def __bool__(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.includes or self.excludes)

    def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        """Give the parts of `body`; the result may share values with it."""
        if not self:
            return body
        kept = _filter_object(body, "", self, included=not self.includes)
        return {} if kept is None else kept

    def apply_to_source(self, source: bytes) -> bytes:
        """Give the parts of a body that is JSON text; the text as it is where nothing is filtered."""
        return dump_json(self.apply(parse_body(source, "source"))) if self else source


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern names `path` or something that holds it.

    Linear in the length of the path for each `*`: patterns and paths come from callers.
    """
    head, *rest = pattern.split("*")
    if not path.startswith(head):
        return False
    place = len(head)
    if not rest:
        return _at_boundary(path, place)
    for piece in rest[:-1]:
        at = path.find(piece, place)
        if at < 0:
            return False
        place = at + len(piece)
    tail = rest[-1]
    if not tail:
        return True
    at = path.find(tail, place)
    while at >= 0:
        if _at_boundary(path, at + len(tail)):
            return True
        at = path.find(tail, at + 1)
    return False


def _at_boundary(path: str, place: int) -> bool:
    return place == len(path) or path[place] == "."


def _filter_object(
    value: dict[str, Any], prefix: str, chosen: SourceFilter, *, included: bool
) -> dict[str, Any] | None:
    kept = {}
    for key, child in value.items():
        path = prefix + key
        if any(matches(pattern, path) for pattern in chosen.excludes):
            continue
        below = included or any(matches(pattern, path) for pattern in chosen.includes)
        left = _filter_value(child, path, chosen, included=below)
        if left is not _GONE:
            kept[key] = left
    return kept or None


class _Gone:
    """Stands for a value of which nothing is left; None is a value."""


_GONE = _Gone()


def _filter_value(value: Any, path: str, chosen: SourceFilter, *, included: bool) -> Any:
    if included and not chosen.excludes:
        return value
    if isinstance(value, dict) and value:
        left = _filter_object(value, path + ".", chosen, included=included)
        return _GONE if left is None else left
    if isinstance(value, list) and value:
        kept = [
            left
            for left in (_filter_value(each, path, chosen, included=included) for each in value)
            if left is not _GONE
        ]
        return kept or _GONE
    return value if included else _GONE
