"""Compiles the encoder's kernel while a wheel or an editable install is made.

Where there is no C compiler, or another architecture, the package is built without it: the server then computes with
torch alone.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

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
            library.unlink(missing_ok=True)
            self.app.display_warning(f"The kernel was not compiled, torch does its work: {error}")
            return
        if version != "editable":
            build_data["force_include"][str(library)] = f"{_PACKAGE.relative_to('service')}/{_LIBRARY}"
            build_data["pure_python"] = False
            # It depends on the processor and the C library, but on no version of Python.
            build_data["tag"] = f"py3-none-linux_{platform.machine()}"


def compile_kernel(sources: Path, library: Path) -> None:
    """Compile and link.

    Raises:
        RuntimeError: this is no machine for it, or there is no compiler.
        subprocess.CalledProcessError: the compiler refused.

    """
    if platform.machine() not in {"x86_64", "AMD64"} or not sys.platform.startswith("linux"):
        raise RuntimeError("it is written for Linux on x86-64")
    compiler = os.environ.get("CC") or next((each for each in ("cc", "gcc", "clang") if shutil.which(each)), None)
    if compiler is None:
        raise RuntimeError("there is no C compiler")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        objects = []
        for name, source, flags in [
            ("dispatch", "dispatch.c", ()),
            *((level, "level.c", (f"-DLEVEL={level}", *flags)) for level, flags in _LEVELS.items()),
        ]:
            objects.append(f"{scratch}/{name}.o")
            subprocess.run([compiler, *_COMMON, *flags, "-c", str(sources / source), "-o", objects[-1]], check=True)
        made = Path(scratch) / _LIBRARY
        subprocess.run([compiler, "-shared", "-pthread", "-o", str(made), *objects, "-lm"], check=True)
        # Whole or not at all: a running server may have the old one mapped.
        made.replace(library)
