"""What a tokenizer.json may not ask for: memory beyond measure, which ends the process and not the call.

Rust's tokenizers take what the file says at its word. A table of characters (`Precompiled`, SentencePiece's) states how
long it is, and so much is allocated; rules that replace each letter by a thousand multiply when there are several.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any, Final

from termwise.server.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# How many times as long a text may become; SentencePiece's own rules make it no longer.
_MOST_GROWTH: Final = 256
# Letters of what one letter becomes by SentencePiece's table; NFKC has one of 18.
_LONGEST_REPLACEMENT: Final = 256
_UNIT: Final = 4


def check_table(file: Path) -> None:
    """Refuse a tokenizer.json whose table of characters is not what it says it is.

    Raises:
        FailedPreconditionError: it is not.
        ValueError: the file is no JSON.

    """
    raw = file.read_bytes()
    # Most have none, and reading a large file twice takes time; an escaped letter could hide the name.
    if b"recompiled" not in raw and b"\\u00" not in raw:
        return
    values = json.loads(raw)
    for part in _parts(values.get("normalizer") if isinstance(values, dict) else None):
        if "precompiled_charsmap" in part and not _is_table(part["precompiled_charsmap"]):
            raise _refused("its table of characters is broken; download it again")


def check_growth(tokenizer: Any) -> None:
    """Refuse a loaded tokenizer (`tokenizers.Tokenizer`) whose rules would make texts far longer.

    Raises:
        FailedPreconditionError: they would.

    """
    if tokenizer.normalizer is None:
        return
    growth = 1.0
    for part in _parts(json.loads(tokenizer.normalizer.__getstate__())):
        if part.get("type") == "Replace":
            growth *= _growth(part["pattern"], len(str(part["content"])))
    if growth > _MOST_GROWTH:
        raise _refused(f"its rules make a text more than {_MOST_GROWTH} times as long")


def _growth(pattern: dict[str, Any], length: int) -> float:
    plain = pattern.get("String")
    if plain:
        return max(1.0, length / len(plain))
    # An expression may match between any two letters.
    return 1.0 if length <= 1 else length + 1.0


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Give all objects inside a value."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _is_table(text: Any) -> bool:
    """Tell whether a table is whole: the length of an index in bytes, the index, and replacements that end in a NUL."""
    if text is None or text == "":
        return True
    try:
        table = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        return False
    length = int.from_bytes(table[:_UNIT], "little")
    if len(table) < _UNIT or length % _UNIT or length > len(table) - _UNIT:
        return False
    return all(len(each) <= _LONGEST_REPLACEMENT for each in table[_UNIT + length :].split(b"\0"))


def _refused(problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"The model cannot be used: tokenizer.json would take all memory, since {problem}.", reason="MODEL_UNUSABLE"
    )
