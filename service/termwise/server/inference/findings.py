"""What was once found out about a model on this processor, by this torch and this kernel, and need not be again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING

from termwise.server.inference.hardware import processor_name, torch_version
from termwise.server.inference.native.library import library_digest

if TYPE_CHECKING:
    from pathlib import Path

# Changes when what is found out does, so that old findings are not believed.
_VERSION = 1


def is_known(cache: Path | None, finding: str, *about: object) -> bool:
    """Tell whether `finding`, a word or two, was found out about something. Nothing is known without a `cache`."""
    return cache is not None and _file(cache, finding, about).is_file()


def remember(cache: Path | None, finding: str, *about: object) -> None:
    """Keep a finding. Where it cannot be kept (a full disk), it will be found out again."""
    if cache is not None:
        file = _file(cache, finding, about)
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def _file(cache: Path, finding: str, about: tuple[object, ...]) -> Path:
    key = json.dumps([_VERSION, *map(repr, about), processor_name(), torch_version(), library_digest()])
    return cache / "findings" / f"{finding}-{hashlib.sha256(key.encode()).hexdigest()}"
