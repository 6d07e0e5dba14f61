"""What a web server's answers mean: headers read, statuses and broken connections turned into the domain's errors.

No sentence here holds a user name, a password or a query.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from termwise.server.errors import FailedPreconditionError, TermwiseError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx2

_PASSING: Final = frozenset({408, 425, 429})
_MOST_PAUSE_ASKED: Final = 60.0
"""Longest `Retry-After`, in seconds, that is waited for."""
_CONTENT_RANGE: Final = re.compile(r"bytes (?:(?P<first>\d{1,18})-(?P<last>\d{1,18})|\*)/(?P<size>\d{1,18}|\*)")
_REASON: Final = re.compile(r"\[Errno -?\d+\] (?P<reason>[A-Z][A-Za-z ,]+[a-z])")


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


def too_long(what: str, size: int, limit: int) -> FailedPreconditionError:
    """Make the error for a file that is longer than one may be; `what` is what it is, with its article."""
    return unusable(f"{what} has {size:,} bytes or more, over the {limit:,} that it may have")


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


def validator(headers: Mapping[str, str]) -> str:
    """Give what goes into `If-Range`: a weak ETag may not (RFC 9110, 13.1.5)."""
    etag: str = headers.get("etag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("last-modified", "")


def check_answer(url: str, response: httpx2.Response) -> None:
    """Pass what is 200 or 206, and no redirect; errors as `web.Session.get`."""
    status = response.status_code
    where = shown(url)
    if status in {200, 206}:
        if response.headers.get("content-encoding", "identity").lower() not in {"", "identity"}:
            raise unusable(f"{where} comes compressed by its server, which was asked not to")
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
    raise unusable(f"{where} answers with HTTP {status}")


def redirected(url: str, location: str) -> str:
    """Give where a redirect leads.

    Raises:
        FailedPreconditionError: to another scheme, host or port, or nowhere.

    """
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


def unreachable(url: str, error: Exception) -> PassingError:
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
        return cut_off(url)
    verdict.reason_code = "SOURCE_UNREACHABLE"
    return PassingError(verdict)


def cut_off(url: str) -> PassingError:
    """Make the error for a body that ended too soon, or hardly moved."""
    return PassingError(
        UnavailableError(f"{shown(url)} was cut off by the server or the network.", reason="SOURCE_UNREACHABLE")
    )


def unusable(sentence: str) -> FailedPreconditionError:
    """Make the error for an answer of no use. `sentence` lacks its full stop."""
    return FailedPreconditionError(f"{sentence}.", reason="SOURCE_UNUSABLE")


def is_absent(error: TermwiseError) -> bool:
    """Tell whether an error says that there is no such file."""
    return error.reason_code == "SOURCE_NOT_FOUND"
