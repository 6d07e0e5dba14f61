"""What a model repository is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Report: TypeAlias = "Callable[[int, int], None]"
"""Takes bytes done and bytes in all (0: not known yet). A fetch calls it at least every 1 MiB and every 0.2 seconds,
from the thread that runs it; it raises FetchStoppedError once nobody wants the files any more. Bytes that an earlier
attempt left in `scratch` are done from the beginning. Fewer bytes done than before are not shown, except where what
was there had to be thrown away: such a fetch reports 0 bytes done."""

CHUNK = 1 << 20
"""Bytes moved between two reports."""


class FetchStoppedError(Exception):
    """Nobody wants the files any more: the download was cancelled, the model is being deleted, or the server stops."""


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

        Blocks. What the source gives is compared with `sha256` (hex, lower case) unless that is empty. Once it knows
        how much it is going to write, it asks `artifacts.check_room`.

        `scratch` is for what is needed meanwhile. It is empty at first, and then what the last attempt left there:
        that attempt failed with UnavailableError, was stopped with the server, or was killed with it at any moment,
        and was for the same `uri` and `sha256`. So a fetch may go on from what it finds there, once it has checked
        that the source still is what it was. Where what it made of that fails with FailedPreconditionError, it is
        called once more with an empty folder.

        Both folders are on one file system (a file may be moved from one to the other), and the caller removes them.

        Raises:
            UnavailableError: the source cannot be reached, after as many attempts as are worth while.
            FailedPreconditionError: it gives nothing, or what cannot be used.
            ResourceExhaustedError: the disk has too little room.
            OSError: as the operating system gives it; the caller turns a full disk into ResourceExhaustedError.
            FetchStoppedError: raised by `report`, passed on.

        """
        ...
