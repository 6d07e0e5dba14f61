"""`python -m termwise.server`, which `termwise serve` calls too."""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

import structlog

from termwise.server.settings import SettingsError, parse_settings, unknown_variables
from termwise.server.telemetry import configure_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from termwise.server.settings import Settings

_FAILED = 1
_MISUSED = 2
"""Exit status for what is wrong with the command itself, as argparse's own."""

_MOST_FILES = 1 << 20
"""Files that may be open. More would slow down whatever closes all that could be."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read settings, serve until a signal, and give the exit status."""
    name = sys.argv[0]
    program = "python -m termwise.server" if Path(name).name == "__main__.py" else name
    try:
        settings = parse_settings(arguments, program=program)
    except SettingsError as error:
        print(f"{program}: {error}", file=sys.stderr)  # noqa: T201 - logging is a setting too
        return _MISUSED
    return serve(settings)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, and give the exit status: 1 where the server cannot start."""
    configure_logging(settings.log_level, settings.log_format)
    _allow_files()
    log = structlog.get_logger(__name__)
    for sentence in unknown_variables():
        log.warning("unknown_environment_variable", problem=sentence)
    # Nearly all that a start makes stays. Looking it through for garbage again and again takes a sixth of the time.
    gc.disable()
    # Imported late, so that a wrong flag is told at once.
    from termwise.server.bootstrap import serve_until_stopped  # noqa: PLC0415
    from termwise.server.errors import TermwiseError  # noqa: PLC0415
    from termwise.storage.errors import StorageError  # noqa: PLC0415

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve_until_stopped(settings))
    except (TermwiseError, StorageError) as error:
        # Its sentence says all; a traceback would hide it.
        log.error("cannot_start", problem=str(error))  # noqa: TRY400
        return _FAILED
    return 0


def _allow_files() -> None:
    """Allow as many open files as the system lets us: indices hold one a mapped file, and most limits begin at 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # a system of its own mind: then as many as there are
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Give uvloop's event loop where it is installed: it takes a third of a millisecond off every call."""
    try:
        return cast("Callable[[], asyncio.AbstractEventLoop]", import_module("uvloop").new_event_loop)
    except ImportError:
        return None


if __name__ == "__main__":
    sys.exit(main())
