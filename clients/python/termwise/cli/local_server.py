"""A server of one's own while a command runs: a free loopback port, a temporary data folder, nothing left behind."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from termwise.client import FailedPreconditionError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS = 60.0
"""How long a server may take to listen: it imports torch and compiles kernels."""
STOP_SECONDS = 20.0
"""How long it may take to stop before it is killed."""
POLL_SECONDS = 0.05


@contextlib.contextmanager
def local_server(*flags: str) -> Iterator[str]:
    """Start a server and give its address; stop it and remove its data in the end, however that comes.

    `flags` are more flags of its command line.

    Raises FailedPreconditionError where the server is not installed, UnavailableError where it does not start.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("termwise.server") is None:
        raise FailedPreconditionError("this starts a server; run: pip install 'termwise[server]', or give --address")
    with tempfile.TemporaryDirectory(prefix="termwise-") as folder, _ended_by_signals():
        home = Path(folder)
        port_file, log = home / "port", home / "server.log"
        arguments = ["--data", str(home / "data"), "--host", "127.0.0.1", "--port", "0", "--port-file", str(port_file)]
        with log.open("wb") as output:
            # A session of its own: Ctrl-C reaches this process alone, which then stops the server in good order.
            server = subprocess.Popen(
                [sys.executable, "-m", "termwise.server", *arguments, *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield f"127.0.0.1:{_port(server, port_file, log)}"
        finally:
            _stop(server)


def _port(server: subprocess.Popen[bytes], port_file: Path, log: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UnavailableError(f"the server ended with status {server.returncode}: {_last_line(log)}")
        with contextlib.suppress(OSError, ValueError):
            return int(port_file.read_text())
        time.sleep(POLL_SECONDS)
    raise UnavailableError(f"the server did not listen within {START_SECONDS:.0f} s: {_last_line(log)}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server; a second Ctrl-C meanwhile does not leave it behind."""
    with _handled({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}):
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind the stack as Ctrl-C does, instead of ending the process on the spot."""

    def leave(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    with _handled({signal.SIGTERM: leave, signal.SIGHUP: leave}):
        yield


@contextlib.contextmanager
def _handled(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    before: dict[signal.Signals, Any] = {}
    try:
        # Only the main thread may set handlers; in another one (a test) there is nothing to guard.
        with contextlib.suppress(ValueError):
            for number, handler in handlers.items():
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
