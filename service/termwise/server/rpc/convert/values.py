"""Enums, times and time spans of messages."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from termwise.server.errors import invalid_field

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

Meaning = TypeVar("Meaning")


def known(meanings: Mapping[Any, Meaning], number: int, field: str) -> Meaning:
    """Read an enum: proto3 lets any number through."""
    if number not in meanings:
        raise invalid_field(field, f"{number} is none of its values.")
    return meanings[number]


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
