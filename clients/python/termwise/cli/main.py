"""Entry point of the `termwise` command. What the command needs is imported late, so that its absence gets a hint."""

from __future__ import annotations

import sys


def app() -> None:
    """Run the command with the arguments of the process."""
    try:
        from termwise.cli.commands import app as commands  # noqa: PLC0415 - typer and rich are an extra
    except ModuleNotFoundError as error:
        if error.name not in {"rich", "typer", "grpc_health"}:
            raise
        sys.exit("error: the termwise command needs more than the client; run: pip install 'termwise[cli]'")
    commands()
