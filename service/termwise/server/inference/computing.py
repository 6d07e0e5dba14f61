"""How an encoder is asked to compute, and what is said where it cannot. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from termwise.server.errors import FailedPreconditionError, FieldViolation

if TYPE_CHECKING:
    from pathlib import Path

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16", "int8")


@dataclass(frozen=True, slots=True)
class Computing:
    """How an encoder is to compute; the fields are those of `loader.load_encoder`."""

    threads: int = 1
    precision: str = "auto"
    cache: Path | None = None
    device: str = "auto"


def refuse_device(sentence: str) -> FailedPreconditionError:
    """Make the error for a device that cannot be had."""
    return FailedPreconditionError(f"device: {sentence}", reason="DEVICE_UNSUPPORTED")


def refuse_precision(why: str, reason: str) -> FailedPreconditionError:
    """Make the error for a precision that cannot be had. `why` begins the sentence."""
    sentence = f"{why[0].upper()}{why[1:]}; use AUTO or FLOAT32."
    return FailedPreconditionError(
        f"precision: {sentence}", reason=reason, violations=[FieldViolation("precision", sentence)]
    )
