"""Memory of models: taken so that it goes back to the system when a model is let go."""

from __future__ import annotations

import ctypes
import gc
import mmap
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Bytes of a cache line.
_LINE = 64
# Bytes from which on memory is mapped.
_LARGE = 1 << 20


def allocate(size: int) -> NDArray[np.uint8]:
    """Give memory of so many bytes that begins on a cache line; what it holds is undefined.

    What is large is the system's own and goes back to it at once. The C library would keep up to 64 MiB of what a
    thread has let go, in each of its pools, and the threads of deployments come and go.
    """
    if size >= _LARGE:
        return np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=np.uint8)
    raw = np.empty(size + _LINE, dtype=np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + size]


def give_back_memory() -> None:
    """Let the system have the memory of what is not used any more, such as a model that was let go. Blocking.

    Objects that know each other in a circle wait for the garbage collector, and the C library keeps what it was given
    back in pools, one for every few threads.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
