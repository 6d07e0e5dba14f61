"""A document's body as JSON text: read strictly, written compactly."""

from __future__ import annotations

import json
from typing import Any, Final

import orjson

from termwise.server.errors import invalid_field

MAX_DEPTH: Final = 30
"""Deepest nesting of objects and arrays. A body nested deeper could not be given back as a Struct inside an answer:
protobuf runtimes refuse messages nested more than 100 deep, and a JSON object takes three levels."""

MAX_EXACT_DOUBLE: Final = 2**53
"""Up to here every integer is a double; beyond it a double with no fraction says nothing about an integer."""

_JSON_MAX_DEPTH: Final = 1024  # orjson's own bound


class _DuplicateKeyError(ValueError):
    """An object that has a key twice."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _DuplicateKeyError(twice)
    return made


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_distinct)


def parse_body(source: bytes, field: str) -> dict[str, Any]:
    """Read a body: RFC 8259 JSON, an object, no key twice, nested at most `MAX_DEPTH` deep; integers keep every digit.

    Raises:
        InvalidArgumentError: it is not; the violation names `field`.

    """
    try:
        # orjson is the strict one (NaN, lone surrogates, numbers beyond double), and cannot overflow the stack.
        body = orjson.loads(source)
    except orjson.JSONDecodeError as error:
        raise invalid_field(field, f"It is not valid JSON: {error}.", reason="INVALID_JSON") from error
    if not isinstance(body, dict):
        raise invalid_field(field, "It is not a JSON object; give one such as {}.", reason="INVALID_JSON")
    check_depth(body, field)
    try:
        # json is the one that shows keys that stand twice, and keeps integers beyond 64 bits.
        exact: dict[str, Any] = _DECODER.decode(source.decode())
    except _DuplicateKeyError as error:
        raise invalid_field(
            field, f"Key {_shorten(str(error))} stands twice in one object; give it once.", reason="INVALID_JSON"
        ) from error
    except ValueError as error:
        raise invalid_field(field, f"It is not valid JSON: {error}.", reason="INVALID_JSON") from error
    return exact


def read_body(source: bytes) -> dict[str, Any]:
    """Read a body that was stored, and so passed `parse_body`; integers beyond 64 bits come as doubles."""
    body: dict[str, Any] = orjson.loads(source)
    return body


def dump_json(value: Any) -> bytes:
    """Write any JSON value compactly in UTF-8; integers of any size keep their digits."""
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer beyond 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def check_depth(value: Any, field: str) -> None:
    """Refuse a value that is nested more than `MAX_DEPTH` deep.

    Raises:
        InvalidArgumentError: it is; the violation names `field`.

    """
    if is_deeper(value, MAX_DEPTH):
        raise invalid_field(field, f"It is nested more than {MAX_DEPTH} levels deep; flatten it.", reason="TOO_DEEP")


def is_deeper(value: Any, levels: int) -> bool:
    """Whether objects and arrays are nested more than `levels` deep."""
    layer = [value]
    for _ in range(levels + 1):
        containers = [each for each in layer if isinstance(each, dict | list)]
        if not containers:
            return False
        layer = []
        for each in containers:
            layer.extend(each.values() if isinstance(each, dict) else each)
    return True


def _shorten(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[:most] + "…")
