"""Options that the commands share, and how their values are read."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from termwise.client import DEFAULT_ADDRESS


class Format(StrEnum):
    """How a command prints."""

    TABLE = "table"
    JSON = "json"


Address = Annotated[
    str, typer.Option("--address", envvar="TERMWISE_ADDRESS", metavar="HOST:PORT", help="Address of the server.")
]
"""Where the server is."""
FormatOption = Annotated[
    Format, typer.Option("--format", help="Print a table, or JSON: one object, or one a line for lists.")
]
"""How to print."""
JSON_HELP = "JSON text, @FILE, or - for standard input."

__all__ = ["DEFAULT_ADDRESS", "JSON_HELP", "Address", "Format", "FormatOption", "read_json", "read_text"]


def read_text(value: str, name: str) -> str:
    """Give an option's text: itself, what `@FILE` holds, or standard input for `-`. Raises BadParameter."""
    try:
        if value == "-":
            return sys.stdin.read()
        if value.startswith("@"):
            return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {value}: {error}", param_hint=name) from error
    return value


def read_json(value: str | None, name: str) -> dict[str, Any] | None:
    """Give an option's JSON object; None where the option is absent. Raises BadParameter."""
    if value is None:
        return None
    try:
        found = json.loads(read_text(value, name))
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=name) from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"expected a JSON object, got {type(found).__name__}", param_hint=name)
    return found
