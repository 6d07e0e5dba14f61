"""What the processor can do, and how many threads a worker computes with.

Nothing here imports torch before it must: that takes a second, and the kernel does without.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from termwise.server.inference.native.layout import Kind
from termwise.server.inference.native.library import best_level

_THREADS_LOCK = threading.Lock()
_NICE = 5
# The drivers of NVIDIA's devices and AMD's, both of which torch calls CUDA.
_DRIVERS = ("libcuda.so.1", "libamdhip64.so")

_worker = threading.local()
# Of work that gives way to other encoders' too: the least there is.
_LOW_NICE = 19


def set_compute_threads(threads: int) -> int:
    """Make the calling thread compute with `threads` threads; call it before the thread's first operation.

    For torch, where it is loaded, that is more than a call: `torch.set_num_threads` holds for the calling thread, but
    also writes a global that a thread adopts when it first asks. Set, then get, under a lock, settles it for this
    thread before another one can write (measured with two workers).
    """
    _worker.threads = threads
    if "torch" not in sys.modules:
        return threads
    import torch  # noqa: PLC0415 - slow to import; only workers need it

    with _THREADS_LOCK:
        torch.set_num_threads(threads)
        return torch.get_num_threads()


def compute_threads() -> int:
    """Tell how many threads the calling thread may compute with: as it was set, else one a processor."""
    return getattr(_worker, "threads", 0) or len(os.sched_getaffinity(0))


def may_have_cuda() -> bool:
    """Tell whether a CUDA device is worth asking torch for: this machine has a driver, and torch a use for it."""
    if torch_version().endswith("+cpu"):
        return False
    for driver in _DRIVERS:
        with suppress(OSError):
            ctypes.CDLL(driver)
            return True
    return False


@cache
def torch_version() -> str:
    """Give torch's version, as it tells itself, without importing it."""
    return version("torch")


def yield_to_others(*, low_priority: bool = False) -> None:
    """Let the rest of the server run before the calling thread where both want a processor.

    One of low priority gives way to other encoders as well.

    An encoder that keeps all processors busy must not hold up health checks and searches (measured on two cores with
    both saturated: 12 to 20 ms in the 99th percentile of health, 20 to 23 without). An idle processor is used in full.
    """
    if sys.platform == "linux":
        # On Linux a nice value belongs to a thread. Lowering one's priority is always allowed.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_NICE if low_priority else _NICE)


def has_bfloat16() -> bool:
    """Tell whether products in bfloat16 are faster than in float32 here: in the kernel, or in torch."""
    level = best_level()
    return (level is not None and Kind.BFLOAT16 in level.kinds) or torch_has_bfloat16()


def torch_has_bfloat16() -> bool:
    """Tell whether torch multiplies in bfloat16 faster than in float32: AVX512-BF16 or AMX, through oneDNN."""
    import torch  # noqa: PLC0415 - slow to import

    if platform.machine() not in {"x86_64", "AMD64"}:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    flags = set(_cpu_info("flags").split())
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def has_amx() -> bool:
    """Tell whether the processor has tiles for bfloat16, which oneDNN uses and the kernel does not."""
    return "amx_bf16" in _cpu_info("flags").split()


@cache
def has_onednn() -> bool:
    """Tell whether weights can be laid out ahead for oneDNN's products."""
    import torch  # noqa: PLC0415 - slow to import

    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def processor_name() -> str:
    """Give the processor's name and what sets it apart for arithmetic, as a part of a cache key."""
    wanted = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_vnni"}
    flags = sorted(wanted & set(_cpu_info("flags").split()))
    return " ".join([platform.machine(), _cpu_info("model name") or platform.processor(), *flags])


@cache
def _cpu_info(key: str) -> str:
    """Read a line of Linux's description of the first processor; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
