"""A server may open as many files as the system lets it: indices hold one a mapped file."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

from termwise.server.__main__ import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def hard() -> Iterator[int]:
    """Lower the soft limit, and give the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowered = 512 if hard == resource.RLIM_INFINITY else min(512, hard - 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowered, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_server_raises_its_limit_of_open_files(hard: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert main(["--data", str(tmp_path / "file")]) == 1  # which is no folder, so it stops at once
    wanted = 1 << 20 if hard == resource.RLIM_INFINITY else min(hard, 1 << 20)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == wanted
