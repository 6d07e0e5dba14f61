"""`termwise serve`: the server's own command line under this command's name."""

from __future__ import annotations

import sys
from typing import Any

import typer

from termwise.cli.output import fail


def serve(context: typer.Context) -> None:
    """Run the server. `termwise serve --help` lists its options."""
    main = _server_main()
    sys.argv = ["termwise serve", *context.args]
    status = main()
    raise typer.Exit(status if isinstance(status, int) else 0)


def _server_main() -> Any:
    try:
        from termwise.server.__main__ import main  # noqa: PLC0415 - the client installs without the server
    except ModuleNotFoundError as error:
        fail(f"the server needs more than the client ({error.name} is missing); run: pip install 'termwise[server]'")
        raise typer.Exit(1) from error
    return main
