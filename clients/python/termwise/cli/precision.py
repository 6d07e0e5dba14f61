"""Arithmetic of encoders, as an option."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """Arithmetic of an encoder."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    AUTO = "auto"
