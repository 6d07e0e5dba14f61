"""The mapping of an index: which fields are searched, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from termwise.server.errors import InvalidArgumentError, invalid_field
from termwise.server.identifiers import check_identifier
from termwise.server.indices.body import MAX_DEPTH
from termwise.storage.analysis import check_analyzer
from termwise.storage.errors import SchemaError
from termwise.storage.types import FieldKind, FieldSpec, IndexSchema

MAX_FIELD_BYTES: Final = 255
"""Longest field name in UTF-8 bytes."""

MAX_FIELDS: Final = 1000
"""Most fields of an index, those under `fields` included (Elasticsearch's default limit)."""

_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class FieldMapping:
    """How one field is searched.

    `analyzer` is for TEXT, `model_id` and `search_deployment_id` are for SPARSE_VECTOR. `fields` search the same value
    in other ways, by short name.
    """

    kind: FieldKind
    analyzer: str = "standard"
    model_id: str = ""
    search_deployment_id: str = ""
    fields: dict[str, FieldMapping] = field(default_factory=dict)


@dataclass(frozen=True)
class Mapping:
    """The fields of an index by dotted path. `strict`: documents with other fields are refused."""

    properties: dict[str, FieldMapping] = field(default_factory=dict)
    strict: bool = False

    @cached_property
    def fields(self) -> dict[str, FieldMapping]:
        """Every field that can be searched: the properties, and what stands under `fields` as "title.raw"."""
        flat = dict(self.properties)
        for name, each in self.properties.items():
            flat |= {f"{name}.{short}": sub for short, sub in each.fields.items()}
        return flat

    @cached_property
    def objects(self) -> frozenset[str]:
        """The paths that lead to properties: "author" where there is "author.name"."""
        return frozenset(path for name in self.properties for path in ancestors(name))

    @cached_property
    def sparse_fields(self) -> frozenset[str]:
        """The names of the sparse vector fields."""
        return frozenset(name for name, each in self.properties.items() if each.kind is FieldKind.SPARSE_VECTOR)

    def schema(self) -> IndexSchema:
        """Give what storage knows of the mapping."""
        return IndexSchema({name: FieldSpec(each.kind, each.analyzer) for name, each in self.fields.items()})

    def to_json(self) -> dict[str, Any]:
        """Give the mapping as plain JSON; `from_json` reads it."""
        return {
            "dynamic": "strict" if self.strict else "false",
            "properties": {name: _field_to_json(each) for name, each in self.properties.items()},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Mapping:
        """Read what `to_json` gave."""
        properties = {name: _field_from_json(each) for name, each in value["properties"].items()}
        return cls(properties, strict=value["dynamic"] == "strict")


def ancestors(path: str) -> list[str]:
    """Give the paths above a dotted path, shortest first: "a" and "a.b" for "a.b.c"."""
    return [path[:place] for place, character in enumerate(path) if character == "."]


def check_path(path: str, field_name: str) -> str:
    """Give `path` back where it is a dotted path that a field can have.

    Raises:
        InvalidArgumentError: it is empty, too long or deep, has an empty part or a control character.

    """
    if not path:
        raise invalid_field(field_name, 'It is empty; give a field such as "title" or "author.name".')
    shown = repr(path if len(path) <= _SHOWN else path[:_SHOWN] + "…")
    if len(path.encode()) > MAX_FIELD_BYTES:
        raise invalid_field(field_name, f"{shown} is longer than {MAX_FIELD_BYTES} bytes.")
    parts = path.split(".")
    if not all(parts):
        raise invalid_field(field_name, f"{shown} has an empty part; give names with single dots between them.")
    if len(parts) > MAX_DEPTH:
        raise invalid_field(field_name, f"{shown} has more than {MAX_DEPTH} parts.")
    if any(ord(character) < ord(" ") for character in path):
        raise invalid_field(field_name, f"{shown} has a control character.")
    return path


def check_mapping(mapping: Mapping, field_name: str = "mapping") -> None:
    """Refuse a mapping that cannot work.

    Raises:
        InvalidArgumentError: the violation names the entry, such as `mapping.properties["title"].text.analyzer`.

    """
    if len(mapping.properties) + sum(len(each.fields) for each in mapping.properties.values()) > MAX_FIELDS:
        raise invalid_field(f"{field_name}.properties", f"There are more than {MAX_FIELDS:,} fields.")
    for name, each in mapping.properties.items():
        entry = f'{field_name}.properties["{name}"]'
        check_path(name, entry)
        above = next((path for path in ancestors(name) if path in mapping.properties), None)
        if above is not None:
            raise invalid_field(entry, f'"{above}" is a field itself and cannot hold other fields; rename one of them.')
        _check_field(each, entry)
        for short, sub in each.fields.items():
            below = f'{entry}.fields["{short}"]'
            check_path(f"{name}.{short}" if short else "", below)
            _check_sub_field(short, sub, below)
        if each.fields and each.kind is FieldKind.SPARSE_VECTOR:
            raise invalid_field(f"{entry}.fields", "A sparse vector cannot be searched in other ways; leave it empty.")


def _check_field(each: FieldMapping, entry: str) -> None:
    if each.kind is FieldKind.TEXT:
        try:
            check_analyzer(each.analyzer)
        except SchemaError as error:
            raise invalid_field(f"{entry}.text.analyzer", str(error), reason="UNKNOWN_ANALYZER") from error
    if each.model_id:
        check_identifier(each.model_id, f"{entry}.sparse_vector.model_id")
    if each.search_deployment_id:
        check_identifier(each.search_deployment_id, f"{entry}.sparse_vector.search_deployment_id")


def _check_sub_field(short: str, sub: FieldMapping, entry: str) -> None:
    if "." in short:
        raise invalid_field(entry, "Its name has a dot; give a plain name.")
    if sub.fields:
        raise invalid_field(f"{entry}.fields", "They cannot be nested; list them side by side.")
    if sub.kind is FieldKind.SPARSE_VECTOR:
        raise invalid_field(entry, "A sparse vector cannot stand under `fields`; make it a property.")
    _check_field(sub, entry)


def field_of(mapping: Mapping, name: str, field_name: str) -> FieldMapping:
    """Give the field of a name.

    Raises:
        InvalidArgumentError: there is none; the violation names `field_name`.

    """
    found = mapping.fields.get(name)
    if found is None:
        raise unknown_field(mapping, name, field_name)
    return found


def sparse_field_of(mapping: Mapping, name: str, field_name: str) -> FieldMapping:
    """Give the sparse vector field of a name.

    Raises:
        InvalidArgumentError: there is none, or it is of another kind; the violation names `field_name`.

    """
    found = mapping.fields.get(name)
    if found is None:
        raise unknown_field(mapping, name, field_name, sparse=True)
    if found.kind is not FieldKind.SPARSE_VECTOR:
        raise invalid_field(
            field_name,
            f'Field "{name}" is of kind {found.kind.value}; name a sparse vector field.',
            reason="FIELD_NOT_SUITED",
        )
    return found


def unknown_field(mapping: Mapping, name: str, field_name: str, *, sparse: bool = False) -> InvalidArgumentError:
    """Make the error for a field, or a `sparse` vector field, that the mapping lacks; with a name that is close."""
    import difflib  # noqa: PLC0415 - only on this path

    near = difflib.get_close_matches(name, mapping.sparse_fields if sparse else mapping.fields, n=1)
    tail = f'; did you mean "{near[0]}"?' if near else "."
    shown = name if len(name) <= _SHOWN else name[:_SHOWN] + "…"
    return invalid_field(
        field_name,
        f'The index has no {"sparse vector field" if sparse else "field"} "{shown}"{tail}',
        reason="UNKNOWN_FIELD",
    )


def _field_to_json(each: FieldMapping) -> dict[str, Any]:
    value: dict[str, Any] = {"kind": each.kind.value}
    if each.kind is FieldKind.TEXT:
        value["analyzer"] = each.analyzer
    if each.kind is FieldKind.SPARSE_VECTOR:
        value |= {"model_id": each.model_id, "search_deployment_id": each.search_deployment_id}
    if each.fields:
        value["fields"] = {name: _field_to_json(sub) for name, sub in each.fields.items()}
    return value


def _field_from_json(value: dict[str, Any]) -> FieldMapping:
    return FieldMapping(
        kind=FieldKind(value["kind"]),
        analyzer=value.get("analyzer", "standard"),
        model_id=value.get("model_id", ""),
        search_deployment_id=value.get("search_deployment_id", ""),
        fields={name: _field_from_json(sub) for name, sub in value.get("fields", {}).items()},
    )
