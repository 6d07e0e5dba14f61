"""Reads and changes a body by dotted paths.

A path leads through nested objects; a key that has dots in it is found too, as the mapping finds it.
"""

from __future__ import annotations

from typing import Any, Final

from termwise.server.indices.mapping import ancestors


class Absent:
    """Stands for a value that is not there; None is one that is."""

    def __repr__(self) -> str:
        """Give its name."""
        return "ABSENT"


ABSENT: Final = Absent()


def find(body: dict[str, Any], path: str) -> tuple[dict[str, Any], str] | None:
    """Give the object that holds the value at `path`, and its key there; None where there is no such value."""
    if path in body:
        return body, path
    for prefix in ancestors(path):
        child = body.get(prefix)
        if isinstance(child, dict):
            found = find(child, path[len(prefix) + 1 :])
            if found is not None:
                return found
    return None


def get_path(body: dict[str, Any], path: str) -> Any:
    """Give the value at `path`, or ABSENT."""
    found = find(body, path)
    return ABSENT if found is None else found[0][found[1]]


def set_path(body: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at `path`; objects on the way are made, in the place of null too.

    Raises:
        ValueError: something on the way is no object; one sentence. Nothing was changed.

    """
    holder, key = find(body, path) or _place(body, "", path)
    holder[key] = value


def _place(body: dict[str, Any], above: str, path: str) -> tuple[dict[str, Any], str]:
    for prefix in ancestors(path):
        child = body.get(prefix)
        if isinstance(child, dict):
            return _place(child, f"{above}{prefix}.", path[len(prefix) + 1 :])
        if child is not None:
            msg = f'Field "{above}{path}" cannot be set, since "{above}{prefix}" is no object.'
            raise ValueError(msg)
    *parents, key = path.split(".")
    for parent in parents:
        made: dict[str, Any] = {}
        body[parent] = made
        body = made
    return body, key


def remove_path(body: dict[str, Any], path: str) -> Any:
    """Remove the value at `path` and give it, or ABSENT. The object that held it stays, empty or not."""
    found = find(body, path)
    return ABSENT if found is None else found[0].pop(found[1])
