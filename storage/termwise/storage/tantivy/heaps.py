"""Heaps with the least at the top, for kernels: of scores that bound the best documents, and of keys to order them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from termwise.storage.tantivy.compiling import inner

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST: Final = np.float32(np.finfo(np.float32).max)


def _offer(heap: NDArray[Any], size: int, value: Any) -> int:
    if size < len(heap):
        place = size
        while place > 0 and heap[(place - 1) >> 1] > value:
            heap[place] = heap[(place - 1) >> 1]
            place = (place - 1) >> 1
        heap[place] = value
        return size + 1
    if value > heap[0]:
        _sink(heap, size, value)
    return size


def _sink_plain(heap: NDArray[Any], size: int, value: Any) -> None:
    place = 0
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = value


def _key(score: Any, number: int, bits: NDArray[np.float32]) -> Any:
    bits[0] = min(score, LARGEST)
    return (np.uint64(bits.view(np.uint32)[0]) << np.uint64(32)) | np.uint64(0xFFFFFFFF - number)


def _drain(heap: NDArray[np.uint64], size: int, numbers: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
    bits = scores.view(np.uint32)
    for left in range(size - 1, -1, -1):
        bits[left] = heap[0] >> np.uint64(32)
        numbers[left] = 0xFFFFFFFF - np.int64(heap[0] & np.uint64(0xFFFFFFFF))
        _sink(heap, left, heap[left])


_sink: Any = inner(_sink_plain)

offer: Any = inner(_offer)
"""Keep a value where it is among the greatest `len(heap)`, and give the new size."""

key: Any = inner(_key)
"""Make a key that orders documents: the score's bits, then early numbers first. `bits` is room for one score."""

drain: Any = inner(_drain)
"""Empty a heap of keys into numbers and scores, the best first."""
