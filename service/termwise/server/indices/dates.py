"""Moments as microseconds since 1970, UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

EARLIEST: Final = -62_135_596_800_000_000
"""0001-01-01T00:00:00Z, the first moment of RFC 3339's four-digit years that calendars agree on."""

LATEST: Final = 253_402_300_800_000_000 - 1
"""9999-12-31T23:59:59.999999Z."""

_MOMENT: Final = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[Tt ](?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]+))?)?"
    r"(?P<zone>[Zz]|[+-][0-9]{2}:[0-9]{2})?)?"
)
_ADVICE: Final = 'give RFC 3339 such as "2024-05-01T12:30:00Z", or milliseconds since 1970'


def parse_date(value: object) -> int:
    """Read a moment: RFC 3339 text, or milliseconds since 1970 as a number; gives microseconds since 1970.

    Text without a zone is UTC, without a time midnight, without seconds the full minute; digits beyond the microsecond
    are cut off. A leap second is the second after it.

    Raises:
        ValueError: one sentence that says what is wrong.

    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        msg = f"It is no date; {_ADVICE}."
        raise ValueError(msg)  # noqa: TRY004 - every bad value is the same error to callers
    moment = _from_text(value) if isinstance(value, str) else _from_milliseconds(value)
    if not EARLIEST <= moment <= LATEST:
        msg = "It is outside the years 1 to 9999."
        raise ValueError(msg)
    return moment


def _from_milliseconds(value: float) -> int:
    try:
        # A whole double is exact, its product with 1,000 is not always.
        return int(value) * 1000 if value == int(value) else round(value * 1000)
    except (ValueError, OverflowError):
        msg = f"It is no date; {_ADVICE}."
        raise ValueError(msg) from None


def _from_text(text: str) -> int:
    found = _MOMENT.fullmatch(text)
    if found is None:
        shown = text if len(text) <= 40 else text[:40] + "…"  # noqa: PLR2004 - as much as a message bears
        msg = f"{shown!r} is no date; {_ADVICE}."
        raise ValueError(msg)
    hour, minute, second = (int(found[name] or 0) for name in ("hour", "minute", "second"))
    leap = second == 60  # noqa: PLR2004 - the leap second of RFC 3339
    try:
        day = datetime.strptime(found["date"], "%Y-%m-%d").replace(tzinfo=UTC)
        moment = day.replace(hour=hour, minute=minute, second=59 if leap else second)
    except ValueError:
        msg = f"{text!r} is not on the calendar; {_ADVICE}."
        raise ValueError(msg) from None
    micros = (moment - _EPOCH) // _MICROSECOND + (1_000_000 if leap else 0)
    micros += int((found["fraction"] or "")[:6].ljust(6, "0"))
    return micros - _offset(found["zone"] or "Z", text)


def _offset(zone: str, text: str) -> int:
    if zone in "Zz":
        return 0
    hours, minutes = int(zone[1:3]), int(zone[4:6])
    if hours > 23 or minutes > 59:  # noqa: PLR2004 - RFC 3339's bounds
        msg = f"{text!r} has no zone that exists; {_ADVICE}."
        raise ValueError(msg)
    seconds = (hours * 60 + minutes) * 60
    return (-seconds if zone[0] == "-" else seconds) * 1_000_000
