"""Values of documents and queries as the kinds of fields take them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from termwise.server.indices.body import dump_json
from termwise.server.indices.dates import parse_date
from termwise.storage.types import MAX_KEYWORD_BYTES, FieldKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.storage.types import Scalar

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,25}")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SMALLEST_INTEGER: Final = -(2**63)
_LARGEST_INTEGER: Final = 2**63 - 1
_SHOWN: Final = 40


def show(value: Any) -> str:
    """Give a value as an error message shows it: JSON, cut to what a message bears."""
    text = dump_json(value).decode() if not isinstance(value, float) or math.isfinite(value) else str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def parse_text(value: Any) -> str:
    """Read the value of a text field: a string.

    Raises:
        ValueError: one sentence that says what is wrong; so in the functions below.

    """
    if not isinstance(value, str):
        msg = f"{show(value)} is no text; give a string."
        raise ValueError(msg)  # noqa: TRY004 - every bad value is the same error to callers
    return value


def parse_keyword(value: Any) -> str:
    """Read a keyword: a string, or a number or boolean as its JSON text; up to 32,766 bytes."""
    text = value if isinstance(value, str) else dump_json(value).decode()
    if len(text) * 4 > MAX_KEYWORD_BYTES and len(text.encode()) > MAX_KEYWORD_BYTES:
        msg = f"The keyword is {len(text.encode()):,} bytes long; keywords are up to {MAX_KEYWORD_BYTES:,} bytes."
        raise ValueError(msg)
    return text


def parse_integer(value: Any) -> int:
    """Read a 64-bit integer: a number without a fraction, or a decimal string."""
    if isinstance(value, str):
        fits = _INTEGER.fullmatch(value) is not None
    else:
        fits = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (isinstance(value, int) or value.is_integer())
        )
    if not fits:
        msg = f"{show(value)} is no integer; give a whole number or its digits in a string."
        raise ValueError(msg)
    number = int(value)
    if not _SMALLEST_INTEGER <= number <= _LARGEST_INTEGER:
        msg = f"{show(value)} does not fit 64 bits."
        raise ValueError(msg)
    return number


def parse_number(value: Any) -> float:
    """Read a finite double: a number, or a numeric string."""
    if isinstance(value, str):
        fits = _NUMBER.fullmatch(value) is not None
    else:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits:
        msg = f"{show(value)} is no number; give one, or its digits in a string."
        raise ValueError(msg)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        msg = f"{show(value)} is not finite."
        raise ValueError(msg)
    return number


def parse_boolean(value: Any) -> bool:
    """Read true or false, or the strings "true" and "false"."""
    if isinstance(value, bool):
        return value
    if value == "true":
        return True
    if value == "false":
        return False
    msg = f"{show(value)} is neither true nor false."
    raise ValueError(msg)


_PARSERS: Final[dict[FieldKind, Callable[[Any], Scalar]]] = {
    FieldKind.TEXT: parse_text,
    FieldKind.KEYWORD: parse_keyword,
    FieldKind.INTEGER: parse_integer,
    FieldKind.NUMBER: parse_number,
    FieldKind.BOOLEAN: parse_boolean,
    FieldKind.DATE: parse_date,
}


def parse_value(kind: FieldKind, value: Any) -> Scalar:
    """Read one value (a string, number or boolean; no null, list or object) as a field of a kind holds it.

    Queries read theirs here too. SPARSE_VECTOR is no scalar kind.

    Raises:
        ValueError: one sentence that says what is wrong.

    """
    if isinstance(value, dict | list) or value is None:
        msg = f"{show(value)} is no single value; give a string, a number or a boolean."
        raise ValueError(msg)
    return _PARSERS[kind](value)
