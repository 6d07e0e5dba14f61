"""Plain dicts in proto3 JSON form to messages. What does not fit is refused by its path, before anything is sent."""

from __future__ import annotations

import datetime as dt
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from termwise.client.errors import FieldViolation, InvalidArgumentError
from termwise.client.types import SparseVector

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

MessageT = TypeVar("MessageT", bound=Message)

MAX_DEPTH = 100
"""Messages nested deeper than this are refused by protobuf's parsers, so they are not sent."""

_WELL_KNOWN = "google.protobuf."


def parse(value: Message | Mapping[str, Any], kind: type[MessageT], path: str) -> MessageT:
    """Give `value` as a message of `kind`. `path` is its name in errors: "query", "mapping".

    Beside JSON's own types, a dict may hold SparseVector, datetime (an aware one, or UTC), tuples and messages. Raises
    InvalidArgumentError.
    """
    if isinstance(value, kind):
        return value
    plain = _object(value, cast("Descriptor", kind.DESCRIPTOR), path, 0)
    try:
        return json_format.ParseDict(plain, kind())
    except json_format.ParseError as error:
        raise invalid(path, _tidy(str(error))) from error


def invalid(path: str, description: str) -> InvalidArgumentError:
    """Make the error for one bad field."""
    return InvalidArgumentError(
        f"{path}: {description}", reason="INVALID_FIELD", field_violations=[FieldViolation(path, description)]
    )


def choose(value: str | None, choices: Mapping[Any, Any], path: str) -> Any:
    """Give the enum value of a word. Raises InvalidArgumentError that names the words there are."""
    if value not in choices:
        raise invalid(path, f'there is no "{value}"; choose from {", ".join(word for word in choices if word)}')
    return choices[value]


def json_text(source: Mapping[str, Any] | str, path: str) -> str:
    """Give a body as JSON text; a string is taken as such. Dates become RFC 3339. Raises InvalidArgumentError."""
    if isinstance(source, str):
        return utf8(source, path)
    if not isinstance(source, Mapping):
        raise invalid(path, f"expected an object, got {_name(source)}")
    try:
        text = json.dumps(source, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_json_default)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(path, str(error)) from error
    return utf8(text, path)


def utf8(text: Any, path: str) -> str:
    """Give `text` where it is a string that UTF-8 can carry. Raises InvalidArgumentError."""
    if not isinstance(text, str):
        raise invalid(path, f"expected a string, got {_name(text)}")
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise invalid(path, f"half a surrogate pair at character {error.start}") from error
    return text


def to_plain(message: Message) -> dict[str, Any]:
    """Give a message in proto3 JSON form, with the names of the protos."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _object(value: Any, descriptor: Descriptor, path: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise invalid(path, f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Message):
        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    if isinstance(value, SparseVector):
        return {"tokens": list(value.tokens), "weights": list(value.weights)}
    if descriptor.full_name.startswith(_WELL_KNOWN):
        return _free(value, path, depth)
    if not isinstance(value, Mapping):
        raise invalid(path, f"expected an object, got {_name(value)}")
    plain = {}
    for name, item in value.items():
        field = descriptor.fields_by_name.get(name) or descriptor.fields_by_camelcase_name.get(name)
        if field is None:
            raise invalid(path, _unknown(name, list(descriptor.fields_by_name)))
        plain[name] = _field(item, field, f"{path}.{name}", depth + 1)
    return plain


def _field(value: Any, field: FieldDescriptor, path: str, depth: int) -> Any:
    if value is None:
        return None
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            raise invalid(path, f"expected an object, got {_name(value)}")
        entry = message.fields_by_name["value"]
        return {key: _field(item, entry, f'{path}["{key}"]', depth) for key, item in value.items()}
    if field.is_repeated:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise invalid(path, f"expected a list, got {_name(value)}")
        return [_one(item, field, f"{path}[{place}]", depth) for place, item in enumerate(value)]
    return _one(value, field, path, depth)


def _one(value: Any, field: FieldDescriptor, path: str, depth: int) -> Any:
    if field.message_type is not None:
        return _object(value, field.message_type, path, depth)
    if field.enum_type is not None and isinstance(value, str) and value not in field.enum_type.values_by_name:
        raise invalid(path, _unknown(value, list(field.enum_type.values_by_name)))
    wrong = (
        (field.type == FieldDescriptor.TYPE_STRING and not isinstance(value, str) and "a string")
        or (field.type == FieldDescriptor.TYPE_BOOL and not isinstance(value, bool) and "true or false")
        or (isinstance(value, bool | Mapping | list) and field.type != FieldDescriptor.TYPE_BOOL and "a single value")
    )
    if wrong:
        raise invalid(path, f"expected {wrong}, got {_name(value)}")
    return value


def _free(value: Any, path: str, depth: int) -> Any:
    """Give a value of a well-known type: any JSON, with what Python has beside it."""
    if depth > MAX_DEPTH:
        raise invalid(path, f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dt.datetime):
        return _rfc3339(value)
    if isinstance(value, dt.timedelta):
        return f"{value.total_seconds():.9f}s"
    if isinstance(value, Mapping):
        return {str(key): _free(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_free(item, f"{path}[{place}]", depth + 1) for place, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float):
        return value
    raise invalid(path, f"expected a JSON value, got {_name(value)}")


def _json_default(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return _rfc3339(value)
    if isinstance(value, SparseVector):
        return value.as_dict()
    raise TypeError(f"{_name(value)} is no JSON value")


def _rfc3339(moment: dt.datetime) -> str:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return aware.isoformat().replace("+00:00", "Z")


def _unknown(name: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1) or [each for each in known if each.endswith(f"_{name}")]
    return f'there is no "{name}"' + (f'; did you mean "{near[0]}"?' if near else f"; choose from {', '.join(known)}")


def _name(value: Any) -> str:
    return type(value).__name__


def _tidy(message: str) -> str:
    """Take the wrapping of nested parse errors off."""
    while message.startswith("Failed to parse ") and " field: " in message:
        message = message.partition(" field: ")[2]
    return message.strip().rstrip(".")
