from __future__ import annotations

import threading

import psutil
import pytest

from termwise.server.inference.memory import allocate, give_back_memory


@pytest.mark.parametrize("size", [1, 63, 64, 65, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_memory_begins_on_a_cache_line_and_can_be_written_to_its_end(size: int) -> None:
    memory = allocate(size)
    memory.fill(7)
    assert memory.size == size
    assert memory.ctypes.data % 64 == 0
    assert (memory == 7).all()


def test_what_a_thread_lets_go_is_the_systems_again() -> None:
    process = psutil.Process()
    used: list[int] = []

    def work() -> None:
        # Sizes that a pool of the C library would keep once it has seen them.
        held = [allocate(size << 20) for size in (1, 2, 4, 8, 16) for _ in range(3)]
        for memory in held:
            memory.fill(1)
        used.append(process.memory_info().rss)

    before = process.memory_info().rss
    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    give_back_memory()
    assert min(used) > before + (80 << 20)
    assert process.memory_info().rss < before + (8 << 20)
