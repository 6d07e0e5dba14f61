from __future__ import annotations

import asyncio
import itertools
import threading
from typing import TYPE_CHECKING

import pytest

from termwise.server.errors import UnavailableError
from termwise.server.indices.committer import CommitLimits, Committer
from termwise.storage.errors import DocumentExistsError, InvalidDocumentError, StorageFullError
from termwise.storage.memory import MemoryStore
from termwise.storage.types import Delete, Document, FieldKind, FieldSpec, IndexSchema, Operation, Outcome, Put, Written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from termwise.storage.base import IndexReader

SCHEMA = IndexSchema({"year": FieldSpec(FieldKind.INTEGER)})


class PanicError(BaseException):
    """Like what a panic of a library in Rust becomes: no Exception."""


class Gated:
    """A memory index whose commits a test holds, counts, or fails."""

    def __init__(self) -> None:
        """Open the gate."""
        store = MemoryStore()
        store.create("index", SCHEMA)
        self.inner = store.open("index")
        self.schema = SCHEMA
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[str]] = []
        self.full = False
        self.panics = False

    def write(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Write once the gate is open."""
        self.entered.set()
        assert self.gate.wait(60)
        if self.full:
            raise StorageFullError("The disk is full.")
        if self.panics:
            raise PanicError("index out of bounds")
        outcomes = self.inner.write(operations)
        self.batches.append([each.document.id if isinstance(each, Put) else each.id for each in operations])
        return outcomes

    def reader(self) -> IndexReader:
        """Read."""
        return self.inner.reader()

    def close(self) -> None:
        """Close."""
        self.inner.close()


def put(id_: str, *, create: bool = False, year: object = 1) -> Put:
    return Put(Document(id_, b"{}", columns={"year": [year]}), create=create)  # type: ignore[list-item]


async def hold(index: Gated, committer: Committer) -> asyncio.Task[list[Written | Exception]]:
    """Start a commit of the document "first", and hold it."""
    index.gate.clear()
    task = asyncio.create_task(committer.write([put("first")]))
    assert await asyncio.to_thread(index.entered.wait, 60)
    return task


async def queued(committer: Committer, operations: Sequence[Operation]) -> asyncio.Task[list[Written | Exception]]:
    """Queue a write behind the one that is held."""
    task = asyncio.create_task(committer.write(operations))
    for _ in range(10):
        await asyncio.sleep(0)
    return task


def versions(outcomes: Sequence[Written | Exception]) -> list[int]:
    assert all(isinstance(outcome, Written) for outcome in outcomes), outcomes
    return [outcome.seq_no for outcome in outcomes if isinstance(outcome, Written)]


async def test_writers_that_wait_share_a_commit() -> None:
    index = Gated()
    committer = Committer(index)
    first = await hold(index, committer)
    others = [await queued(committer, [put(f"{n}a"), put(f"{n}b")]) for n in range(3)]
    index.gate.set()
    assert versions(await first) == [1]
    assert [versions(await task) for task in others] == [[2, 3], [4, 5], [6, 7]]
    assert index.batches == [["first"], ["0a", "0b", "1a", "1b", "2a", "2b"]]


async def test_a_commit_is_bounded() -> None:
    index = Gated()
    committer = Committer(index, CommitLimits(commit_operations=3))
    first = await hold(index, committer)
    others = [await queued(committer, [put(f"{n}a"), put(f"{n}b")]) for n in range(2)]
    large = await queued(committer, [put(str(n)) for n in range(5)])
    index.gate.set()
    await asyncio.gather(first, *others, large)
    assert [len(batch) for batch in index.batches] == [1, 2, 2, 5]


async def test_writers_wait_while_too_much_is_queued() -> None:
    index = Gated()
    committer = Committer(index, CommitLimits(queued_bytes=10))
    first = await hold(index, committer)
    tasks = [await queued(committer, [put(f"document {n}")]) for n in range(3)]
    assert len(committer._queue) == 1
    index.gate.set()
    assert versions(await first) == [1]
    assert [versions(await task) for task in tasks] == [[2], [3], [4]]


async def test_an_operation_that_fails_touches_no_other() -> None:
    committer = Committer(Gated())
    outcomes = await committer.write([put("a"), put("a", create=True), Delete("a"), put("a", create=True)])
    assert [type(outcome) for outcome in outcomes] == [Written, DocumentExistsError, Written, Written]


async def test_a_document_that_storage_refuses_fails_alone() -> None:
    index = Gated()
    committer = Committer(index)
    first = await hold(index, committer)
    bad = await queued(committer, [put("a"), put("bad", year="x"), put("b")])
    other = await queued(committer, [put("c", create=True), put("bad too", year=1.5), put("c", create=True)])
    index.gate.set()
    assert versions(await first) == [1]
    assert [type(outcome) for outcome in await bad] == [Written, InvalidDocumentError, Written]
    assert [type(outcome) for outcome in await other] == [Written, InvalidDocumentError, DocumentExistsError]
    assert [*itertools.chain(*index.batches)] == ["first", "a", "b", "c", "c"]


async def test_a_full_disk_fails_all_and_the_index_goes_on() -> None:
    index = Gated()
    committer = Committer(index)
    first = await hold(index, committer)
    others = [await queued(committer, [put(str(n))]) for n in range(2)]
    index.full = True
    index.gate.set()
    for task in (first, *others):
        (outcome,) = await task
        assert isinstance(outcome, StorageFullError)
    index.full = False
    assert versions(await committer.write([put("again")])) == [1]


async def test_a_caller_that_leaves_while_it_waits_writes_nothing() -> None:
    index = Gated()
    committer = Committer(index)
    first = await hold(index, committer)
    gone = await queued(committer, [put("gone")])
    kept = await queued(committer, [put("kept")])
    gone.cancel()
    index.gate.set()
    await asyncio.gather(first, kept)
    assert index.batches == [["first"], ["kept"]]


async def test_closing_writes_what_is_queued_and_refuses_more() -> None:
    index = Gated()
    committer = Committer(index)
    first = await hold(index, committer)
    waiting = await queued(committer, [put("waiting")])
    closing = asyncio.create_task(committer.close())
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError):
        await committer.write([put("late")])
    index.gate.set()
    await closing
    assert versions([*await first, *await waiting]) == [1, 2]
    await committer.close()


async def test_a_panic_fails_its_batch_and_no_caller_waits_for_ever() -> None:
    index = Gated()
    committer = Committer(index)
    index.panics = True
    async with asyncio.timeout(60):
        (outcome,) = await committer.write([put("a")])
    assert "PanicError: index out of bounds" in str(outcome)
    index.panics = False
    assert versions(await committer.write([put("a")])) == [1]
