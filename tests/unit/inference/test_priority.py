"""Deployments of low priority beside those of normal priority."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.errors import UnavailableError
from termwise.server.inference.base import Side
from termwise.server.inference.batcher import Batcher
from termwise.server.inference.fake import FakeEncoder
from termwise.server.inference.priority import QUIET_SECONDS, PriorityGate


class Held(FakeEncoder):
    """Waits before each batch until it is opened."""

    def __init__(self) -> None:
        super().__init__(delay=self._wait)
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.priorities: set[int] = set()

    def _wait(self) -> None:
        if sys.platform == "linux":
            # The 19th field; the second one, in brackets, may hold blanks.
            fields = Path("/proc/thread-self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            self.priorities.add(int(fields[16]))
        self.reached.set()
        assert self.opened.wait(30)


class Machine:
    """Batchers that share processors, under a clock that the test moves."""

    def __init__(self, processors: int) -> None:
        self.now = 100.0
        self.gate = PriorityGate(processors, clock=lambda: self.now)
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stack.aclose()

    def run(self, encoder: FakeEncoder, *, low: bool = False, **options: Any) -> Batcher:
        settings = {"allocations": 1, "threads": 1, "queue_capacity": 100} | options
        batcher = Batcher(encoder, gate=self.gate, low_priority=low, **settings)
        batcher.start()
        self.stack.push_async_callback(batcher.close)
        return batcher

    def rest(self) -> None:
        self.now += 2 * QUIET_SECONDS


async def ask(batcher: Batcher, *texts: str) -> list[set[str]]:
    expansions, _ = await batcher.submit(texts, Side.DOCUMENT, deadline=None, wait=True)
    return [set(expansion.tokens) for expansion in expansions]


async def hold(batcher: Batcher, encoder: Held, *texts: str) -> asyncio.Task[list[set[str]]]:
    task = asyncio.create_task(ask(batcher, *texts))
    assert await asyncio.to_thread(encoder.reached.wait, 30)
    return task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("allocations", "threads"), [(1, 2), (2, 1)])
async def test_low_work_waits_while_normal_work_fills_the_processors_and_is_done_afterwards(
    allocations: int, threads: int
) -> None:
    async with Machine(2) as machine:
        slow, quick = Held(), FakeEncoder()
        normal = machine.run(slow, allocations=allocations, threads=threads, batch_tokens=2)
        low = machine.run(quick, low=True)
        busy = await hold(normal, slow, "a", "b", "c")
        waiting = asyncio.create_task(ask(low, "low"))
        await settle()
        machine.rest()
        assert (low.pending, quick.batches) == (1, [])
        slow.opened.set()
        assert await busy == [{"a"}, {"b"}, {"c"}]
        assert (low.pending, quick.batches) == (1, []), "a gap between two batches is no idle time"
        machine.rest()
        assert await asyncio.wait_for(waiting, 30) == [{"low"}]


async def test_low_work_uses_processors_that_normal_work_leaves_idle() -> None:
    async with Machine(3) as machine:
        slow = Held()
        normal = machine.run(slow, allocations=2)
        low = machine.run(FakeEncoder(), low=True)
        busy = await hold(normal, slow, "a", "b", "c")
        assert await asyncio.wait_for(ask(low, "low"), 30) == [{"low"}]
        slow.opened.set()
        await busy


async def test_normal_work_never_waits_for_low_work() -> None:
    async with Machine(1) as machine:
        slow = Held()
        low = machine.run(slow, low=True)
        normal = machine.run(FakeEncoder())
        busy = await hold(low, slow, "low")
        assert await asyncio.wait_for(ask(normal, "normal"), 30) == [{"normal"}]
        slow.opened.set()
        await busy


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no priority of its own elsewhere")
async def test_low_workers_give_way_to_normal_ones_once_they_run() -> None:
    async with Machine(4) as machine:
        encoders = [Held(), Held()]
        for encoder, low in zip(encoders, (False, True), strict=True):
            encoder.opened.set()
            await ask(machine.run(encoder, low=low), "text")
        assert max(encoders[0].priorities) < min(encoders[1].priorities)


async def test_closing_a_low_one_does_not_wait_for_normal_work() -> None:
    async with Machine(1) as machine:
        slow = Held()
        normal = machine.run(slow)
        low = machine.run(FakeEncoder(), low=True)
        busy = await hold(normal, slow, "a")
        waiting = asyncio.create_task(ask(low, "low"))
        await settle()
        await asyncio.wait_for(low.close(), 30)
        assert await waiting == [{"low"}]
        slow.opened.set()
        await busy


async def test_a_normal_one_that_is_gone_holds_nothing_back() -> None:
    async with Machine(1) as machine:
        never_started = Batcher(FakeEncoder(), allocations=1, threads=1, queue_capacity=9, gate=machine.gate)
        stuck = asyncio.create_task(ask(never_started, "text"))
        await settle()
        low = machine.run(FakeEncoder(), low=True)
        waiting = asyncio.create_task(ask(low, "low"))
        await settle()
        assert low.pending == 1
        await never_started.close()
        with pytest.raises(UnavailableError):
            await stuck
        machine.rest()
        assert await asyncio.wait_for(waiting, 30) == [{"low"}]


async def test_low_work_ends_although_normal_work_comes_and_goes() -> None:
    async with Machine(2) as machine:
        normal = machine.run(FakeEncoder(), allocations=2, batch_tokens=20)
        low = machine.run(FakeEncoder(), low=True, batch_tokens=20)
        slow = asyncio.create_task(ask(low, *[f"low {number}" for number in range(100)]))
        for number in range(100):
            await ask(normal, *[f"{number} {place}" for place in range(20)])
            machine.rest()
        assert len(await asyncio.wait_for(slow, 30)) == 100


async def test_low_work_hardly_moves_beside_callers_who_never_stop_and_is_done_once_they_do() -> None:
    async with AsyncExitStack() as stack:
        gate = PriorityGate(1)
        quick, slow = FakeEncoder(), FakeEncoder()
        normal = Batcher(quick, allocations=1, threads=1, queue_capacity=100, gate=gate)
        low = Batcher(slow, allocations=1, threads=1, queue_capacity=1000, gate=gate, low_priority=True, batch_tokens=2)
        for batcher in (normal, low):
            batcher.start()
            stack.push_async_callback(batcher.close)
        callers = [asyncio.create_task(ask_often(normal, caller, 100)) for caller in range(16)]
        await settle()
        backlog = asyncio.create_task(ask(low, *[f"low {number}" for number in range(500)]))
        await asyncio.gather(*callers)
        assert len(slow.batches) < 100
        assert len(quick.batches) >= 100
        assert len(await asyncio.wait_for(backlog, 60)) == 500


async def ask_often(batcher: Batcher, caller: int, times: int) -> None:
    for number in range(times):
        await ask(batcher, f"{caller} {number}")


@given(
    processors=st.integers(1, 4),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.floats(0, 0.05)), max_size=40),
)
def test_the_gate_is_free_where_normal_work_left_processors_for_a_while(
    processors: int, steps: list[tuple[int, int, float]]
) -> None:
    now = 0.0
    gate = PriorityGate(processors, clock=lambda: now)
    threads = (1, 2, 1)
    members = [gate.join(number) for number in threads]
    low = gate.join(1, low_priority=True)
    wanted = [[(float("-inf"), 0)] for _ in members]
    for member, turns, seconds in steps:
        now += seconds
        members[member].want(turns)
        wanted[member].append((now, turns * threads[member]))
        assert all(each.may_begin() for each in members)
        at_least = sum(changes[-1][1] for changes in wanted)
        at_most = sum(max(number for _, number in changes) for changes in wanted)
        if at_least >= processors:
            assert not low.may_begin()
        if at_most < processors:
            assert low.may_begin()
        if any(lately(changes, now) >= processors for changes in wanted):
            assert not low.may_begin()
    now += QUIET_SECONDS * 1.01
    assert low.may_begin() == (sum(changes[-1][1] for changes in wanted) < processors)
    for each in members:
        each.leave()
    assert low.may_begin()


def lately(changes: list[tuple[float, int]], now: float) -> int:
    """Give the most that was wanted at any moment of the last while."""
    ends = [at for at, _ in changes[1:]] + [now]
    # A moment of rounding at the edge decides nothing.
    return max(number for (_, number), end in zip(changes, ends, strict=True) if now - end < QUIET_SECONDS * 0.99)
