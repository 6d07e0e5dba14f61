"""The image's build steps, run in a folder instead of a container: there need not be a Docker engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Give (instruction, arguments) in order, continuation lines joined and comments dropped."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def test_the_build_steps_give_a_server_that_starts_healthy_and_stops(tmp_path: Path) -> None:
    steps = instructions((ROOT / "docker" / "Dockerfile").read_text())
    final = max(i for i, (name, _) in enumerate(steps) if name == "FROM")

    def placed(text: str) -> str:
        return text.replace("/opt/termwise", f"{tmp_path}/opt").replace("/src", f"{tmp_path}/src")

    (tmp_path / "src").mkdir()
    path = f"{tmp_path}/opt/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TERMWISE_")} | {"PATH": path}
    for name, arguments in steps[:final]:
        if name == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                copy(ROOT / source, tmp_path / "src" / target, into=target.endswith("/"))
        elif name == "RUN":
            subprocess.run(["/bin/sh", "-c", placed(arguments)], check=True, cwd=tmp_path / "src", env=environment)

    settings = dict(
        re.findall(r"(\w+)=(\S+)", " ".join(arguments for name, arguments in steps[final:] if name == "ENV"))
    )
    assert settings["TERMWISE_HOST"] == "0.0.0.0"  # noqa: S104 - inside a container that is the way out
    environment["NUMBA_CACHE_DIR"] = placed(settings["NUMBA_CACHE_DIR"])
    assert any((tmp_path / "opt" / "numba").rglob("*.nbi")), "the kernels were not compiled in advance"
    assert any((tmp_path / "opt").rglob("libtermwise_kernel.so")), "the encoder's kernel was not compiled"
    port_file = tmp_path / "port"
    entry = ["termwise", "serve", "--data", str(tmp_path / "data"), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen([*entry, "--port-file", str(port_file)], env=environment, cwd=tmp_path) as process:
        try:
            address = wait_for_address(port_file, process)
            health = ["termwise", "health", "liveness", "--address", address]
            assert subprocess.run(health, env=environment, check=False).returncode == 0
        finally:
            process.terminate()
        assert process.wait(timeout=60) == 0
        assert subprocess.run(health, env=environment, check=False).returncode != 0


def copy(source: Path, target: Path, *, into: bool) -> None:
    """Copy as COPY does, leaving out what .dockerignore names."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    else:
        destination = target / source.name if into else target
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, destination)


def wait_for_address(port_file: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait until the server has written its port, or has ended."""
    while not port_file.exists() or not port_file.read_text().strip():
        if process.poll() is not None:
            pytest.fail(f"the server ended with {process.returncode}")
    return f"127.0.0.1:{port_file.read_text().strip()}"
