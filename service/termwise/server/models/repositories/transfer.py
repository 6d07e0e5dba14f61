"""Fetches one large file over HTTP: in parts side by side where the server can, on from where an attempt ended.

Its size and its SHA-256 are compared with what they should be, whatever way it came.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from termwise.server.errors import FailedPreconditionError, UnavailableError
from termwise.server.models import artifacts
from termwise.server.models.repositories.answers import (
    PassingError,
    RangeRefusedError,
    content_range,
    cut_off,
    length,
    shown,
)
from termwise.server.models.repositories.ranges import Part

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx2

    from termwise.server.models.repositories.web import Meter, Remote, Session

_LEAST_PIECE: Final = 1 << 20
_MOST_PIECE: Final = 32 << 20
"""Bytes asked for in one request. A file is cut into one piece a stream within these limits."""
_PROGRESS: Final = 65_536
"""Bytes that a request must bring to count as a good one."""
_MOST_CHANGES: Final = 3
"""So often may a file change while it is fetched."""
_PARTIAL: Final = 206


class _ChangedError(Exception):
    """The file at the source is no longer the one that was begun."""


class _NoRangesError(Exception):
    """The server does not answer the ranges that it is asked for."""


def take(session: Session, url: str, part: Path, meter: Meter, *, size: int = 0, sha256: str = "") -> None:
    """Fetch a file to `part`, beside which a note is kept, and compare it with size (0: any) and SHA-256 ("": any).

    What `meter` raises ends the fetch.

    Raises:
        UnavailableError: the server cannot be reached, breaks off again and again, or its file keeps changing.
        FailedPreconditionError: there is no such file, its size or its SHA-256 is another, or it is denied.
        OSError: the disk is full, and the like.

    """
    ranged = True
    for _ in range(_MOST_CHANGES):
        remote = session.run(lambda: session.probe(url), meter.tick)
        known = _size(url, remote, size)
        try:
            with Part(part, known, f"{url} {known} {remote.validator} {sha256}") as file:
                meter.at(file.count)
                artifacts.check_room(part.parent, known - file.count)
                transfer = _Transfer(session, url, file, remote, meter)
                if remote.ranges and ranged:
                    transfer.fetch_ranges()
                else:
                    transfer.fetch_whole()
        except _ChangedError:
            continue
        except _NoRangesError:
            ranged = False
            continue
        artifacts.check_digest(part, sha256, shown(url))
        meter.finish()
        return
    raise UnavailableError(f"{shown(url)} changes while it is fetched; try again later.", reason="SOURCE_CHANGES")


def _size(url: str, remote: Remote, wanted: int) -> int:
    if remote.size is None and not wanted:
        raise artifacts.unusable(f"{shown(url)} comes without its length; its server has to say Content-Length")
    if wanted and remote.size not in {None, wanted}:
        raise wrong_size(shown(url), remote.size or 0, wanted)
    return wanted if remote.size is None else remote.size


def wrong_size(what: str, size: int, wanted: int) -> FailedPreconditionError:
    """Make the error for a file that is longer or shorter than its package's metadata say."""
    return artifacts.unusable(
        f"{what} has {size:,} bytes instead of the {wanted:,} that its metadata say; it was cut short or altered",
        reason="SIZE_MISMATCH",
    )


class _Transfer:
    """One attempt at a file; `pieces` are those that no stream has taken yet."""

    def __init__(self, session: Session, url: str, file: Part, remote: Remote, meter: Meter) -> None:
        self._session = session
        self._url = url
        self._file = file
        self._remote = remote
        self._meter = meter
        self._lock = threading.Lock()
        self._pieces: deque[tuple[int, int]] = deque()

    def fetch_ranges(self) -> None:
        """Fetch what is missing, several pieces at a time."""
        streams = self._session.access.streams
        piece = min(max(-(-self._file.size // streams), _LEAST_PIECE), _MOST_PIECE)
        self._pieces.extend(self._file.missing(piece))
        if self._pieces:
            self._session.run(self._stream, self._tick, times=min(streams, len(self._pieces)))

    def fetch_whole(self) -> None:
        """Fetch all of it in one request, from the first byte at each attempt."""
        if self._file.count < self._file.size or not self._file.size:
            self._session.run(lambda: self._session.patiently(self._fetch_whole), self._tick)

    def _tick(self) -> None:
        self._file.note()
        self._meter.at(self._file.count)

    def _stream(self) -> None:
        """Fetch piece after piece. What is left of one that was cut off is asked for again."""
        failures = 0
        while (piece := self._next()) is not None:
            start, end = piece
            done = start
            try:
                for done in self._fetch_piece(start, end):  # noqa: B007 - it says how far it came
                    pass
            except PassingError as error:
                with self._lock:
                    self._pieces.appendleft((done, end))
                failures = 1 if done - start >= _PROGRESS else failures + 1
                self._session.pause(error, failures)
            else:
                failures = 0

    def _next(self) -> tuple[int, int] | None:
        with self._lock:
            return self._pieces.popleft() if self._pieces else None

    def _fetch_piece(self, start: int, end: int) -> Iterator[int]:
        """Fetch one range, giving up to which byte it is there."""
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if self._remote.validator:
            headers["If-Range"] = self._remote.validator
        try:
            with self._session.get(self._url, headers) as response:
                self._check_range(response, start, end)
                for block in self._session.blocks(self._url, response):
                    wanted = block[: end - start]
                    self._file.write(start, wanted)
                    start += len(wanted)
                    yield start
                    if len(wanted) < len(block):
                        raise _NoRangesError
        except RangeRefusedError:
            raise _ChangedError from None
        if start < end:
            raise cut_off(self._url)

    def _check_range(self, response: httpx2.Response, start: int, end: int) -> None:
        if response.status_code != _PARTIAL:  # the whole file: it is another one now, or ranges work no longer
            raise _ChangedError if self._remote.validator else _NoRangesError
        first, last, size = content_range(response.headers)
        if size != self._file.size:
            raise _ChangedError
        if first != start or last is None or last >= end:
            raise _NoRangesError

    def _fetch_whole(self) -> None:
        self._file.restart()
        place = 0
        with self._session.get(self._url) as response:
            said = length(response.headers)
            if said is not None and said != self._file.size:
                raise _ChangedError
            for block in self._session.blocks(self._url, response):
                place += len(block)
                if place > self._file.size:
                    break
                self._file.write(place - len(block), block)
        if place > self._file.size:
            raise wrong_size(shown(self._url), place, self._file.size)
        if place < self._file.size:
            raise cut_off(self._url)
