from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.indices.dates import parse_date

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


zones = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=zones)  # noqa: DTZ001 - bounds are naive


@given(moments)
def test_rfc_3339_text_is_read_as_python_reads_it(moment: datetime) -> None:
    text = moment.isoformat()
    assert parse_date(text) == micros(datetime.fromisoformat(text))


@given(moments, st.sampled_from("Tt "), st.integers(0, 9), st.sampled_from(["Z", "z", ""]))
def test_separators_zones_and_fractions(moment: datetime, separator: str, digits: int, zone: str) -> None:
    fraction = f"{moment.microsecond:06}999"[:digits]
    text = moment.strftime(f"{moment.year:04}-%m-%d{separator}%H:%M:%S") + (f".{fraction}" if fraction else "") + zone
    whole = micros(moment.replace(tzinfo=UTC, microsecond=0))
    assert parse_date(text) == whole + int(fraction[:6].ljust(6, "0"))


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_numbers_are_milliseconds(milliseconds: int) -> None:
    assert parse_date(milliseconds) == milliseconds * 1000
    assert parse_date(float(milliseconds)) == milliseconds * 1000


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2024-05-01", "2024-05-01T00:00:00Z"),
        ("2024-05-01T12:30", "2024-05-01T12:30:00Z"),
        ("2024-05-01T12:30:00", "2024-05-01T12:30:00Z"),
        ("2024-05-01T12:30:00+02:00", "2024-05-01T10:30:00Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2024-05-01T00:00:00.1234567Z", "2024-05-01T00:00:00.123456Z"),
    ],
)
def test_shorter_forms(text: str, same: str) -> None:
    assert parse_date(text) == parse_date(same)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "yesterday",
        "2024",
        "2024-5-1",
        "2024-02-30",
        "2024-13-01",
        "0000-01-01",
        "2024-05-01T24:00:00Z",
        "2024-05-01T10:60:00Z",
        "2024-05-01T10:00:61Z",
        "2024-05-01T10:00:00+25:00",
        "2024-05-01T10:00:00+0200",
        "2024-05-01Z",
        "\u0662\u0660\u0662\u0664-05-01",
        "9999-12-31T23:59:59-01:00",
        True,
        float("nan"),
        float("inf"),
        1e300,
        10**30,
        None,
        [],
    ],
)
def test_what_is_no_date_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        parse_date(value)
