from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
ROOTS = ("service", "storage", "clients/python")
KERNEL = "service/termwise/server/inference/native/libtermwise_kernel.so"
PORTIONS = ("termwise/server", "termwise/storage", "termwise/client", "termwise/cli", "termwise/v1")


@pytest.mark.parametrize("root", ROOTS)
def test_no_init_file_hides_the_other_source_roots(root: str) -> None:
    assert not (ROOT / root / "__init__.py").exists()
    assert not (ROOT / root / "termwise" / "__init__.py").exists()


@pytest.fixture(scope="module")
def build_wheel(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Build a wheel with a compiler, once for all tests: `build_wheel("cc")`."""

    @cache
    def build(compiler: str) -> Path:
        folder = tmp_path_factory.mktemp("wheel")
        # From a copy, so that nothing lands in the source tree.
        source = folder / "source"
        source.mkdir()
        copy_sources(source)
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
        subprocess.run([*command, str(source)], check=True, env=os.environ | {"CC": compiler})
        (wheel,) = folder.glob("termwise-*.whl")
        return wheel

    return build


def test_a_wheel_holds_every_portion_with_its_types(build_wheel: Callable[[str], Path]) -> None:
    wheel = build_wheel("no-such-compiler")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{portion}/py.typed" for portion in PORTIONS} <= names
    assert "termwise/__init__.py" not in names
    assert any(name.startswith("termwise/server/metadata/migrations/versions/") for name in names)
    metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
    required = [
        line for line in zipfile.ZipFile(wheel).read(metadata).decode().splitlines() if line.startswith("Requires-Dist")
    ]
    assert sorted(re.split("[<>=]", line.split()[1])[0] for line in required if "extra ==" not in line) == [
        "googleapis-common-protos",
        "grpcio",
        "protobuf",
    ]


def copy_sources(target: Path) -> None:
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for root in ROOTS:
        shutil.copytree(ROOT / root, target / root, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    # An editable install leaves its kernel there.
    (target / KERNEL).write_bytes(b"stale")


@pytest.mark.parametrize("compiler", ["cc -pthread", "no-such-compiler"])
def test_a_wheel_has_the_kernel_where_there_is_a_compiler(build_wheel: Callable[[str], Path], compiler: str) -> None:
    if shutil.which("cc") is None or platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("the kernel is not for this machine")
    wheel = build_wheel(compiler)
    with zipfile.ZipFile(wheel) as archive:
        kernels = {name: archive.read(name)[:4] for name in archive.namelist() if name.endswith(".so")}
    if compiler.startswith("cc"):
        assert kernels == {KERNEL.removeprefix("service/"): b"\x7fELF"}
        assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    else:
        assert kernels == {}
        assert wheel.name.endswith("-py3-none-any.whl")


def test_the_client_needs_neither_torch_nor_numpy() -> None:
    probe = (
        "import sys, termwise.client;"
        "heavy = {'torch', 'numpy', 'tantivy', 'rich', 'typer', 'transformers'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_a_compiler_that_lacks_a_level_leaves_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("cc") is None or platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("the kernel is not for this machine")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    old = tmp_path / "old cc"
    old.write_text('case " $* " in *" -mavx512"*) exit 1;; esac\nexec cc "$@"\n', encoding="utf-8")
    monkeypatch.setenv("CC", f'sh "{old}"')
    made = tmp_path / "kernel.so"
    assert build.compile_kernel((ROOT / KERNEL).with_name("kernel"), made) == ["avx2"]
    find = ctypes.CDLL(str(made)).termwise_find
    find.restype = ctypes.c_void_p
    assert [bool(find(rank)) for rank in (0, 1)] == [False, False]
