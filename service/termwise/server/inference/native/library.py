"""The shared library: where it is, and which level of instructions runs here."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
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
from termwise.server.settings import KERNEL

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
    """Give the levels that run here, the best one first; none where the package was built without a compiler."""
    mirrored = (LevelStructure, ModelStructure, LayerStructure, BatchStructure, RowsStructure)
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.termwise_size.restype = ctypes.c_int64
        size = library.termwise_size()
    except (OSError, AttributeError):
        return ()
    if size != sum(map(ctypes.sizeof, mirrored)):
        _log.warning("%s is of another version and not used; install the package again", LIBRARY.name)
        return ()
    find = library.termwise_find
    find.argtypes, find.restype = (ctypes.c_int64,), ctypes.POINTER(LevelStructure)
    found = [find(rank) for rank in range(3)]
    return tuple(Level(each.contents) for each in found if each)


@cache
def library_digest() -> str:
    """Identify the library's build; empty where there is none."""
    try:
        return hashlib.sha256(LIBRARY.read_bytes()).hexdigest()
    except OSError:
        return ""


def best_level() -> Level | None:
    """Give the level to compute with; None where torch must do the work."""
    switch = os.environ.get(KERNEL, "")
    for level in levels() if switch != "off" else ():
        if switch in {"", level.name}:
            return level
    return None
