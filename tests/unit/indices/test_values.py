from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.indices.values import parse_value
from termwise.storage.types import FieldKind

scalars = st.one_of(st.text(max_size=10), st.integers(), st.floats(), st.booleans(), st.integers().map(str))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (FieldKind.TEXT, "Words", "Words"),
        (FieldKind.TEXT, "", ""),
        (FieldKind.KEYWORD, "en", "en"),
        (FieldKind.KEYWORD, 12, "12"),
        (FieldKind.KEYWORD, 1.5, "1.5"),
        (FieldKind.KEYWORD, True, "true"),
        (FieldKind.KEYWORD, 2**70, str(2**70)),
        (FieldKind.INTEGER, 5, 5),
        (FieldKind.INTEGER, 5.0, 5),
        (FieldKind.INTEGER, "-17", -17),
        (FieldKind.INTEGER, "+17", 17),
        (FieldKind.INTEGER, -(2**63), -(2**63)),
        (FieldKind.INTEGER, str(2**63 - 1), 2**63 - 1),
        (FieldKind.NUMBER, 5, 5.0),
        (FieldKind.NUMBER, "1e3", 1000.0),
        (FieldKind.NUMBER, ".5", 0.5),
        (FieldKind.BOOLEAN, "true", True),
        (FieldKind.BOOLEAN, False, False),
        (FieldKind.DATE, 1000, 1_000_000),
    ],
)
def test_values_are_read(kind: FieldKind, value: Any, expected: Any) -> None:
    found = parse_value(kind, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (FieldKind.TEXT, 5),
        (FieldKind.TEXT, True),
        (FieldKind.KEYWORD, "ä" * 16_384),
        (FieldKind.INTEGER, 1.5),
        (FieldKind.INTEGER, "1.0"),
        (FieldKind.INTEGER, ""),
        (FieldKind.INTEGER, " 5"),
        (FieldKind.INTEGER, "\u0665"),  # the Arabic-Indic five
        (FieldKind.INTEGER, True),
        (FieldKind.INTEGER, 2**63),
        (FieldKind.INTEGER, str(2**63)),
        (FieldKind.INTEGER, 1e19),
        (FieldKind.INTEGER, "9" * 10_000),
        (FieldKind.INTEGER, math.inf),
        (FieldKind.NUMBER, math.nan),
        (FieldKind.NUMBER, math.inf),
        (FieldKind.NUMBER, "1e999"),
        (FieldKind.NUMBER, "nan"),
        (FieldKind.NUMBER, "1_000"),
        (FieldKind.NUMBER, "0x10"),
        (FieldKind.NUMBER, 10**400),
        (FieldKind.NUMBER, False),
        (FieldKind.BOOLEAN, 1),
        (FieldKind.BOOLEAN, "True"),
        (FieldKind.BOOLEAN, ""),
        *((kind, value) for kind in FieldKind for value in (None, {}, [])),
    ],
)
def test_values_of_another_kind_are_refused(kind: FieldKind, value: Any) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        parse_value(kind, value)


@given(scalars)
def test_integers_are_those_of_exact_arithmetic(value: Any) -> None:
    def slow() -> int | None:
        if isinstance(value, bool):
            return None
        if isinstance(value, str):
            digits = value[1:] if value[:1] in ("+", "-") else value
            whole = int(value) if digits and all(each in "0123456789" for each in digits) else None
        else:
            whole = int(value) if math.isfinite(value) and value == math.floor(value) else None
        return whole if whole is not None and -(2**63) <= whole < 2**63 else None

    try:
        found: Any = parse_value(FieldKind.INTEGER, value)
    except ValueError:
        found = None
    assert found == slow()
