"""How the inner loops of the exact path are compiled, by numba. They release the GIL and check no bounds.

Each has one explicit signature, so that importing its module compiles (or loads) everything there is to compile and no
search ever waits for the compiler. Compiled code is cached beside the module, or in NUMBA_CACHE_DIR, or in the user's
cache folder; where none can be written, it is compiled anew by each process.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numba
from numba.core import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTIONS: Final = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


_SOURCES: Final = ("bounds.py", "candidates.py", "compiling.py", "folding.py", "heaps.py", "postings.py")
"""Modules whose functions are compiled into others' kernels."""


def _stamp() -> str:
    digest = hashlib.sha256()
    for name in _SOURCES:
        with suppress(OSError):  # a distribution without sources changes as a whole
            digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


_STAMP: Final = _stamp()


def compile_kernel(signature: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that Python calls, for one signature, now.

    numba looks at the age of the function's own file alone; its name, and so that of the file in the cache, tells what
    else was compiled into it.
    """
    function.__qualname__ = f"{function.__qualname__}.{_STAMP}"
    try:
        compiled: Callable[..., Any] = numba.njit(signature, cache=True, **_OPTIONS)(function)
    except (OSError, RuntimeError):  # no folder for the cache can be written, or the disk is full
        compiled = numba.njit(signature, **_OPTIONS)(function)
    return compiled


def inner(function: Callable[..., Any], *, fused: bool = False) -> Any:
    """Mark a function that kernels call; it is compiled with each of them.

    `fused` lets it multiply and add in one instruction, which rounds once instead of twice: not for exact scores.
    """
    return numba.njit(**_OPTIONS, fastmath={"contract"} if fused else False)(function)


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_context: Any, address: Any, kind: Any) -> Any:
    """Take an address as the start of an array of numbers of a numpy type: `pointer(address, np.uint16)[9]`.

    So one compiled call reaches any number of arrays. The caller keeps them alive.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    kinds: Any = types
    return kinds.CPointer(kind.dtype)(address, kind), generate
