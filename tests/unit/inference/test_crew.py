"""Workers that die, workers that come and go, and what becomes of their callers."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import tracemalloc
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing

from termwise.server.errors import ResourceExhaustedError, TermwiseError, UnavailableError
from termwise.server.inference import crew
from termwise.server.inference.base import NO_TURN, Expansion, Side, TokenizedText
from termwise.server.inference.batcher import Batcher
from termwise.server.inference.fake import FakeEncoder
from termwise.server.inference.priority import PriorityGate
from termwise.server.inference.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping, Sequence
    from contextlib import AbstractContextManager


class PanicError(BaseException):
    """Like what a panic of a library in Rust becomes: no Exception."""


class Deadly(FakeEncoder):
    """Kills its worker by the words "panic" and "exit", in the model, and by "slain", in the tokenizer."""

    def tokenize(self, texts: Sequence[str], side: Side) -> list[TokenizedText]:
        if any("slain" in text for text in texts):
            raise PanicError
        return super().tokenize(texts, side)

    def encode(
        self, texts: Sequence[TokenizedText], side: Side, turn: AbstractContextManager[None] = NO_TURN
    ) -> list[Expansion]:
        expansions = super().encode(texts, side, turn)
        words = {word for expansion in expansions for word in expansion.tokens}
        if "panic" in words:
            raise PanicError
        if "exit" in words:
            raise SystemExit(1)
        return expansions


class Gate:
    """Holds the model before each batch until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(30)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


@asynccontextmanager
async def running(encoder: FakeEncoder | None = None, **options: Any) -> AsyncIterator[Batcher]:
    settings = {"allocations": 1, "threads": 1, "queue_capacity": 100} | options
    batcher = Batcher(encoder or Deadly(), **settings)
    batcher.start()
    try:
        yield batcher
    finally:
        await batcher.close()


async def words(batcher: Batcher, *texts: str, wait: bool = False) -> list[set[str]]:
    expansions, _ = await batcher.submit(texts, Side.DOCUMENT, deadline=None, wait=wait)
    return [set(expansion.tokens) for expansion in expansions]


async def becomes(condition: Callable[[], bool]) -> None:
    """Wait for what threads bring about."""

    async def wait() -> None:
        while not condition():  # noqa: ASYNC110 - threads set no event of the loop
            await asyncio.sleep(0)

    await asyncio.wait_for(wait(), 30)


def encoder_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("encoder")]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("deadly", ["panic", "exit", "slain"])
async def test_a_worker_that_dies_is_replaced_and_its_callers_may_retry(
    deadly: str, logs: list[MutableMapping[str, Any]]
) -> None:
    gate = Gate()
    statistics = Statistics()
    async with running(Deadly(delay=gate), batch_tokens=12, statistics=statistics, name="for_search") as batcher:
        first = asyncio.create_task(words(batcher, "first"))
        await asyncio.to_thread(gate.reached.wait, 30)
        beside = asyncio.create_task(words(batcher, deadly, "beside it"))
        waiting = [asyncio.create_task(words(batcher, f"innocent {number}")) for number in range(20)]
        await settle()
        gate.opened.set()
        with pytest.raises(UnavailableError, match="died") as caught:
            await beside
        outcomes = await asyncio.gather(first, *waiting, return_exceptions=True)
        await becomes(lambda: batcher.allocation_count == 1)
        assert caught.value.retry_after is not None
        assert caught.value.retry_after.total_seconds() > 0
        lost = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        # Those whose texts were in the same batch.
        assert len(lost) <= 4
        assert all(isinstance(outcome, UnavailableError) for outcome in lost)
        assert outcomes[0] == [{"first"}]
        assert outcomes[-1] == [{"innocent", "19"}]
        assert await words(batcher, "after") == [{"after"}]
        assert [(log["event"], log["deployment"]) for log in logs] == [("worker_died", "for_search")]
        assert 2 <= statistics.read().error_count <= 6
        assert batcher.pending == 0


@pytest.mark.parametrize("method", ["take", "still_wanted", "complete", "take_finished"])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_worker_whose_own_loop_breaks_is_replaced_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, method: str, times: int
) -> None:
    gate = Gate()
    async with running(FakeEncoder(delay=gate), batch_tokens=20, allocations=2) as batcher:
        held = [asyncio.create_task(words(batcher, f"held{number}")) for number in range(2)]
        await asyncio.to_thread(gate.reached.wait, 30)
        calls = [asyncio.create_task(words(batcher, f"text {number}", f"other {number}")) for number in range(30)]
        await settle()
        left = times
        real = getattr(batcher._queue, method)

        def broken(*args: object) -> object:
            nonlocal left
            if left and threading.current_thread() is not threading.main_thread():
                left -= 1
                if method == "take":
                    real(*args)  # as where the memory ends in the middle of it
                raise MemoryError
            return real(*args)

        monkeypatch.setattr(batcher._queue, method, broken)
        gate.opened.set()
        outcomes = await asyncio.wait_for(asyncio.gather(*held, *calls, return_exceptions=True), 30)
        for number, outcome in enumerate(outcomes[2:]):
            assert isinstance(outcome, TermwiseError | MemoryError) or outcome == [
                {"text", str(number)},
                {"other", str(number)},
            ]
        assert sum(isinstance(outcome, BaseException) for outcome in outcomes) <= 12
        assert left == 0
        await becomes(lambda: batcher.allocation_count == 2)
        assert await words(batcher, "after") == [{"after"}]
        assert batcher.pending == 0


async def test_workers_that_die_one_after_the_other_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "DELAYS", (0.0, 0.001, 0.002))
    heard: list[UnavailableError] = []
    async with running(allocations=2, on_broken=heard.append, name="broken") as batcher:
        for number in range(4):
            with pytest.raises(UnavailableError):
                await words(batcher, f"panic {number}")
        await becomes(lambda: bool(heard))
        with pytest.raises(UnavailableError, match="one after the other"):
            await words(batcher, "fine")
        assert [error.reason_code for error in heard] == ["WORKERS_DIED"]
        await becomes(lambda: batcher.allocation_count == 0)


async def test_a_text_that_ends_whoever_reads_it_does_not_end_the_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "DELAYS", (0.0, 0.001, 0.002))
    heard: list[UnavailableError] = []
    async with running(on_broken=heard.append) as batcher:
        for number in range(12):
            with pytest.raises(UnavailableError, match="died"):
                await words(batcher, "panic", f"beside it {number}")
        assert await words(batcher, "fine") == [{"fine"}]
        assert (heard, batcher.allocation_count) == ([], 1)


async def test_who_waits_when_workers_are_given_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "DELAYS", (0.0,))
    gate = Gate()
    async with running(Deadly(delay=gate), batch_tokens=2) as batcher:
        calls = [asyncio.create_task(words(batcher, f"panic {number}", wait=number > 3)) for number in range(200)]
        await asyncio.to_thread(gate.reached.wait, 30)
        gate.opened.set()
        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
        assert all(isinstance(outcome, UnavailableError) for outcome in outcomes)
        reasons = [outcome.reason_code for outcome in outcomes if isinstance(outcome, UnavailableError)]
        assert reasons.count("WORKER_DIED") <= 4
        assert reasons.count("WORKERS_DIED") >= 196


async def test_a_batch_that_is_done_forgives_the_deaths_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "DELAYS", (0.0, 0.0))
    async with running() as batcher:
        for _ in range(10):
            with pytest.raises(UnavailableError):
                await words(batcher, "panic")
            assert await words(batcher, "fine") == [{"fine"}]


async def test_a_worker_that_cannot_be_replaced_at_first_is_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "DELAYS", (0.0,) * 4)
    async with running() as batcher:
        left = 2
        start = threading.Thread.start

        def exhausted(thread: threading.Thread) -> None:
            nonlocal left
            if left and thread.name.startswith("encoder"):
                left -= 1
                message = "can't start new thread"
                raise RuntimeError(message)
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", exhausted)
        with pytest.raises(UnavailableError):
            await words(batcher, "panic")
        assert await words(batcher, "fine") == [{"fine"}]
        assert (left, batcher.allocation_count) == (0, 1)


async def test_close_answers_what_waits_although_a_worker_dies_meanwhile() -> None:
    gate = Gate()
    async with running(Deadly(delay=gate), batch_tokens=2) as batcher:
        first = asyncio.create_task(words(batcher, "panic"))
        await asyncio.to_thread(gate.reached.wait, 30)
        waiting = asyncio.create_task(words(batcher, "waits"))
        await settle()
        closing = asyncio.create_task(batcher.close())
        await settle()
        gate.opened.set()
        assert await waiting == [{"waits"}]
        await asyncio.wait_for(closing, 30)
        with pytest.raises(UnavailableError):
            await first
        assert not encoder_threads()


async def test_a_crew_grows_at_once_and_shrinks_as_batches_end() -> None:
    meeting = threading.Barrier(3)
    async with running(FakeEncoder(delay=lambda: meeting.wait(30)), batch_tokens=2) as batcher:
        calls = [asyncio.create_task(words(batcher, f"text{number}")) for number in range(3)]
        await settle()
        batcher.resize(3)
        assert batcher.allocation_count == 3
        assert await asyncio.gather(*calls) == [[{f"text{number}"}] for number in range(3)]
        calls = [asyncio.create_task(words(batcher, f"more{number}")) for number in range(3)]
        await settle()
        await becomes(lambda: batcher.pending == 0)
        batcher.resize(1)
        assert await asyncio.gather(*calls) == [[{f"more{number}"}] for number in range(3)]
        await becomes(lambda: batcher.allocation_count == 1)
        with pytest.raises(ValueError, match="too few"):
            batcher.resize(0)


async def test_idle_workers_that_are_too_many_end() -> None:
    async with running(allocations=4) as batcher:
        batcher.resize(2)
        await becomes(lambda: len(encoder_threads()) == 4)
        assert batcher.allocation_count == 2
        assert await words(batcher, "fine") == [{"fine"}]


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_thousand_changes_of_size_under_load_lose_nothing(seed: int) -> None:
    chance = random.Random(seed)
    statistics = Statistics()
    encoder = FakeEncoder()
    async with running(encoder, queue_capacity=50, batch_tokens=30, statistics=statistics) as batcher:
        done = False
        answered = 0

        async def caller(number: int) -> None:
            nonlocal answered
            turn = 0
            while not done:
                turn += 1
                texts = [f"{number} {turn} {place}" for place in range(1 + (number + turn) % 5)]
                assert await words(batcher, *texts, wait=True) == [set(text.split()) for text in texts]
                answered += len(texts)

        callers = [asyncio.create_task(caller(number)) for number in range(12)]
        for _ in range(1000):
            batcher.resize(chance.randint(1, 5))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
        done = True
        await asyncio.wait_for(asyncio.gather(*callers), 30)
        batcher.resize(3)
        await becomes(lambda: batcher.allocation_count == 3)
        assert statistics.read().inference_count == statistics.read().arrivals == answered
        assert sum(len(batch) for batch in encoder.batches) == answered - statistics.read().cache_hit_count
        assert batcher.pending == 0


async def test_never_more_run_at_a_time_than_there_were_allocations() -> None:
    inside = most = 0
    guard = threading.Lock()

    def enter() -> None:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        with guard:
            inside -= 1

    async with running(FakeEncoder(delay=enter), batch_tokens=10, queue_capacity=1000) as batcher:
        call = asyncio.create_task(words(batcher, *[f"text{number}" for number in range(900)]))
        for number in range(100):
            batcher.resize(1 + number % 3)
            await asyncio.sleep(0)
        await call
        assert 1 <= most <= 3


async def test_a_closed_batcher_holds_neither_encoder_nor_expansions() -> None:
    gc.disable()
    try:
        encoder = FakeEncoder()
        batcher = Batcher(encoder, allocations=1, threads=1, queue_capacity=9, cache_size_bytes=1 << 20)
        batcher.start()
        expansions, _ = await batcher.submit(["text"], Side.DOCUMENT, deadline=None, wait=False)
        gone = [weakref.ref(encoder), weakref.ref(expansions[0].token_ids)]
        del encoder, expansions
        assert all(each() is not None for each in gone)
        await batcher.close()
        assert batcher.cache_facts.used_bytes == 0
        assert all(each() is None for each in gone)
    finally:
        gc.enable()


async def test_fifty_batchers_leave_no_thread_and_no_memory_behind() -> None:
    async def cycle() -> None:
        async with running(allocations=2, cache_size_bytes=1 << 20, batch_tokens=10) as batcher:
            calls = [words(batcher, *[f"text {call} {place}" for place in range(10)]) for call in range(5)]
            await asyncio.gather(*calls)
            batcher.resize(3)
            with pytest.raises(UnavailableError):
                await words(batcher, "panic")

    for _ in range(3):
        await cycle()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(50):
            with structlog.testing.capture_logs():
                await cycle()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not encoder_threads()
    assert after - before < 100_000, "a cycle's expansions alone are 25,000 bytes"


@pytest.mark.parametrize("seed", range(3))
async def test_callers_get_their_answers_whatever_happens_to_workers_meanwhile(seed: int) -> None:
    chance = random.Random(seed)
    statistics, gate = Statistics(), PriorityGate(2)
    options = {"queue_capacity": 20, "batch_tokens": 30, "cache_size_bytes": 8_000, "gate": gate}
    async with (
        running(statistics=statistics, **options) as normal,
        running(statistics=statistics, low_priority=True, **options) as low,
    ):

        async def caller(number: int) -> None:
            batcher = low if number % 5 == 0 else normal
            for _ in range(25):
                texts = [f"text{chance.randrange(60)}" for _ in range(chance.randint(1, 8))]
                texts += [chance.choice(["panic", "exit", "slain"])] * (chance.random() < 0.05)
                call = asyncio.create_task(words(batcher, *texts, wait=chance.random() < 0.6))
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                if chance.random() < 0.1:
                    call.cancel()
                (answer,) = await asyncio.gather(call, return_exceptions=True)
                expected = (asyncio.CancelledError, UnavailableError, ResourceExhaustedError)
                assert answer == [{text} for text in texts] or isinstance(answer, expected)

        callers = asyncio.gather(*(caller(number) for number in range(20)))
        while not callers.done():
            normal.resize(chance.randint(1, 4))
            normal.clear_cache()
            await asyncio.sleep(0)
        await asyncio.wait_for(callers, 60)
        normal.resize(2)
        await becomes(lambda: normal.allocation_count == 2 and low.allocation_count == 1)
        assert normal.pending == low.pending == 0
        for batcher in (normal, low):
            assert await asyncio.wait_for(words(batcher, "after"), 30) == [{"after"}]
        view = statistics.read()
        assert view.inference_count + view.error_count <= view.arrivals
    assert not encoder_threads()
