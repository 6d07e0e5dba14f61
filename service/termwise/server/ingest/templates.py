"""Templates: text in which `{{path}}` stands for a field of the document."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from termwise.server.errors import InvalidArgumentError, invalid_field
from termwise.server.indices.body import dump_json
from termwise.server.ingest.paths import ABSENT

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_RENDERED: Final = 32 * 2**20
"""Longest rendered text in characters, the default limit of a message: a template that copies a field into itself would
otherwise double it with each processor."""

_FIELD: Final = re.compile(r"\{\{\{([^{}]*)\}\}\}|\{\{([^{}]*)\}\}")


def check_template(text: str, field: str) -> None:
    """Refuse a template that cannot be read.

    Raises:
        InvalidArgumentError: a `{{` without `}}` or without a path; the violation names `field`.

    """
    for found in _FIELD.finditer(text):
        if not _path(found):
            raise invalid_field(field, "A template is empty; name a field, as in {{title}}.")
    if "{{" in _FIELD.sub("", text):
        raise invalid_field(field, "A {{ has no }} that closes it; write {{path}}.")


def render(template: str, get: Callable[[str], Any]) -> str:
    """Replace each `{{path}}`: strings stand as they are, other values as JSON, what is absent or null as nothing.

    Raises:
        InvalidArgumentError: the result is longer than `MAX_RENDERED`.

    """
    if "{{" not in template:
        return template
    pieces: list[str] = []
    place = size = 0
    for found in _FIELD.finditer(template):
        pieces += [template[place : found.start()], _shown(get(_path(found)))]
        place = found.end()
        size += len(pieces[-1])
        if size > MAX_RENDERED:
            raise InvalidArgumentError(
                f"The rendered text is longer than {MAX_RENDERED:,} characters.", reason="TEXT_TOO_LONG"
            )
    pieces.append(template[place:])
    return "".join(pieces)


def render_all(value: Any, get: Callable[[str], Any]) -> Any:
    """Render every string inside a JSON value; keys stay as they are. The result shares nothing with `value`."""
    if isinstance(value, str):
        return render(value, get)
    if isinstance(value, list):
        return [render_all(each, get) for each in value]
    if isinstance(value, dict):
        return {key: render_all(each, get) for key, each in value.items()}
    return value


def _path(found: re.Match[str]) -> str:
    return (found[1] if found[1] is not None else found[2]).strip()


def _shown(value: Any) -> str:
    if value is ABSENT or value is None:
        return ""
    return value if isinstance(value, str) else dump_json(value).decode()
