"""Streams of writes: reads operations, writes them in batches, and acknowledges each in order once it is durable.

Three stages work at once, so that neither the model nor the disk waits for the other: batches are formed of whatever
has arrived, prepared (pipelines, mapping) at most two at a time, and committed in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from termwise.server.ingest.writing import WriteResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from termwise.server.context import RequestContext
    from termwise.server.ingest.writing import Prepared, Request, Writer

Thing = TypeVar("Thing")


@dataclass(frozen=True, slots=True)
class BulkLimits:
    """Bounds of a stream.

    Beyond `outstanding_operations` or `outstanding_bytes` that are not acknowledged, nothing more is read: the client
    is slowed down. A batch has at most `batch_operations` and, unless one is larger, `batch_bytes`. `preparing` batches
    are prepared at once: with two, a model has the next texts in its queue while it works.
    """

    outstanding_operations: int = 1024
    outstanding_bytes: int = 64 * 2**20
    batch_operations: int = 128
    batch_bytes: int = 8 * 2**20
    preparing: int = 2


@dataclass(frozen=True, slots=True)
class BulkItem:
    """An operation of a stream, or why it cannot be run, and about how many bytes it takes."""

    operation_id: str
    request: Request
    size: int


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What became of an operation of a stream."""

    operation_id: str
    result: WriteResult


class Bulk:
    """The use case of streams."""

    def __init__(self, writer: Writer, limits: BulkLimits | None = None) -> None:
        """Write by `writer`."""
        self._writer = writer
        self._limits = limits or BulkLimits()

    async def run(
        self, context: RequestContext, items: AsyncIterator[BulkItem]
    ) -> AsyncGenerator[Acknowledgement, None]:
        """Run a stream of operations; give one acknowledgement each, in order, once it is durable and visible.

        Operations on one document apply in stream order. An error of `items` comes up after everything that was read
        before it is acknowledged. Leaving the iteration stops the work; what was acknowledged stays.
        """
        stream = _Stream(context, self._writer, self._limits)
        stages = [asyncio.create_task(stage) for stage in (stream.read(items), stream.prepare(), stream.commit())]
        try:
            while await stream.done.more():
                item, result = stream.done.waiting.popleft()
                yield Acknowledgement(item.operation_id, result)
                stream.release(item)
            # The last stage first: where one broke, those before it may never end.
            for stage in reversed(stages):
                await stage
        finally:
            left = [*stages, *stream.preparing]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Operations that are prepared together."""

    items: Sequence[BulkItem]
    preparation: asyncio.Task[Sequence[Prepared | WriteResult]]


class _Line(Generic[Thing]):
    """What one stage hands to the next: things in order, and an end."""

    def __init__(self) -> None:
        self.waiting: deque[Thing] = deque()
        self._ended = False
        self._changed = asyncio.Event()

    def put(self, thing: Thing) -> None:
        """Hand on."""
        self.waiting.append(thing)
        self._changed.set()

    def end(self) -> None:
        """Say that nothing more comes."""
        self._ended = True
        self._changed.set()

    async def more(self) -> bool:
        """Wait until something is waiting; False where nothing is and nothing more comes."""
        while not self.waiting and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        return bool(self.waiting)


class _Stream:
    """One stream. Each stage is one task, and ends the line to the next whatever happens to it."""

    def __init__(self, context: RequestContext, writer: Writer, limits: BulkLimits) -> None:
        self._context = context
        self._writer = writer
        self._limits = limits
        self._outstanding = self._outstanding_bytes = 0
        self._room = asyncio.Event()
        self._slots = asyncio.Semaphore(limits.preparing)
        self._items: _Line[BulkItem] = _Line()
        self._batches: _Line[_Batch] = _Line()
        self.done: _Line[tuple[BulkItem, WriteResult]] = _Line()
        self.preparing: set[asyncio.Task[Sequence[Prepared | WriteResult]]] = set()

    async def read(self, items: AsyncIterator[BulkItem]) -> None:
        """Take operations as they arrive, as long as there is room."""
        try:
            async for item in items:
                while not self._has_room(item):
                    self._room.clear()
                    await self._room.wait()
                self._outstanding += 1
                self._outstanding_bytes += item.size
                self._items.put(item)
        finally:
            self._items.end()

    def release(self, item: BulkItem) -> None:
        """Make room: the operation is acknowledged."""
        self._outstanding -= 1
        self._outstanding_bytes -= item.size
        self._room.set()

    async def prepare(self) -> None:
        """Prepare a few batches at once; one is formed when there is a slot for it, of what has arrived by then."""
        try:
            await self._slots.acquire()
            while await self._items.more():
                items = self._take()
                preparation = asyncio.create_task(self._prepare(items))
                self.preparing.add(preparation)
                preparation.add_done_callback(self.preparing.discard)
                self._batches.put(_Batch(items, preparation))
                await self._slots.acquire()
        finally:
            self._batches.end()

    async def commit(self) -> None:
        """Write the batches in order; those that are ready together go into one commit."""
        try:
            while await self._batches.more():
                items: list[BulkItem] = []
                prepared: list[Prepared | WriteResult] = []
                while not items or (self._batches.waiting and self._batches.waiting[0].preparation.done()):
                    batch = self._batches.waiting.popleft()
                    items += batch.items
                    prepared += await batch.preparation
                for done in zip(items, await self._commit(prepared), strict=True):
                    self.done.put(done)
        finally:
            self.done.end()

    def _has_room(self, item: BulkItem) -> bool:
        limits = self._limits
        return self._outstanding == 0 or (
            self._outstanding < limits.outstanding_operations
            and self._outstanding_bytes + item.size <= limits.outstanding_bytes
        )

    def _take(self) -> Sequence[BulkItem]:
        waiting = self._items.waiting
        items = [waiting.popleft()]
        size = items[0].size
        while waiting and len(items) < self._limits.batch_operations:
            size += waiting[0].size
            if size > self._limits.batch_bytes:
                break
            items.append(waiting.popleft())
        return items

    async def _prepare(self, items: Sequence[BulkItem]) -> Sequence[Prepared | WriteResult]:
        try:
            return await self._writer.prepare(self._context, [item.request for item in items], wait=True)
        except Exception as error:  # noqa: BLE001 - it fails this batch and no other
            return [WriteResult("", error=error)] * len(items)
        finally:
            self._slots.release()

    async def _commit(self, prepared: Sequence[Prepared | WriteResult]) -> Sequence[WriteResult]:
        try:
            return await self._writer.commit(prepared)
        except Exception as error:  # noqa: BLE001 - it fails these operations and no others
            return [WriteResult(each.id, error=error) for each in prepared]
