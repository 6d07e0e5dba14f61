"""Work in a pool of threads: from the event loop into it, and side by side within it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

T = TypeVar("T")


async def in_pool(pool: Executor, call: Callable[[], T]) -> T:
    """Run a call in a pool, from the event loop.

    As the loop's `run_in_executor`, which takes twice as long for the futures that carry a cancellation into the pool;
    here a call that nobody waits for any more has to find that out for itself.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            tell = partial(_settle, answer, call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is awaited
            tell = partial(_fail, answer, error)
        with suppress(RuntimeError):  # a closed loop: nobody waits
            loop.call_soon_threadsafe(tell)

    pool.submit(run)
    return await answer


def side_by_side(pool: Executor, calls: Sequence[Callable[[], object]]) -> None:
    """Run calls, in this thread and in those of the pool that are free; this thread may be one of the pool's.

    What no other thread has begun is run here, so that searches never wait for each other's threads.
    """
    if not calls:
        return
    others = [(call, pool.submit(call)) for call in calls[1:]]
    try:
        calls[0]()
        for call, running in others:
            if running.cancel():
                call()
            else:
                running.result()
    finally:
        for _, running in others:
            running.cancel()


def _settle(answer: asyncio.Future[T], given: T) -> None:
    if not answer.done():
        answer.set_result(given)


def _fail(answer: asyncio.Future[T], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
