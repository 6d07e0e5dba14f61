from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import logging, warnings
import structlog
from termwise.server.telemetry import configure_logging
configure_logging({level!r}, {form!r})
log = structlog.get_logger("x")
log.debug("quiet")
log.info("event", number=3, text="ä", path=__import__("pathlib").Path("/p"))
try:
    secret = "the local variable"
    raise ValueError("oops")
except ValueError:
    log.exception("failed")
logging.getLogger("library").warning("it says %s", "hello")
logging.getLogger("library").info("chatter")
warnings.warn("old", DeprecationWarning, stacklevel=1)
"""


def lines(level: str = "info", form: str = "auto") -> list[str]:
    """Log a few events in a process of its own, since logging is set up once a process."""
    code = CODE.format(level=level, form=form)
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, check=True, timeout=60)
    assert not done.stdout
    return done.stderr.decode().splitlines()


def test_off_a_terminal_each_line_is_json() -> None:
    events = [json.loads(line) for line in lines()]
    by_name = {event["event"]: event for event in events}
    assert by_name["event"]["number"] == 3
    assert by_name["event"]["text"] == "ä"
    assert by_name["event"]["path"] == "/p"
    assert by_name["event"]["level"] == "info"
    assert by_name["event"]["timestamp"].endswith("Z")
    assert "ValueError: oops" in by_name["failed"]["exception"]
    assert by_name["it says hello"]["logger"] == "library"
    assert "quiet" not in by_name
    assert "chatter" not in by_name
    assert any("old" in name for name in by_name)


@pytest.mark.parametrize(("level", "there"), [("debug", True), ("info", False), ("error", False)])
def test_levels(level: str, *, there: bool) -> None:
    assert any('"quiet"' in line for line in lines(level)) is there


def test_the_console_form_shows_no_local_variables() -> None:
    text = "\n".join(lines(form="console"))
    assert "number=3" in text
    assert "ValueError: oops" in text
    assert "the local variable" not in text


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_full_disk_costs_lines_and_nothing_else(form: str) -> None:
    code = CODE.format(level="info", form=form) + "print('still here')"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, check=False, timeout=60
        )
    assert done.stdout == b"still here\n"
