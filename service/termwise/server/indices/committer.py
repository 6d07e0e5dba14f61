"""The one writer of an index: groups what many callers write into few durable commits."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from termwise.server.errors import UnavailableError
from termwise.storage.errors import InvalidDocumentError
from termwise.storage.types import Put, Written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from termwise.storage.base import SparseIndex
    from termwise.storage.types import Operation

WriteOutcome: TypeAlias = Written | Exception
"""What became of one operation; the exception is storage's (OperationError, StorageFullError …), bugs aside."""

_WEIGHT_BYTES: Final = 24
"""What a weight and its token take, about."""


@dataclass(frozen=True, slots=True)
class CommitLimits:
    """How much goes into one commit, and how much may wait for one, before callers wait."""

    commit_operations: int = 2_048
    commit_bytes: int = 32 * 2**20
    queued_bytes: int = 64 * 2**20


@dataclass(slots=True, eq=False)
class _Submission:
    """What one caller writes."""

    operations: Sequence[Operation]
    size: int
    outcomes: asyncio.Future[list[WriteOutcome]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Committer:
    """Writes to one index on behalf of all callers, in the order in which they call."""

    def __init__(self, index: SparseIndex, limits: CommitLimits | None = None) -> None:
        """Serve an index; the first write starts the task."""
        self._index = index
        self._limits = limits or CommitLimits()
        self._queue: deque[_Submission] = deque()
        self._queued_bytes = 0
        self._room = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def write(self, operations: Sequence[Operation]) -> list[WriteOutcome]:
        """Write operations in order and give one outcome each, once they are durable and visible.

        It waits while too much is queued. A caller that is cancelled while it waits writes nothing; one that is
        cancelled later may have written.

        Raises:
            UnavailableError: the index is being deleted, or the server stops.

        """
        if not operations:
            return []
        size = sum(_size(operation) for operation in operations)
        async with self._room:
            await self._room.wait_for(lambda: self._closed or self._has_room(size))
            if self._closed:
                raise UnavailableError("The index is closing; retry in a moment.", reason="INDEX_CLOSING")
            submission = _Submission(operations, size)
            self._queue.append(submission)
            self._queued_bytes += size
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await submission.outcomes

    async def close(self) -> None:
        """Write what is queued, and refuse more."""
        self._closed = True
        async with self._room:
            self._room.notify_all()
        if self._task is not None:
            await asyncio.shield(self._task)

    def _has_room(self, size: int) -> bool:
        return not self._queue or self._queued_bytes + size <= self._limits.queued_bytes

    async def _run(self) -> None:
        """Commit until nothing is queued."""
        while self._queue:
            group = await self._take()
            operations = [operation for submission in group for operation in submission.operations]
            outcomes = await asyncio.to_thread(_write, self._index, operations)
            start = 0
            for submission in group:
                end = start + len(submission.operations)
                if not submission.outcomes.done():
                    submission.outcomes.set_result(outcomes[start:end])
                start = end

    async def _take(self) -> list[_Submission]:
        """Take as many submissions as fit one commit, at least one, leaving out those whose caller has gone."""
        group: list[_Submission] = []
        operations = size = 0
        async with self._room:
            while self._queue:
                submission = self._queue[0]
                operations += len(submission.operations)
                size += submission.size
                over = operations > self._limits.commit_operations or size > self._limits.commit_bytes
                if group and over:
                    break
                self._queue.popleft()
                self._queued_bytes -= submission.size
                if submission.outcomes.cancelled():
                    operations -= len(submission.operations)
                    size -= submission.size
                else:
                    group.append(submission)
            self._room.notify_all()
        return group


def _write(index: SparseIndex, operations: Sequence[Operation]) -> list[WriteOutcome]:
    """Write a batch; where one document spoils it, write its halves, so that only that document fails."""
    if not operations:
        return []
    try:
        return list(index.write(operations))
    except InvalidDocumentError as error:
        if len(operations) == 1:
            return [error]
        middle = len(operations) // 2
        return _write(index, operations[:middle]) + _write(index, operations[middle:])
    except BaseException as caught:  # noqa: BLE001 - every caller of the batch learns of it, and the committer goes on
        # A panic of a library in Rust is no Exception.
        failure = caught if isinstance(caught, Exception) else RuntimeError(f"{type(caught).__name__}: {caught}")
        return [failure] * len(operations)


def _size(operation: Operation) -> int:
    """Give about how many bytes an operation holds."""
    if not isinstance(operation, Put):
        return len(operation.id)
    document = operation.document
    weights = sum(len(vector) for vector in document.sparse.values())
    return len(document.id) + len(document.source) + weights * _WEIGHT_BYTES
