from __future__ import annotations

import asyncio
import json
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, UnavailableError
from termwise.server.inference.base import Expansions, Side
from termwise.server.inference.batcher import Batcher
from termwise.server.inference.fake import FakeEncoder, FakeExpander, word_weight
from termwise.server.ingest.bulk import Bulk, BulkItem, BulkLimits
from termwise.server.ingest.writing import WriteResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from termwise.server.context import RequestContext
    from termwise.server.ingest.bulk import Acknowledgement
    from termwise.server.ingest.writing import Request, WriteOperation


def item(number: int, request: Request, size: int = 100) -> BulkItem:
    return BulkItem(f"op{number}", request, size)


async def stream(requests: Iterable[Request]) -> AsyncIterator[BulkItem]:
    for number, request in enumerate(requests):
        yield item(number, request)


async def collect(bulk: Bulk, context: RequestContext, requests: Iterable[Request]) -> list[Acknowledgement]:
    return [each async for each in bulk.run(context, stream(requests))]


def text(number: int) -> bytes:
    return json.dumps({"text": f"word{number} common"}).encode()


class Pooled(FakeExpander):
    """One deployment, with a real queue and a worker thread."""

    def __init__(self, capacity: int, delay: Callable[[], object] | None = None) -> None:
        """Start the worker."""
        super().__init__(())
        self.encoder = FakeEncoder(delay=delay)
        self.batcher = Batcher(self.encoder, allocations=1, threads=1, queue_capacity=capacity)
        self.batcher.start()
        self.running = self.most_running = 0

    async def expand(
        self,
        context: RequestContext,
        deployment_id: str,
        texts: Sequence[str],
        side: Side | None,
        *,
        wait: bool = False,
    ) -> Expansions:
        """Expand."""
        del deployment_id
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            expansions, timings = await self.batcher.submit(
                texts, side or Side.DOCUMENT, deadline=context.deadline, wait=wait
            )
        finally:
            self.running -= 1
        return Expansions(expansions, "fake", self.encoder.fingerprint(Side.DOCUMENT), timings)


async def test_acknowledgements_come_in_order(
    stack: Any, put: Callable[..., WriteOperation], delete: Callable[..., WriteOperation]
) -> None:
    requests = [
        put("1", text(1)),
        put("2", b"{"),
        put("1", text(2), create=True),
        WriteResult("none", error=InvalidArgumentError("It never was an operation.")),
        delete("1"),
        put("1", text(3), create=True),
        put("3", index="absent"),
        *(put("last", text(n)) for n in range(300)),
    ]
    acknowledged = await collect(stack.bulk, stack.context, requests)
    assert [each.operation_id for each in acknowledged] == [f"op{n}" for n in range(307)]
    assert [each.result.id for each in acknowledged[:7]] == ["1", "2", "1", "none", "1", "1", "3"]
    errors = [type(each.result.error) for each in acknowledged if each.result.error]
    assert errors == [InvalidArgumentError, AlreadyExistsError, InvalidArgumentError, NotFoundError]
    versions = [each.result.written.seq_no for each in acknowledged if each.result.written]
    assert versions == list(range(1, 304))
    assert (await stack.get("last")).source == text(299)
    assert (await stack.get("1")).source == text(3)


async def test_nothing_in_nothing_out(stack: Any) -> None:
    assert await collect(stack.bulk, stack.context, []) == []


async def test_twenty_thousand_documents_through_a_queue_of_64(
    make_stack: Callable[..., Any], put: Callable[..., WriteOperation]
) -> None:
    expander = Pooled(64)
    stack = await make_stack(expander)
    count = 20_000
    acknowledged = await collect(stack.bulk, stack.context, (put(str(n), text(n)) for n in range(count)))
    assert [each.result.error for each in acknowledged if each.result.error] == []
    assert [each.result.id for each in acknowledged] == [str(n) for n in range(count)]
    statistics, _ = await stack.indices.statistics("docs")
    assert statistics.document_count == statistics.sparse_fields["expansion"].document_count == count
    assert (await stack.get("777")).sparse["expansion"].weights.sum() == pytest.approx(
        word_weight("word777") + word_weight("common")
    )
    # The next texts were in the model's queue while it worked on those before.
    assert expander.most_running == 2
    await expander.batcher.close()


async def test_a_slow_model_slows_the_reader(
    make_stack: Callable[..., Any], put: Callable[..., WriteOperation]
) -> None:
    gate = threading.Event()
    expander = Pooled(64, delay=gate.wait)
    stack = await make_stack(expander)
    bulk = Bulk(stack.writer, BulkLimits(outstanding_operations=50, batch_operations=8))
    read = 0

    async def items() -> AsyncIterator[BulkItem]:
        nonlocal read
        for number in range(200):
            read = number
            yield item(number, put(str(number), text(number)))

    async def run() -> list[Acknowledgement]:
        return [each async for each in bulk.run(stack.context, items())]

    running = asyncio.create_task(run())
    await reach(lambda: read == 50)
    await quiet(lambda: read)
    assert read == 50
    gate.set()
    assert len(await running) == 200
    await expander.batcher.close()


async def reach(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what moves tells nobody
            await asyncio.sleep(0)


async def quiet(progress: Callable[[], int]) -> None:
    """Wait until nothing moves any more."""
    still, last = 0, -1
    while still < 20:
        await asyncio.to_thread(lambda: None)
        still = still + 1 if progress() == last else 0
        last = progress()


async def test_outstanding_bytes_are_bounded(stack: Any, put: Callable[..., WriteOperation]) -> None:
    bulk = Bulk(stack.writer, BulkLimits(outstanding_bytes=1000, batch_bytes=300))
    read = acknowledged = most = 0

    async def items() -> AsyncIterator[BulkItem]:
        nonlocal read, most
        for number in range(100):
            # The generator has handed out one more than the stream took: it is read, and waits for room.
            most = max(most, read - acknowledged)
            yield item(number, put(str(number)), size=5000 if number == 50 else 100)
            read += 1

    async with aclosing(bulk.run(stack.context, items())) as stream:
        async for each in stream:
            assert each.result.error is None
            acknowledged += 1
    assert acknowledged == 100
    assert most <= 12


async def test_a_client_that_leaves_keeps_what_was_acknowledged(
    make_stack: Callable[..., Any], put: Callable[..., WriteOperation]
) -> None:
    expander = Pooled(64)
    stack = await make_stack(expander)
    kept = []

    async def endless() -> AsyncIterator[BulkItem]:
        number = 0
        while True:
            yield item(number, put(str(number), text(number)))
            number += 1
            await asyncio.sleep(0)

    async with aclosing(stack.bulk.run(stack.context, endless())) as stream:
        async for each in stream:
            kept.append(each.result.id)
            if len(kept) == 500:
                break
    assert all([await stack.get(id_) is not None for id_ in kept])
    assert expander.batcher.pending == 0
    await stack.indices.close()
    assert len(asyncio.all_tasks()) == 1
    await expander.batcher.close()


async def test_a_caller_that_is_cancelled_leaves_no_task(
    make_stack: Callable[..., Any], put: Callable[..., WriteOperation]
) -> None:
    gate = threading.Event()
    expander = Pooled(64, delay=gate.wait)
    stack = await make_stack(expander)
    running = asyncio.create_task(collect(stack.bulk, stack.context, (put(str(n), text(n)) for n in range(300))))
    await reach(lambda: expander.batcher.pending > 0)
    await quiet(lambda: expander.batcher.pending)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(asyncio.all_tasks()) == 1
    gate.set()
    await expander.batcher.close()
    assert await stack.get("0") is None


async def test_an_error_of_the_stream_comes_after_what_was_read(stack: Any, put: Callable[..., WriteOperation]) -> None:
    async def broken() -> AsyncIterator[BulkItem]:
        for number in range(10):
            yield item(number, put(str(number), text(number)))
        raise InvalidArgumentError("A message of the stream is broken.")

    acknowledged: list[str] = []

    async def run() -> None:
        async for each in stack.bulk.run(stack.context, broken()):
            acknowledged.extend([each.result.id])

    with pytest.raises(InvalidArgumentError):
        await run()
    assert acknowledged == [str(n) for n in range(10)]


class Stopping(FakeExpander):
    """Stops after a few calls."""

    async def expand(
        self,
        context: RequestContext,
        deployment_id: str,
        texts: Sequence[str],
        side: Side | None,
        *,
        wait: bool = False,
    ) -> Expansions:
        """Expand, or refuse."""
        if len(self.calls) == 2:
            raise UnavailableError("The deployment stopped.")
        return await super().expand(context, deployment_id, texts, side, wait=wait)


async def test_a_deployment_that_stops_fails_the_rest_one_by_one(
    make_stack: Callable[..., Any], put: Callable[..., WriteOperation]
) -> None:
    stack = await make_stack(Stopping())
    bulk = Bulk(stack.writer, BulkLimits(batch_operations=10))
    acknowledged = await collect(bulk, stack.context, (put(str(n), text(n)) for n in range(50)))
    assert len(acknowledged) == 50
    written = [each.result.id for each in acknowledged if each.result.written]
    assert written == [str(n) for n in range(len(written))]
    assert 0 < len(written) <= 20
    assert {type(each.result.error) for each in acknowledged[len(written) :]} == {UnavailableError}


async def test_streams_side_by_side_share_commits(stack: Any, put: Callable[..., WriteOperation]) -> None:
    async def run(name: int) -> list[Acknowledgement]:
        return await collect(stack.bulk, stack.context, (put(f"{name}-{n}", text(n)) for n in range(200)))

    runs = [run(name) for name in range(5)]
    for acknowledged in await asyncio.gather(*runs):
        versions = [each.result.written.seq_no for each in acknowledged if each.result.written]
        assert len(versions) == 200
        assert versions == sorted(versions)
    statistics, _ = await stack.indices.statistics("docs")
    assert statistics.document_count == statistics.last_seq_no == 1000
