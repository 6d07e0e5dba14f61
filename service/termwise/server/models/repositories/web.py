"""HTTP for models: one client a fetch, where its credentials go, how patient it is, and what answers mean.

Nothing that it says or logs holds a user name, a password or a query.
"""

from __future__ import annotations

import re
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

from termwise.server.errors import FailedPreconditionError, TermwiseError, UnavailableError

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
_PASSING: Final = frozenset({408, 425, 429})
_MOST_PAUSE_ASKED: Final = 60.0
"""Longest `Retry-After`, in seconds, that is waited for."""
_CONTENT_RANGE: Final = re.compile(r"bytes (?:(?P<first>\d+)-(?P<last>\d+)|\*)/(?P<size>\d+|\*)")
_REASON: Final = re.compile(r"\[Errno -?\d+\] (?P<reason>[A-Z][A-Za-z ,]+[a-z])")


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


HURRIED: Final = Patience(connect_seconds=5.0, silence_seconds=10.0, attempts=2)
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


class PassingError(Exception):
    """What may go away by itself. `verdict` is the error for the caller once patience has ended."""

    def __init__(self, verdict: UnavailableError, pause: float = 0.0) -> None:
        """Take the shortest pause, in seconds, before another try."""
        super().__init__(verdict.message)
        self.verdict = verdict
        self.pause = pause


class RangeRefusedError(Exception):
    """The server has nothing at that range (416). `size` is the file's, where it says so."""

    def __init__(self, size: int | None) -> None:
        """Take the size."""
        super().__init__("416")
        self.size = size


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
            except (httpx2.TransportError, httpx2.InvalidURL) as error:
                raise _unreachable(url, error) from None
            stream = response.extensions.get("network_stream")
            with self._lock:
                self._streams.add(stream)
            try:
                if response.status_code in _REDIRECTS:
                    url = _redirected(url, response.headers.get("location", ""))
                    continue
                _check(url, response)
                self.check()
                yield response
            except httpx2.TransportError as error:
                self.check()
                raise _unreachable(url, error) from None
            finally:
                with self._lock:
                    self._streams.discard(stream)
                response.close()
            return
        raise _unusable(f"{shown(url)} leads from one address to the next without end")

    def probe(self, url: str) -> Remote:
        """Ask what a file is, without its bytes; errors as `get`, once patience has ended."""
        return self.patiently(lambda: self._probe(url))

    def _probe(self, url: str) -> Remote:
        try:
            with self.get(url, {"Range": "bytes=0-0"}) as response:
                headers = response.headers
                validator = _validator(headers)
                if response.status_code == 206:  # noqa: PLR2004 - the status itself
                    _, _, size = content_range(headers)
                    return Remote(size, size is not None, validator)
                return Remote(length(headers), ranges=False, validator=validator)
        except RangeRefusedError as error:
            if error.size != 0:
                raise _unusable(f"{shown(url)} refuses its own first byte") from None
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
                for block in response.iter_raw():
                    self.check()
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


def too_long(what: str, size: int, limit: int) -> FailedPreconditionError:
    """Make the error for a file that is longer than one may be; `what` is what it is, with its article."""
    return _unusable(f"{what} has {size:,} bytes or more, over the {limit:,} that it may have")


def shown(url: str) -> str:
    """Give a URL as people may see it: without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None, int | None]:
    """Read `Content-Range`: the first byte, the last one, and the file's size; None for what it does not say."""
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip().lower())
    if match is None:
        return None, None, None
    first, last, size = match["first"], match["last"], match["size"]
    return int(first) if first else None, int(last) if last else None, int(size) if size != "*" else None


def length(headers: Mapping[str, str]) -> int | None:
    """Read `Content-Length`; None where it is not said."""
    text = headers.get("content-length", "")
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


def _validator(headers: Mapping[str, str]) -> str:
    """Give what goes into `If-Range`: a weak ETag may not (RFC 9110, 13.1.5)."""
    etag: str = headers.get("etag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("last-modified", "")


def _check(url: str, response: httpx2.Response) -> None:
    status = response.status_code
    where = shown(url)
    if status in {200, 206}:
        if response.headers.get("content-encoding", "identity").lower() not in {"", "identity"}:
            raise _unusable(f"{where} comes compressed by its server, which was asked not to")
        return
    if status == 416:  # noqa: PLR2004 - the status itself
        raise RangeRefusedError(content_range(response.headers)[2])
    if status in {404, 410}:
        raise FailedPreconditionError(f"There is no file at {where} (HTTP {status}).", reason="SOURCE_NOT_FOUND")
    if status in {401, 403}:
        raise FailedPreconditionError(
            f"{where} is denied (HTTP {status}); check the settings model_repository, model_repository_username and "
            "model_repository_password.",
            reason="SOURCE_DENIED",
        )
    if status == 407:  # noqa: PLR2004 - the status itself
        raise FailedPreconditionError(
            f"The proxy on the way to {where} wants other credentials (HTTP 407); check the setting model_proxy.",
            reason="SOURCE_DENIED",
        )
    if status in _PASSING or status >= 500:  # noqa: PLR2004 - the server's own errors
        verdict = UnavailableError(
            f"{where} cannot be had now (HTTP {status}); try again later.", reason="SOURCE_BROKEN"
        )
        asked = response.headers.get("retry-after", "")
        raise PassingError(verdict, min(float(asked), _MOST_PAUSE_ASKED) if re.fullmatch(r"\d{1,6}", asked) else 0.0)
    raise _unusable(f"{where} answers with HTTP {status}")


def _redirected(url: str, location: str) -> str:
    there, here = urljoin(url, location), urlsplit(url)
    try:
        parts = urlsplit(there)
        same = (parts.scheme, parts.hostname, _port(parts)) == (here.scheme, here.hostname, _port(here))
    except ValueError:
        same = False
    if not location or not same or "@" in parts.netloc:
        where = shown(there) if location else "nowhere"
        raise FailedPreconditionError(
            f"{shown(url)} redirects to {where[:200]}; only redirects to the same host, port and scheme are followed.",
            reason="REDIRECT_REFUSED",
        )
    return there


def _port(parts: Any) -> int | None:
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _unreachable(url: str, error: Exception) -> PassingError:
    """Reduce what went wrong on the way to one sentence; the error's own text may name a proxy."""
    import httpx2  # noqa: PLC0415 - loaded already

    place = urlsplit(shown(url))
    host = f"{place.scheme}://{place.netloc}"
    text = str(error)
    if isinstance(error, httpx2.ProxyError):
        status = re.search(r"\b[45]\d\d\b", text)
        because = f"the proxy refuses (HTTP {status[0]})" if status else "the proxy refuses"
        verdict = UnavailableError(f"{host} cannot be reached: {because}; check the setting model_proxy.")
    elif isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError):
        reason = _REASON.search(text)
        because = "it does not answer" if isinstance(error, httpx2.ConnectTimeout) else "no connection"
        if "CERTIFICATE_VERIFY_FAILED" in text:
            because = "its certificate is not trusted; name its authority's file in SSL_CERT_FILE"
        elif reason:
            because = reason["reason"].lower()
        verdict = UnavailableError(f"{host} cannot be reached: {because}.")
    elif isinstance(error, httpx2.TimeoutException):
        verdict = UnavailableError(f"{shown(url)} stopped coming: the server was silent for too long.")
    else:
        verdict = UnavailableError(f"{shown(url)} was cut off by the server or the network.")
    verdict.reason_code = "SOURCE_UNREACHABLE"
    return PassingError(verdict)


def _unusable(sentence: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"{sentence}.", reason="SOURCE_UNUSABLE")


def is_absent(error: TermwiseError) -> bool:
    """Tell whether an error says that there is no such file."""
    return error.reason_code == "SOURCE_NOT_FOUND"
