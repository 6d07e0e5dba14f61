"""The client that a command works with, and what its errors look like at a terminal."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from termwise.cli.output import fail
from termwise.client import Client, TermwiseError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Commands(TyperGroup):
    """The commands. What goes wrong while one runs becomes one line on standard error and the exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the context names."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except TermwiseError as error:
            fail(describe(error))
            raise typer.Exit(1) from error
        except BrokenPipeError as error:
            # The reader of our output has gone, as `head` does; nobody is left to tell. Without this, the interpreter
            # complains when it flushes the stream at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(1) from error
        except OSError as error:
            fail(str(error))
            raise typer.Exit(1) from error
        return result


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Give a client of the server at `address`. A server that cannot be reached is an error that says what to do."""
    with Client(address) as client:
        try:
            yield client
        except UnavailableError as error:
            if error.reason:
                raise
            raise UnavailableError(
                f"no server answers at {address}; start one with `termwise serve`, or give --address"
            ) from error


def describe(error: TermwiseError) -> str:
    """Give an error as one line: its sentence, and the fields that the sentence does not name."""
    more = [
        f"{violation.field}: {violation.description}"
        for violation in error.field_violations
        if violation.field not in error.message and violation.description not in error.message
    ]
    return " ".join([error.message, *([f"({'; '.join(more)})"] if more else [])])
