from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import pytest

from termwise.storage import registry
from termwise.storage.errors import BackendMissingError
from termwise.storage.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path


def test_shipped_backends_are_found(tmp_path: Path) -> None:
    assert {"memory", "tantivy"} <= set(registry.backend_names())
    assert registry.find_backend("memory") is MemoryStore
    store = registry.find_backend("tantivy")(tmp_path)
    assert store.list() == []
    store.close()


def test_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(BackendMissingError, match=r'"memory", "tantivy".*install'):
        registry.find_backend("paper")


def test_a_backend_whose_packages_are_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("paper", "no_such_package.paper:PaperStore", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda **_: [entry])
    assert "paper" in registry.backend_names()
    with pytest.raises(BackendMissingError, match="no_such_package"):
        registry.find_backend("paper")


def test_the_registry_imports_no_backend() -> None:
    code = (
        "import sys; import termwise.storage.registry as r; r.backend_names();"
        "sys.exit(any(name in sys.modules for name in ('tantivy', 'numba', 'termwise.storage.memory')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_port_needs_no_test_packages_and_no_compiler() -> None:
    code = (
        "import sys; import termwise.storage.base, termwise.storage.types, termwise.storage.memory;"
        "sys.exit(any(name in sys.modules for name in ('pytest', 'hypothesis', 'numba')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
