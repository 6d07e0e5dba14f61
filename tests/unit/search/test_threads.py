"""Calls in a pool, from the event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from termwise.server.search.threads import in_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def fail() -> object:
    raise KeyError("gone")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


async def test_a_call_runs_in_the_pool_and_its_answer_comes_back(pool: ThreadPoolExecutor) -> None:
    assert await in_pool(pool, threading.get_ident) != threading.get_ident()


async def test_what_a_call_raises_is_raised_where_it_is_awaited(pool: ThreadPoolExecutor) -> None:
    with pytest.raises(KeyError, match="gone"):
        await in_pool(pool, fail)


@pytest.mark.parametrize("ending", [object, fail])
async def test_a_caller_that_left_harms_nobody(pool: ThreadPoolExecutor, ending: Callable[[], object]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def call() -> object:
        begun.set()
        go_on.wait()
        return ending()

    waiting = asyncio.create_task(in_pool(pool, call))
    await asyncio.to_thread(begun.wait)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    # The only thread is free again, and what the call left behind is over before this answer.
    assert await in_pool(pool, lambda: "next") == "next"
