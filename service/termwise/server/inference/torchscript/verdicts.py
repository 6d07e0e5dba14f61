"""What was found out of an archive once and need not be found out again: empty files in the data folder's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING

from termwise.server.inference.hardware import processor_name, torch_version
from termwise.server.inference.native.library import library_digest

if TYPE_CHECKING:
    from pathlib import Path

# Changes when what is found out does, so that old verdicts are not believed.
_VERSION = 1


def is_known(cache: Path | None, finding: str, *about: str) -> bool:
    """Tell whether a finding was made about something, on this processor and by this torch and kernel."""
    return cache is not None and _file(cache, finding, about).is_file()


def remember(cache: Path | None, finding: str, *about: str) -> None:
    """Keep a finding; where that is not possible (a full disk), it is made again."""
    if cache is None:
        return
    file = _file(cache, finding, about)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def _file(cache: Path, finding: str, about: tuple[str, ...]) -> Path:
    key = json.dumps([_VERSION, *about, torch_version(), processor_name(), library_digest()])
    return cache / "torchscript" / f"{finding}-{hashlib.sha256(key.encode()).hexdigest()}"
