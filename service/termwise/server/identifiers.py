"""Names of models, deployments, pipelines and indices."""

from __future__ import annotations

import re
from typing import Final

from termwise.server.errors import invalid_field

_IDENTIFIER: Final = re.compile(r"[a-z0-9._-]{1,255}")
_SHOWN: Final = 60


def check_identifier(value: str, field: str) -> str:
    """Give `value` back where it is 1 to 255 of the characters a-z, 0-9, ".", "_" and "-", and not "." or "..".

    The two exceptions would be folders of their own where a name is part of a path.

    Raises:
        InvalidArgumentError: it is not; the violation names `field`.

    """
    if not value:
        raise invalid_field(field, "It is empty; give a name of the characters a-z, 0-9, '.', '_' and '-'.")
    if _IDENTIFIER.fullmatch(value) is None or value in {".", ".."}:
        shown = value if len(value) <= _SHOWN else value[:_SHOWN] + "…"
        raise invalid_field(field, f"{shown!r} is no name; give 1 to 255 of the characters a-z, 0-9, '.', '_' and '-'.")
    return value
