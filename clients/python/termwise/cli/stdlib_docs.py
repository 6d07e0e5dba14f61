"""The documentation of the Python standard library found on this machine, as documents to search.

Sources are parsed, not imported: importing some modules has effects (`antigravity` opens a browser). Only modules
without a source, compiled into the interpreter or loaded from shared objects, are imported for their docstrings.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PART_CHARACTERS = 1_200
"""Longest part of a text: some 300 tokens, well within what an encoder reads at once."""
LEFT_OUT = frozenset({"antigravity", "idlelib", "lib2to3", "this", "turtledemo"})
"""Applications, jokes and demonstrations."""
NOT_IMPORTED = frozenset({"readline", "xxlimited", "xxlimited_35", "xxsubtype"})
"""Modules without a source that change the terminal, or that only show how modules are written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented thing, or a part of its text.

    Attributes:
        id: Its name and the number of the part: "zipfile.ZipFile.write#1".
        name: Its full name; "topics." and a word for pydoc's topics.
        kind: "module", "class", "function", "method" or "topic".
        text: The name and the text.
    """

    id: str
    name: str
    kind: str
    text: str


def entries() -> Iterator[Entry]:
    """Go through everything that is documented, in an order that does not change. Ids are unique."""
    seen: set[str] = set()
    for name, kind, text in _documented():
        if name in seen or not text.strip():
            continue
        seen.add(name)
        for number, part in enumerate(parts(text), 1):
            yield Entry(f"{name}#{number}", name, kind, f"{name}\n{part}")


def parts(text: str) -> list[str]:
    """Cut a text at paragraphs, and where one is too long at lines, into parts of at most `PART_CHARACTERS`."""
    pieces: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        for piece in _lines(paragraph):
            if pieces and len(pieces[-1]) + len(piece) + 2 <= PART_CHARACTERS:
                pieces[-1] += f"\n\n{piece}"
            elif piece.strip():
                pieces.append(piece)
    return pieces


def _lines(paragraph: str) -> Iterator[str]:
    """Cut a paragraph at lines, and a line that is too long anywhere."""
    held = ""
    for line in paragraph.splitlines():
        for start in range(0, max(1, len(line)), PART_CHARACTERS):
            piece = line[start : start + PART_CHARACTERS]
            if held and len(held) + len(piece) + 1 > PART_CHARACTERS:
                yield held
                held = piece
            else:
                held = f"{held}\n{piece}" if held else piece
    if held:
        yield held


def _documented() -> Iterator[tuple[str, str, str]]:
    """Give name, kind and text of everything."""
    for module in sorted(sys.stdlib_module_names):
        if not module.startswith("_") and module not in LEFT_OUT:
            yield from _module(module)
    topics = importlib.import_module("pydoc_data.topics").topics
    for topic in sorted(topics):
        yield f"topics.{topic}", "topic", topics[topic]


def _module(name: str) -> Iterator[tuple[str, str, str]]:
    spec = importlib.machinery.PathFinder.find_spec(name) or importlib.machinery.BuiltinImporter.find_spec(name)
    source = Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
    if spec is None or source is None:
        # A frozen module (os, abc ...) has its source in the library's folder all the same.
        beside = Path(sysconfig.get_path("stdlib")) / f"{name}.py"
        yield from _parsed(name, beside) if beside.exists() else _imported(name)
        return
    yield from _parsed(name, source)
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).rglob("*.py")):
            inner = path.relative_to(folder).with_suffix("").parts
            if not any(part.startswith("_") or part in {"test", "tests"} for part in inner):
                yield from _parsed(".".join((name, *inner)), path)


def _parsed(name: str, path: Path) -> Iterator[tuple[str, str, str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    yield name, "module", ast.get_docstring(tree) or ""
    yield from _definitions(name, tree, "function")


def _definitions(name: str, tree: ast.Module | ast.ClassDef, kind: str) -> Iterator[tuple[str, str, str]]:
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        full = f"{name}.{node.name}"
        yield full, "class" if isinstance(node, ast.ClassDef) else kind, ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef):
            yield from _definitions(full, node, "method")


def _imported(name: str) -> Iterator[tuple[str, str, str]]:
    if name in NOT_IMPORTED:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module(name)
        except ImportError:
            return
    yield name, "module", inspect.getdoc(module) or ""
    for word, value in sorted(vars(module).items()):
        if word.startswith("_") or not (isinstance(value, type) or callable(value)):
            continue
        full = f"{name}.{word}"
        yield full, "class" if isinstance(value, type) else "function", _own_doc(value)
        if isinstance(value, type):
            for inner, member in sorted(vars(value).items()):
                if not inner.startswith("_"):
                    yield f"{full}.{inner}", "method", _own_doc(member)


def _own_doc(value: object) -> str:
    doc = getattr(value, "__doc__", None)
    return doc if isinstance(doc, str) else ""
