"""Waiting inside a call: for a change, as long as the caller does, and so that a caller's leaving undoes no step."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

from termwise.server.errors import DeadlineExceededError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from termwise.server.context import RequestContext

Result = TypeVar("Result")

_MARGIN: Final = 0.1
_MAX_MARGIN_SECONDS: Final = 0.2
"""A wait ends this part of the time left before the deadline, so that the answer that explains it still arrives."""


class Signal:
    """Wakes everyone who waits for the next change of something."""

    def __init__(self) -> None:
        """Begin with nobody waiting."""
        self._event = asyncio.Event()

    def fire(self) -> None:
        """Wake everyone. Call it on the event loop."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds; it is asked again after each `fire`."""
        while not condition():
            await self._event.wait()

    async def next(self) -> None:
        """Return at the next `fire`."""
        await self._event.wait()


async def within(context: RequestContext, waiting: Awaitable[Result], message: str) -> Result:
    """Await until shortly before the call's deadline.

    Raises:
        DeadlineExceededError: it passed first; with `message`.

    """
    remaining = context.remaining()
    patience = None if remaining is None else max(0.0, remaining - min(remaining * _MARGIN, _MAX_MARGIN_SECONDS))
    try:
        return await asyncio.wait_for(waiting, patience)
    except TimeoutError as error:
        raise DeadlineExceededError(message) from error


class Steps:
    """Runs steps that are finished even where the call that asked for them is cancelled."""

    def __init__(self) -> None:
        """Begin with none."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, step: Coroutine[Any, Any, Result]) -> Result:
        """Run a step to its end, and give its result to whoever is still there."""
        task = asyncio.create_task(step)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may be gone; the event loop shall not complain of an error nobody read

    async def finish(self) -> None:
        """Wait for all of them."""
        while self._tasks:
            await asyncio.wait(self._tasks)
