"""From a gRPC call's context to the domain's `RequestContext`."""

from __future__ import annotations

import random
import re
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from termwise.server.context import RequestContext

if TYPE_CHECKING:
    import grpc.aio

REQUEST_ID_KEY: Final = "x-request-id"
"""Metadata in which a caller may give the call an id, and in which the server gives it back."""

CURRENT_REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""Id of the call that this task serves; set by the interceptor."""

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_SANE_TRACE: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, version 00."""


def request_context(grpc_context: grpc.aio.ServicerContext[Any, Any]) -> RequestContext:
    """Give what use cases need to know of the call."""
    remaining = grpc_context.time_remaining()
    trace = metadata_value(grpc_context, "traceparent")
    return RequestContext(
        request_id=CURRENT_REQUEST_ID.get() or request_id(grpc_context),
        deadline=None if remaining is None else time.monotonic() + remaining,
        trace_parent=trace if _SANE_TRACE.fullmatch(trace) else "",
    )


def request_id(grpc_context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Give the caller's id of the call where it is one that a log can bear, else a new one."""
    given = metadata_value(grpc_context, REQUEST_ID_KEY)
    # It names a call and hides nothing; the system's own source would hand the interpreter to another thread.
    return given if _SANE_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


def metadata_value(grpc_context: grpc.aio.ServicerContext[Any, Any], key: str) -> str:
    """Give the first text value of a metadata key; "" where there is none."""
    for name, value in grpc_context.invocation_metadata() or ():
        if name == key and isinstance(value, str):
            return value
    return ""
