"""Pages of lists: how long one may be, and the tokens that lead to the next."""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import TYPE_CHECKING, Final, TypeVar

from termwise.server.errors import invalid_field

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1_000

_CHECK_BYTES: Final = 4

Item = TypeVar("Item")


def page_size(value: int, field: str = "page_size") -> int:
    """Give the page size that a request means: 0 is the default.

    Raises:
        InvalidArgumentError: it is negative or over `MAX_PAGE_SIZE`.

    """
    if not 0 <= value <= MAX_PAGE_SIZE:
        raise invalid_field(field, f"{value} is out of range; give 1 to {MAX_PAGE_SIZE:,}, or 0 for the default.")
    return value or DEFAULT_PAGE_SIZE


def page_token(after: str, call: str) -> str:
    """Make the token of the page after the id `after` in the list of `call` ("ListIndices")."""
    data = after.encode()
    return base64.urlsafe_b64encode(_check(data, call) + data).decode("ascii").rstrip("=")


def after_token(token: str, call: str, field: str = "page_token") -> str:
    """Give the id after which the page begins; "" for an empty token.

    Raises:
        InvalidArgumentError: `call` did not give that token.

    """
    if not token:
        return ""
    try:
        raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        check, data = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
        if check == _check(data, call):
            return data.decode()
    except (UnicodeError, binascii.Error):
        pass
    raise invalid_field(field, f"This is no page token of {call}; leave it empty for the first page.")


def page(items: Sequence[Item], size: int, call: str, key: Callable[[Item], str]) -> tuple[Sequence[Item], str]:
    """Cut `items`, of which `size` + 1 were asked for, to a page, and give the token of the next.

    The token is "" for the last page.
    """
    if len(items) <= size:
        return items, ""
    return items[:size], page_token(key(items[size - 1]), call)


def _check(data: bytes, call: str) -> bytes:
    """Give a checksum that tells a token from other text, and one call's from another's. It keeps no secret."""
    return zlib.crc32(data, zlib.crc32(call.encode())).to_bytes(_CHECK_BYTES, "big")
