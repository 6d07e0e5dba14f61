"""HTTP for models: one client a fetch, where its credentials go, how patient it is, and what answers mean.

Nothing that it says or logs holds a user name, a password or a query.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from termwise.server.models.repositories.answers import (
    PassingError,
    RangeRefusedError,
    check_answer,
    content_range,
    cut_off,
    length,
    redirected,
    shown,
    too_long,
    unreachable,
    unusable,
    validator,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    import httpx2

    from termwise.server.models.repositories.base import Report

T = TypeVar("T")

_TICK_SECONDS: Final = 0.1
"""Time between two looks of the watching thread at a stop."""
_JOIN_SECONDS: Final = 2.0
"""How long threads may take to end. One that waits for a connection is left to its own end: it touches no file."""
_MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Patience:
    """How much a source is put up with."""

    connect_seconds: float = 10.0
    silence_seconds: float = 30.0
    """Longest time without a byte."""
    window_seconds: float = 60.0
    window_bytes: int = 65_536
    """A stream that brings fewer bytes than this in a window is begun again."""
    attempts: int = 6
    """Tries in a row that bring nothing."""
    first_pause_seconds: float = 0.5
    """Doubled after each of those tries."""
    longest_pause_seconds: float = 15.0


HURRIED: Final = Patience(connect_seconds=5.0, silence_seconds=10.0, window_seconds=10.0, attempts=2)
"""For whoever waits in a call."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach sources. `username` and `password` are for `base`, a URL, and what lies below it alone.

    `proxy` is a proxy's URL; empty: as the environment says. `streams` is how many parts of a file come at a time.
    """

    base: str = ""
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    proxy: str = field(default="", repr=False)
    streams: int = 5

    def credentials(self, url: str) -> tuple[str, str] | None:
        """Give user name and password for a URL; None where they are not for it."""
        below = self.base.rstrip("/") + "/"
        if not self.base or not (self.username or self.password) or not url.startswith(below):
            return None
        return self.username, self.password


@dataclass(frozen=True, slots=True)
class Remote:
    """What a server says of a file. `size` is None where it does not say; `validator` fits into `If-Range`."""

    size: int | None
    ranges: bool
    validator: str


class Meter:
    """How far a fetch of several files is, in bytes."""

    def __init__(self, report: Report) -> None:
        """Begin at nothing; `total` is 0 while it is unknown."""
        self.total = 0
        self._report = report
        self._before = 0
        self._now = 0

    def tick(self) -> None:
        """Tell it, and hear whether to go on: this raises what `report` does."""
        self._report(self._before + self._now, self.total)

    def at(self, count: int) -> None:
        """Tell that so many bytes of the file in hand are there."""
        self._now = count
        self.tick()

    def finish(self) -> None:
        """Tell that the file in hand is there."""
        self._before += self._now
        self._now = 0


class StoppedError(Exception):
    """The session has ended; raised in its threads alone."""


class Session:
    """The client of one fetch, and its threads. What blocks runs in those; the caller's thread watches for a stop."""

    def __init__(self, access: Access, patience: Patience) -> None:
        """Open nothing yet."""
        import httpx2  # noqa: PLC0415 - a tenth of a second that a start without downloads does without

        self.access = access
        self.patience = patience
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._streams: set[Any] = set()
        wait = httpx2.Timeout(patience.silence_seconds, connect=patience.connect_seconds, pool=None)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=access.streams + 1)
        self._client = httpx2.Client(proxy=access.proxy or None, timeout=wait, limits=limits, follow_redirects=False)

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cut what is still open."""
        self._cut()
        self._client.close()

    def check(self) -> None:
        """Raise StoppedError, in a thread of the session, once it has ended."""
        if self._stop.is_set():
            raise StoppedError

    def run(self, job: Callable[[], T], tick: Callable[[], None], *, times: int = 1) -> T:
        """Run a job in a thread, or in several, and give what the first gave; `tick` is called all the while.

        Raises whatever a job raised first, or `tick` did; the session has then ended for the others.
        """
        results: list[T] = []
        failures: list[BaseException] = []

        def work() -> None:
            try:
                results.append(job())
            except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
                failures.append(error)

        # Daemons: one that hangs in a connection may not hold up the server's end.
        threads = [threading.Thread(target=work, name=f"model-http-{place}", daemon=True) for place in range(times)]
        for thread in threads:
            thread.start()
        try:
            while not failures and any(thread.is_alive() for thread in threads):
                next(thread for thread in threads if thread.is_alive() or thread is threads[-1]).join(_TICK_SECONDS)
                tick()
            _raise_first(failures)
            tick()
        except BaseException:
            self._cut()
            for thread in threads:
                thread.join(_JOIN_SECONDS)
            if failures:
                self._stop.clear()  # the caller may have another way
            raise
        return results[0]

    def _cut(self) -> None:
        self._stop.set()
        with self._lock:
            for stream in self._streams:
                # Closing a socket wakes nobody who reads from it; this does.
                with suppress(OSError, AttributeError):
                    stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def patiently(self, job: Callable[[], T]) -> T:
        """Run a job that may raise PassingError until it does not, or patience has ended."""
        failures = 0
        while True:
            try:
                return job()
            except PassingError as error:
                failures += 1
                self.pause(error, failures)

    def pause(self, error: PassingError, failures: int) -> None:
        """Wait before another try, or raise the verdict where there were enough."""
        self.check()
        if failures >= self.patience.attempts:
            raise error.verdict
        wanted = self.patience.first_pause_seconds * 2.0 ** (failures - 1)
        self._stop.wait(max(min(wanted, self.patience.longest_pause_seconds), error.pause))
        self.check()

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx2.Response]:
        """Ask for a URL; the answer is 200 or 206, its body unread. Redirects are followed on the same host alone.

        Raises:
            PassingError: the server cannot be reached, is busy or broken, or breaks off, now or amid the body.
            RangeRefusedError: there is nothing at the range that was asked for.
            FailedPreconditionError: there is no such file, it is denied, or the answer is of no use.
            StoppedError: the session has ended.

        """
        import httpx2  # noqa: PLC0415 - loaded already

        for _ in range(_MOST_REDIRECTS + 1):
            self.check()
            try:
                request = self._client.build_request(
                    "GET", url, headers={"Accept-Encoding": "identity", **(headers or {})}
                )
                response = self._client.send(request, stream=True, auth=self.access.credentials(url))
            except (httpx2.TransportError, httpx2.InvalidURL, UnicodeError) as error:
                raise unreachable(url, error) from None
            stream = response.extensions.get("network_stream")
            with self._lock:
                self._streams.add(stream)
            try:
                if response.status_code in _REDIRECTS:
                    url = redirected(url, response.headers.get("location", ""))
                    continue
                check_answer(url, response)
                self.check()
                yield response
            except httpx2.TransportError as error:
                self.check()
                raise unreachable(url, error) from None
            finally:
                with self._lock:
                    self._streams.discard(stream)
                response.close()
            return
        raise unusable(f"{shown(url)} leads from one address to the next without end")

    def blocks(self, url: str, response: httpx2.Response) -> Iterator[bytes]:
        """Give a body's bytes as they come. One that hardly moves is cut off: PassingError."""
        until, came = time.monotonic() + self.patience.window_seconds, 0
        for block in response.iter_raw():
            self.check()
            yield block
            came += len(block)
            if (now := time.monotonic()) >= until:
                if came < self.patience.window_bytes:
                    raise cut_off(url)
                until, came = now + self.patience.window_seconds, 0

    def probe(self, url: str) -> Remote:
        """Ask what a file is, without its bytes; errors as `get`, once patience has ended."""
        return self.patiently(lambda: self._probe(url))

    def _probe(self, url: str) -> Remote:
        try:
            with self.get(url, {"Range": "bytes=0-0"}) as response:
                headers = response.headers
                tag = validator(headers)
                if response.status_code == 206:  # noqa: PLR2004 - the status itself
                    _, _, size = content_range(headers)
                    return Remote(size, size is not None, tag)
                return Remote(length(headers), ranges=False, validator=tag)
        except RangeRefusedError as error:
            if error.size != 0:
                raise unusable(f"{shown(url)} refuses its own first byte") from None
            return Remote(0, ranges=False, validator="")

    def read(self, url: str, limit: int, what: str) -> bytes:
        """Read a file of at most `limit` bytes; `what` is what it is. Errors as `get`, once patience has ended."""
        return self.patiently(lambda: self._read(url, limit, what))

    def _read(self, url: str, limit: int, what: str) -> bytes:
        with self.get(url) as response:
            known = length(response.headers)
            blocks: list[bytes] = []
            size = known or 0
            if size <= limit:
                size = 0
                for block in self.blocks(url, response):
                    size += len(block)
                    blocks.append(block)
                    if size > limit:
                        break
            if size > limit:
                raise too_long(what, size, limit)
            return b"".join(blocks)


def _raise_first(failures: list[BaseException]) -> None:
    if failures:
        raise failures[0]
