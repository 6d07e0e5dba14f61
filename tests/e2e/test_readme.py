"""The code of README.md and docs/client.md, run as it is printed against a server with nothing in it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
PRINTED_ADDRESS = "127.0.0.1:50051"
BLOCK = re.compile(r"^```(python|shell)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(text: str, address: str) -> list[list[str]]:
    """Give what to run, in order: Python blocks, and the lines of shell blocks that call grpcurl."""
    found = []
    for language, code in BLOCK.findall(text.replace(PRINTED_ADDRESS, address)):
        if language == "python":
            found.append([sys.executable, "-c", code])
            continue
        lines = [line for line in code.replace("\\\n", " ").splitlines() if line.startswith("grpcurl -plaintext")]
        found += [[str(Path(sys.executable).parent / "grpcurl"), *shlex.split(line)[1:]] for line in lines]
    return found


@pytest.mark.parametrize(("document", "least"), [("README.md", 4), ("docs/client.md", 4)])
def test_what_is_printed_works(launch: Any, blank: Path, document: str, least: int) -> None:
    server = launch(blank)
    steps = commands((ROOT / document).read_text(encoding="utf-8"), server.address)
    assert len(steps) >= least

    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False, timeout=240)

        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
        if "print(" in step[-1] or "grpcurl" in step[0]:
            assert done.stdout.strip(), step
