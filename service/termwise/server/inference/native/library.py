"""The shared library: where it is, and which level of instructions runs here."""

from __future__ import annotations

import ctypes
import hashlib
import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from termwise.server.inference.native.layout import (
    BatchStructure,
    Kind,
    LayerStructure,
    MatrixStructure,
    ModelStructure,
    RowsStructure,
)
from termwise.server.settings import KERNEL_LEVELS, allowed_kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = logging.getLogger(__name__)

LIBRARY = Path(__file__).with_name("libtermwise_kernel.so")


def _function(result: Any, *arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *arguments)


_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p


class LevelStructure(ctypes.Structure):
    """`termwise_level`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("panel", _INT),
        ("kinds", _INT),
        ("cast", _function(None, _POINTER, _INT, _INT, ctypes.POINTER(MatrixStructure), _POINTER, _POINTER)),
        (
            "pool",
            _function(
                None,
                ctypes.POINTER(MatrixStructure),
                ctypes.POINTER(RowsStructure),
                _POINTER,
                _INT,
                _INT,
                _INT,
                _POINTER,
                _INT,
            ),
        ),
        ("scratch", _function(_INT, ctypes.POINTER(ModelStructure), ctypes.POINTER(BatchStructure))),
        (
            "encode",
            _function(None, ctypes.POINTER(ModelStructure), ctypes.POINTER(BatchStructure), _POINTER, _POINTER),
        ),
    )


class Level:
    """A level of instructions that the processor has. Its functions do not hold the interpreter's lock."""

    def __init__(self, structure: Any) -> None:
        """Read what the library says of it."""
        self.name = structure.name.decode()
        self.panel = int(structure.panel)
        self.kinds = frozenset(kind for kind in Kind if structure.kinds >> kind & 1)
        self.cast, self.pool = structure.cast, structure.pool
        self.scratch, self.encode = structure.scratch, structure.encode


@cache
def levels() -> Sequence[Level]:
    """Give the levels that run here, the best one first; none where the package was built without a compiler.

    A library that is not today's is not used, and the log says so.
    """
    if not LIBRARY.is_file():
        return ()
    try:
        library = ctypes.CDLL(str(LIBRARY))
        find, size, sources = library.termwise_find, library.termwise_size, library.termwise_sources
    except (OSError, AttributeError) as error:
        return _ignored(str(error))
    size.restype, sources.restype = ctypes.c_int64, ctypes.c_char_p
    mirrored = (LevelStructure, ModelStructure, LayerStructure, BatchStructure, RowsStructure)
    if size() != sum(map(ctypes.sizeof, mirrored)):
        return _ignored("it is of another version")
    if (today := sources_digest(LIBRARY.with_name("kernel"))) and sources().decode() != today:
        return _ignored("its sources have changed")
    find.argtypes, find.restype = (ctypes.c_int64,), ctypes.POINTER(LevelStructure)
    found = [find(rank) for rank in range(len(KERNEL_LEVELS))]
    return tuple(Level(each.contents) for each in found if each)


def _ignored(why: str) -> Sequence[Level]:
    _log.warning("%s is not used, torch does its work: %s; install the package again", LIBRARY.name, why)
    return ()


def sources_digest(folder: Path) -> str:
    """Identify the kernel's sources, as the build does (`hatch_build.digest_of`); empty where they are not there."""
    digest = hashlib.sha256()
    files = sorted([*folder.glob("*.c"), *folder.glob("*.h")])
    for file in files:
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest() if files else ""


@cache
def library_digest() -> str:
    """Identify the library's build; empty where there is none."""
    try:
        return hashlib.sha256(LIBRARY.read_bytes()).hexdigest()
    except OSError:
        return ""


def best_level() -> Level | None:
    """Give the level to compute with: the best one that runs here and is allowed; None where torch must do the work.

    Raises:
        SettingsError: the environment allows a level that is none.

    """
    allowed = allowed_kernels()
    return next((level for level in levels() if level.name in allowed), None)
