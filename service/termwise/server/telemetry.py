"""Logging: structlog on standard error, for a person on a terminal, as JSON otherwise.

A line is an event and its key-values. Libraries log through the same lines.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, cast

import orjson
import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

Format = Literal["auto", "console", "json"]

_QUIET: Final = ("alembic", "filelock", "httpcore2", "httpx", "httpx2", "numba", "transformers", "urllib3")
"""Libraries whose progress notes are not an operator's business."""


class _Unfailing:
    """A stream where a write that fails, on a full disk or to a reader that left, costs the line and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def configure_logging(level: str = "info", form: Format = "auto") -> None:
    """Set up logging for the process. Call it once, before anything logs."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ending: list[Processor] = (
        # Plain: the default shows local variables, and with them what callers sent.
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]
    )
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Unfailing(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if level != "debug" else logging.DEBUG)
    # Our own modules below the service speak through the standard library.
    logging.getLogger("termwise").setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # grpc.aio reports every cancelled stream as an exception, with a traceback; the interceptor has logged the call.
    logging.getLogger("grpc._cython.cygrpc").addFilter(_not_a_cancellation)
    logging.captureWarnings(capture=True)


def _not_a_cancellation(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[0] is not None and record.exc_info[0].__name__ == "CancelledError")


def _json(event: EventDict, **options: Any) -> str:
    """Write one line. What JSON has no form for is written as text."""
    del options
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
