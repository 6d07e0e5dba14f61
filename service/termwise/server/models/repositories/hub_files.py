"""Brings a file of the Hugging Face Hub: several parts side by side, on from where an attempt ended, and checked.

huggingface_hub's own download begins a file anew after a restart, so its session is used here, and not its download.
"""

from __future__ import annotations

import hashlib
import queue
import re
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from termwise.server.errors import FailedPreconditionError, UnavailableError
from termwise.server.models import artifacts
from termwise.server.models.repositories.base import CHUNK, FetchStoppedError
from termwise.server.models.repositories.hub import SHA1, TIMEOUT_SECONDS, cached_file, explain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from termwise.server.models.repositories.attended import Wish
    from termwise.server.models.repositories.hub import HubFile, Snapshot
    from termwise.server.models.repositories.ranges import Part

_PAUSES_SECONDS: Final = (0.5, 1.0, 2.0, 4.0)
"""Between attempts that bring nothing."""
_LEAST_PIECE: Final = 1 << 20
_MOST_PIECE: Final = 32 << 20
"""Bytes asked for in one request. A file is cut into one piece a stream within these limits."""
_PARTIAL: Final = 206
_RANGE: Final = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<size>\d+|\*)")


class _CutError(ConnectionError):
    """An answer that ended before its bytes did."""


class _NoRangesError(Exception):
    """The server does not answer the range that it is asked for."""


def fetch_file(snapshot: Snapshot, file: HubFile, held: Part, wish: Wish, streams: int) -> None:
    """Bring what `held` lacks of a file, from the local cache or the Hub, and check the whole.

    Raises:
        UnavailableError: the Hub cannot be reached, is busy or broken, after some attempts.
        FailedPreconditionError: it does not give the file, or another one than it says.
        FetchStoppedError: nobody wants it any more.

    """
    cached = file.cached or cached_file(snapshot.source.repo, file.name, snapshot.commit)
    if cached is not None and cached.stat().st_size == file.size:
        _copy(cached, held, wish)
    else:
        try:
            _Download(snapshot, file, held, wish).run(streams)
        except _NoRangesError:
            _Download(snapshot, file, held, wish).run_whole()
    problem = _problem(file, held.path)
    if problem:
        held.restart()
        raise FailedPreconditionError(
            f"{file.name} of {snapshot.source} {problem}; it was altered on its way, or on the Hub.",
            reason="CHECKSUM_MISMATCH",
        )


def _copy(cached: Path, held: Part, wish: Wish) -> None:
    held.restart()
    place = 0
    with cached.open("rb") as source:
        while block := source.read(CHUNK):
            wish.check()
            held.write(place, block)
            place += len(block)


class _Download:
    """One attempt at a file; `_pieces` are those that no stream has taken yet."""

    def __init__(self, snapshot: Snapshot, file: HubFile, held: Part, wish: Wish) -> None:
        self._snapshot = snapshot
        self._file = file
        self._held = held
        self._wish = wish
        self._lock = threading.Lock()
        self._failed = threading.Event()
        self._pieces: deque[tuple[int, int]] = deque()

    def run(self, streams: int) -> None:
        """Fetch what is missing, several pieces at a time."""
        piece = min(max(-(-self._file.size // streams), _LEAST_PIECE), _MOST_PIECE)
        self._pieces.extend(self._held.missing(piece))
        ends: queue.Queue[BaseException | None] = queue.Queue()

        def work() -> None:
            try:
                self._fetch_pieces()
            except BaseException as error:  # noqa: BLE001 - it is raised by who waits
                self._failed.set()
                ends.put(error)
            else:
                ends.put(None)

        count = min(streams, len(self._pieces))
        for place in range(count):
            threading.Thread(target=work, name=f"model-fetch-{place}", daemon=True).start()
        for _ in range(count):
            if (error := ends.get()) is not None:  # the others end by themselves
                raise error

    def run_whole(self) -> None:
        """Fetch all of it in one request, from the first byte at each attempt."""
        failures = 0
        while True:
            self._held.restart()
            try:
                self._fetch_piece(0, self._file.size)
            except _PieceError as error:
                failures += 1
                self._pause(error, failures)
            else:
                return

    def _fetch_pieces(self) -> None:
        """Fetch piece after piece. What is left of one that was cut off is asked for again."""
        failures = 0
        while (piece := self._next()) is not None:
            try:
                self._fetch_piece(*piece)
            except _PieceError as error:
                with self._lock:
                    self._pieces.appendleft((error.place, piece[1]))
                failures = 1 if error.place > piece[0] else failures + 1
                self._pause(error, failures)
            else:
                failures = 0

    def _next(self) -> tuple[int, int] | None:
        with self._lock:
            return self._pieces.popleft() if self._pieces else None

    def _pause(self, error: _PieceError, failures: int) -> None:
        """Wait before another attempt, or raise what went wrong where there were enough."""
        explained = explain(error.cause, self._snapshot.source)
        if not isinstance(explained, UnavailableError) or failures > len(_PAUSES_SECONDS):
            raise explained from None
        self._wish.wait(_PAUSES_SECONDS[failures - 1])

    def _fetch_piece(self, start: int, end: int) -> None:
        """Fetch the bytes from `start` to before `end`.

        Raises:
            _PieceError: it ended early, and says where.
            _NoRangesError: the server gives other bytes than it was asked for.

        """
        import httpx2  # noqa: PLC0415 - slow to import

        place = start
        try:
            for block in self._blocks(start, end):
                if place + len(block) > end:
                    raise self._longer() if end == self._file.size else _NoRangesError()
                self._held.write(place, block)
                place += len(block)
            if place < end:
                raise _CutError
        except (httpx2.HTTPError, OSError) as error:
            raise _PieceError(place, error) from None

    def _blocks(self, start: int, end: int) -> Iterator[bytes]:
        from huggingface_hub import get_session, hf_hub_url  # noqa: PLC0415 - slow to import
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # noqa: PLC0415

        url = hf_hub_url(self._snapshot.source.repo, self._file.name, revision=self._snapshot.commit)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        ranged = (start, end) != (0, self._file.size)
        if ranged:
            headers["Range"] = f"bytes={start}-{end - 1}"
        self._check()
        # Another host gets no token: the session drops it where a redirect leads there.
        with get_session().stream(
            "GET", url, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=True
        ) as response:
            hf_raise_for_status(response)
            if ranged:
                match = _RANGE.fullmatch(response.headers.get("content-range", ""))
                if response.status_code != _PARTIAL or match is None or int(match["start"]) != start:
                    raise _NoRangesError
                if match["size"] not in {"*", str(self._file.size)}:
                    raise self._longer()
            for block in response.iter_bytes():
                self._check()
                yield block

    def _longer(self) -> FailedPreconditionError:
        return artifacts.unusable(
            f"The Hub gives another {self._file.name} than the one of {self._file.size:,} bytes that it lists"
        )

    def _check(self) -> None:
        self._wish.check()
        if self._failed.is_set():
            raise FetchStoppedError


class _PieceError(Exception):
    """A piece that came up to `place`, and why no further."""

    def __init__(self, place: int, cause: Exception) -> None:
        super().__init__(str(cause))
        self.place = place
        self.cause = cause


def _problem(file: HubFile, path: Path) -> str:
    """Say what is wrong with a file; "" where nothing is."""
    if (size := path.stat().st_size) != file.size:
        return f"has {size:,} bytes instead of {file.size:,}"
    if file.sha256:
        with path.open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        return "" if actual == file.sha256 else f"has SHA-256 {actual} instead of {file.sha256}"
    if SHA1.fullmatch(file.git_sha1):  # git hashes a file after its kind and its size
        header = b"blob %d\0" % file.size
        actual = hashlib.sha1(header + path.read_bytes(), usedforsecurity=False).hexdigest()
        return "" if actual == file.git_sha1 else f"has git's SHA-1 {actual} instead of {file.git_sha1}"
    return ""
