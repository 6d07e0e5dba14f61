"""What a model repository is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Report: TypeAlias = "Callable[[int, int], None]"
"""Takes bytes done and bytes in all (0: not known yet). A fetch calls it at least every 1 MiB and every 0.2 seconds;
it raises FetchStoppedError once nobody wants the files any more."""

CHUNK = 1 << 20
"""Bytes moved between two reports."""


class FetchStoppedError(Exception):
    """Nobody wants the files any more: the model is being deleted, or the server stops."""


class Repository(Protocol):
    """A kind of source."""

    @property
    def scheme(self) -> str:
        """Scheme of its URIs, such as "file"."""
        ...

    def check(self, uri: str) -> None:
        """Raise InvalidArgumentError (field `source_uri`) where `uri` cannot be one of this repository."""
        ...

    def fetch(self, uri: str, folder: Path, *, scratch: Path, sha256: str, report: Report) -> None:
        """Put the model's files into `folder`, which is there and empty; only those that `artifacts.is_wanted` names.

        Blocks. `scratch` is an empty folder for what is needed meanwhile; the caller removes both folders whatever
        happens. What the source gives is compared with `sha256` (hex, lower case) unless that is empty.

        Raises:
            UnavailableError: the source cannot be reached.
            FailedPreconditionError: it gives nothing, or what cannot be used.
            OSError: as the operating system gives it; the caller turns a full disk into ResourceExhaustedError.
            FetchStoppedError: raised by `report`, passed on.

        """
        ...
