"""Enums, times and time spans of messages."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from termwise.server.errors import invalid_field

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

Meaning = TypeVar("Meaning")


def known(meanings: Mapping[Any, Meaning], number: int, field: str) -> Meaning:
    """Read an enum: proto3 lets any number through."""
    if number not in meanings:
        raise invalid_field(field, f"{number} is none of its values.")
    return meanings[number]


MAX_NAMES = 1_000
"""Most names, patterns or labels of a request."""
MAX_NAME = 256
"""Longest of them, in characters; ids have 255, labels 256."""


def several(names: Sequence[str], field: str) -> tuple[str, ...]:
    """Read names, patterns or labels.

    Raises:
        InvalidArgumentError: there are too many, or one is empty or too long.

    """
    if len(names) > MAX_NAMES:
        raise invalid_field(field, f"{len(names):,} are too many; give {MAX_NAMES:,} at most.")
    for place, name in enumerate(names):
        if not 1 <= len(name) <= MAX_NAME:
            raise invalid_field(f"{field}[{place}]", f"It has {len(name):,} characters; give 1 to {MAX_NAME}.")
    return tuple(names)


def timestamp(time: datetime) -> Timestamp:
    """Write a time."""
    message = Timestamp()
    message.FromDatetime(time)
    return message


def duration(seconds: float) -> Duration:
    """Write a time span."""
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds) if math.isfinite(seconds) else timedelta())
    return message
