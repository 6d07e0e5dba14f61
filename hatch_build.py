"""Compiles the encoder's kernel while a wheel or an editable install is made.

Where there is no C compiler, or another architecture, the package is built without it: the server then computes with
torch alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from collections.abc import Sequence

_PACKAGE = Path("service/termwise/server/inference/native")
_LIBRARY = "libtermwise_kernel.so"
_COMMON = ("-O3", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-pthread")
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (
    *_AVX2,
    *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "vnni")),
    "-mprefer-vector-width=512",
)
# One source, compiled once a level of instructions; dispatch.c picks a level when the library is loaded.
_LEVELS = {"avx2": _AVX2, "avx512": _AVX512, "avx512bf16": (*_AVX512, "-mavx512bf16")}


class KernelHook(BuildHookInterface):  # type: ignore[type-arg, misc]
    """Puts the compiled kernel into the package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; an editable install finds the library beside its sources, a wheel carries it."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        place = root / _PACKAGE if version == "editable" else root / "build"
        library = place / _LIBRARY
        try:
            compile_kernel(root / _PACKAGE / "kernel", library)
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            with contextlib.suppress(OSError):
                library.unlink(missing_ok=True)
            self.app.display_warning(f"The kernel was not compiled, torch does its work: {error}")
            return
        if version != "editable":
            build_data["force_include"][str(library)] = f"{_PACKAGE.relative_to('service')}/{_LIBRARY}"
            build_data["pure_python"] = False
            # It depends on the processor and the C library, but on no version of Python.
            build_data["tag"] = f"py3-none-linux_{platform.machine()}"


def compile_kernel(sources: Path, library: Path) -> list[str]:
    """Compile and link; gives the levels that the compiler knows, the others are left out.

    Raises:
        RuntimeError: this is no machine for it, there is no compiler, or it knows no level.
        subprocess.CalledProcessError: the compiler refused.

    """
    if platform.machine() not in {"x86_64", "AMD64"} or not sys.platform.startswith("linux"):
        raise RuntimeError("it is written for Linux on x86-64")
    # As make reads it: a command, perhaps with flags, or with a cache before it.
    compiler = (
        shlex.split(os.environ.get("CC", "")) or [each for each in ("cc", "gcc", "clang") if shutil.which(each)][:1]
    )
    if not compiler:
        raise RuntimeError("there is no C compiler")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        levels = [level for level, flags in _LEVELS.items() if _knows([*compiler, *flags], Path(scratch))]
        if not levels:
            raise RuntimeError("the compiler knows none of its instructions")
        facts = [f'-DSOURCES="{digest_of(sources)}"', *(f"-DWITH_{level}" for level in levels)]
        objects = []
        for name, source, flags in [
            ("dispatch", "dispatch.c", facts),
            *((level, "level.c", [f"-DLEVEL={level}", *_LEVELS[level]]) for level in levels),
        ]:
            objects.append(f"{scratch}/{name}.o")
            subprocess.run([*compiler, *_COMMON, *flags, "-c", str(sources / source), "-o", objects[-1]], check=True)
        made = Path(scratch) / _LIBRARY
        subprocess.run([*compiler, "-shared", "-pthread", "-o", str(made), *objects, "-lm"], check=True)
        # Whole or not at all: a running server may have the old one mapped.
        made.replace(library)
    return levels


def _knows(command: Sequence[str], scratch: Path) -> bool:
    """Tell whether a compiler knows its flags, by an empty source."""
    empty = scratch / "empty.c"
    empty.write_text("int termwise_empty;\n", encoding="utf-8")
    ran = subprocess.run([*command, "-c", str(empty), "-o", f"{empty}.o"], check=False, capture_output=True)
    return ran.returncode == 0


def digest_of(sources: Path) -> str:
    """Identify the sources, as the package's `library.sources_digest` does."""
    digest = hashlib.sha256()
    for file in sorted([*sources.glob("*.c"), *sources.glob("*.h")]):
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()
