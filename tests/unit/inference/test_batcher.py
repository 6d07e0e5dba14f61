"""Admission, batches, deadlines, cancellation, errors and closing, with an encoder that tests can hold still."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from termwise.server.inference.base import NO_TURN, Encoder, Expansion, Side, TokenizedText
from termwise.server.inference.batcher import Batcher
from termwise.server.inference.crew import Worker
from termwise.server.inference.fake import FakeEncoder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractContextManager


class Gate:
    """Holds the encoder before each batch until it is opened; `reached` tells that a batch is there."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(30)


class PanicError(BaseException):
    """Like what a panic of a library in Rust becomes: no Exception."""


class PickyEncoder(FakeEncoder):
    """Fails on the words "broken", "panic" and "lost" in the model; refuses "refused" in the tokenizer."""

    def tokenize(self, texts: Sequence[str], side: Side) -> list[TokenizedText]:
        if any("refused" in text for text in texts):
            raise InvalidArgumentError("A text is too long.")
        return super().tokenize(texts, side)

    def encode(
        self, texts: Sequence[TokenizedText], side: Side, turn: AbstractContextManager[None] = NO_TURN
    ) -> list[Expansion]:
        expansions = super().encode(texts, side, turn)
        if any("broken" in expansion.tokens for expansion in expansions):
            message = "a shape does not fit"
            raise RuntimeError(message)
        if any("panic" in expansion.tokens for expansion in expansions):
            raise PanicError("index out of bounds")
        return expansions[1:] if any("lost" in expansion.tokens for expansion in expansions) else expansions


@asynccontextmanager
async def running(
    encoder: Encoder, *, capacity: int = 100, allocations: int = 1, batch_tokens: int = 4096, cache_size_bytes: int = 0
) -> AsyncIterator[Batcher]:
    batcher = Batcher(
        encoder,
        allocations=allocations,
        threads=1,
        queue_capacity=capacity,
        batch_tokens=batch_tokens,
        cache_size_bytes=cache_size_bytes,
    )
    batcher.start()
    try:
        yield batcher
    finally:
        await batcher.close()


async def words(
    batcher: Batcher, *texts: str, wait: bool = False, deadline: float | None = None, group: str = ""
) -> list[set[str]]:
    expansions, _ = await batcher.submit(texts, Side.DOCUMENT, deadline=deadline, wait=wait, group=group)
    return [set(expansion.tokens) for expansion in expansions]


@asynccontextmanager
async def held(capacity: int, **options: int) -> AsyncIterator[tuple[Batcher, Gate, FakeEncoder, asyncio.Task[object]]]:
    """Run a batcher whose only worker is held inside a first batch, so that all that follows waits."""
    gate = Gate()
    encoder = FakeEncoder(delay=gate)
    async with running(encoder, capacity=capacity, **options) as batcher:
        first = asyncio.create_task(words(batcher, "first"))
        await asyncio.to_thread(gate.reached.wait, 30)
        try:
            yield batcher, gate, encoder, first
        finally:
            gate.opened.set()
            await asyncio.gather(first, return_exceptions=True)


async def settle() -> None:
    """Let tasks that are ready run up to where they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


def ran(encoder: FakeEncoder) -> list[str]:
    return [" ".join(text) for batch in encoder.batches for text in batch]


async def test_answers_keep_the_order_of_the_texts() -> None:
    async with running(FakeEncoder()) as batcher:
        assert await words(batcher, "a b", "", "c") == [{"a", "b"}, set(), {"c"}]
        assert batcher.pending == 0
        assert batcher.allocation_count == 1


async def test_concurrent_calls_share_batches() -> None:
    async with held(100) as (batcher, gate, encoder, _):
        calls = [asyncio.create_task(words(batcher, f"text{number}")) for number in range(20)]
        await settle()
        assert batcher.pending == 20
        gate.opened.set()
        assert await asyncio.gather(*calls) == [[{f"text{number}"}] for number in range(20)]
        assert [len(batch) for batch in encoder.batches] == [1, 20]


async def test_batches_keep_the_token_budget() -> None:
    async with held(100, batch_tokens=100) as (batcher, gate, encoder, _):
        call = asyncio.create_task(words(batcher, *["word " * 19 + f"last{number:02}" for number in range(12)]))
        await settle()
        gate.opened.set()
        await call
        assert [len(batch) for batch in encoder.batches] == [1, 4, 4, 4]


async def test_full_queue_fails_at_once_and_says_when_to_retry() -> None:
    async with held(3) as (batcher, gate, encoder, _):
        waiting = asyncio.create_task(words(batcher, "b", "c"))
        await settle()
        with pytest.raises(ResourceExhaustedError, match="2 of 3 texts wait") as caught:
            await words(batcher, "d", "e")
        assert caught.value.metadata == {"limit": "3", "actual": "2"}
        assert caught.value.retry_after is not None
        assert caught.value.retry_after.total_seconds() > 0
        last = asyncio.create_task(words(batcher, "f"))
        await settle()
        assert batcher.pending == 3
        gate.opened.set()
        await asyncio.gather(waiting, last)
        assert ran(encoder) == ["first", "b", "c", "f"]


async def test_more_texts_than_the_queue_holds_are_refused() -> None:
    async with running(FakeEncoder(), capacity=3) as batcher:
        with pytest.raises(InvalidArgumentError, match=r"4 texts are more than the queue holds \(3\)"):
            await words(batcher, *"abcd")
        with pytest.raises(InvalidArgumentError, match="no text"):
            await words(batcher)


async def test_waiting_call_may_be_larger_than_the_queue() -> None:
    async with running(FakeEncoder(), capacity=3) as batcher:
        texts = [f"text{number}" for number in range(200)]
        assert await words(batcher, *texts, wait=True) == [{text} for text in texts]


async def test_waiting_calls_are_admitted_in_order_and_leave_half_of_the_room() -> None:
    async with held(4) as (batcher, gate, encoder, _):
        calls = [asyncio.create_task(words(batcher, f"{name}1", f"{name}2", wait=True)) for name in "abc"]
        await settle()
        assert batcher.pending == 2
        eager = asyncio.create_task(words(batcher, "x", "y"))
        await settle()
        assert batcher.pending == 4
        gate.opened.set()
        await asyncio.gather(*calls, eager)
        assert ran(encoder)[:5] == ["first", "a1", "a2", "x", "y"]
        assert ran(encoder)[5:] == ["b1", "b2", "c1", "c2"]


async def test_small_call_does_not_wait_for_the_whole_of_a_large_one() -> None:
    async with held(1000, batch_tokens=100) as (batcher, gate, encoder, _):
        large = asyncio.create_task(words(batcher, *[f"large{number} and more words" for number in range(200)]))
        await settle()
        small = asyncio.create_task(words(batcher, "small"))
        await settle()
        gate.opened.set()
        await asyncio.gather(large, small)
        assert ran(encoder).index("small") < 40, "the batch that is prepared goes first, and one turn"


async def test_a_query_does_not_wait_for_the_many_calls_of_a_stream() -> None:
    async with held(1000, batch_tokens=40) as (batcher, gate, encoder, _):
        stream = [
            asyncio.create_task(words(batcher, f"stream{number}", wait=True, group="stream")) for number in range(100)
        ]
        await settle()
        query = asyncio.create_task(words(batcher, "query"))
        other = asyncio.create_task(words(batcher, "other", wait=True, group="other"))
        await settle()
        gate.opened.set()
        assert await query == [{"query"}]
        await other
        assert await asyncio.gather(*stream) == [[{f"stream{number}"}] for number in range(100)]
        assert max(ran(encoder).index("query"), ran(encoder).index("other")) < 30, "the batches at hand, and one turn"
        assert [text for text in ran(encoder) if "stream" in text] == [f"stream{number}" for number in range(100)]


async def test_a_full_queue_slows_a_stream_and_fails_a_unary_call() -> None:
    async with held(8) as (batcher, gate, _, first):
        stream = [
            asyncio.create_task(words(batcher, f"a{number}", f"b{number}", wait=True, group="stream"))
            for number in range(20)
        ]
        await settle()
        assert batcher.pending == 4
        unary = asyncio.create_task(words(batcher, *"cdef"))
        await settle()
        with pytest.raises(ResourceExhaustedError):
            await words(batcher, "g")
        gate.opened.set()
        assert await asyncio.gather(*stream) == [[{f"a{number}"}, {f"b{number}"}] for number in range(20)]
        assert await unary == [{"c"}, {"d"}, {"e"}, {"f"}]
        await first


async def test_cancelled_call_never_reaches_the_model() -> None:
    async with held(4) as (batcher, gate, encoder, _):
        gone = asyncio.create_task(words(batcher, "gone", "gone too"))
        stays = asyncio.create_task(words(batcher, "stays", "as well"))
        await settle()
        with pytest.raises(ResourceExhaustedError):
            await words(batcher, "more")
        gone.cancel()
        await settle()
        assert batcher.pending == 2, "its room is free at once"
        gate.opened.set()
        await stays
        assert ran(encoder) == ["first", "stays", "as well"]
        assert gone.cancelled()


async def test_cancelled_waiting_call_lets_the_next_in() -> None:
    async with held(2) as (batcher, gate, encoder, _):
        gone = asyncio.create_task(words(batcher, *[f"gone{number}" for number in range(10)], wait=True))
        next_one = asyncio.create_task(words(batcher, "next", wait=True))
        await settle()
        gone.cancel()
        await settle()
        assert batcher.pending == 1
        gate.opened.set()
        assert await next_one == [{"next"}]
        assert ran(encoder) == ["first", "next"]


async def test_passed_deadline_fails_in_the_queue_and_never_reaches_the_model() -> None:
    async with held(4) as (batcher, gate, encoder, _):
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await words(batcher, "late", deadline=start + 0.05)
        assert 0.05 <= time.monotonic() - start < 5
        assert batcher.pending == 0
        with pytest.raises(DeadlineExceededError):
            await words(batcher, "late", deadline=time.monotonic() - 1)
        with pytest.raises(DeadlineExceededError):
            await words(batcher, *["late"] * 10, deadline=time.monotonic() + 0.01, wait=True)
        in_time = asyncio.create_task(words(batcher, "in time", deadline=time.monotonic() + 60))
        await settle()
        gate.opened.set()
        await in_time
        assert ran(encoder) == ["first", "in time"]


async def test_a_worker_that_finds_all_of_them_late_takes_who_waited_for_their_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [time.monotonic()]
    for module in ("batcher", "feeder"):
        monkeypatch.setattr(f"termwise.server.inference.{module}.time", SimpleNamespace(monotonic=lambda: clock[0]))
    # Its workers are not started: the test takes their place, before the event loop notes that the deadline passed.
    batcher = Batcher(FakeEncoder(), allocations=1, threads=1, queue_capacity=2)
    late = asyncio.create_task(words(batcher, "late", deadline=clock[0] + 60, wait=True))
    patient = asyncio.create_task(words(batcher, "patient", wait=True))
    await settle()
    assert batcher.pending == 1
    clock[0] += 61
    worker = Worker(second=False)
    with batcher._lock:
        assert batcher._feeder.take(worker)
    assert [job.text for job in worker.jobs] == ["patient"]
    for call in (late, patient):
        call.cancel()
    await asyncio.gather(late, patient, return_exceptions=True)


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        ("broken", RuntimeError, "a shape does not fit"),
        ("lost", ValueError, "shorter"),
    ],
)
async def test_model_error_fails_its_batch_alone_and_the_worker_survives(
    word: str, error: type[Exception], message: str
) -> None:
    async with running(PickyEncoder()) as batcher:
        with pytest.raises(error, match=message):
            await words(batcher, word)
        assert await words(batcher, "fine") == [{"fine"}]
        assert batcher.allocation_count == 1
        assert batcher.pending == 0


async def test_refused_text_fails_its_call_alone() -> None:
    gate = Gate()
    encoder = PickyEncoder(delay=gate)
    async with running(encoder) as batcher:
        first = asyncio.create_task(words(batcher, "first"))
        await asyncio.to_thread(gate.reached.wait, 30)
        calls = [asyncio.create_task(words(batcher, *texts)) for texts in (["a", "refused"], ["b"], ["c", "d"])]
        await settle()
        gate.opened.set()
        results = await asyncio.gather(first, *calls, return_exceptions=True)
        assert isinstance(results[1], InvalidArgumentError)
        assert results[2:] == [[{"b"}], [{"c"}, {"d"}]]


async def test_failed_call_takes_its_other_texts_along() -> None:
    async with held(100, batch_tokens=10) as (batcher, gate, encoder, _):
        encoder.tokenize = PickyEncoder(delay=gate).tokenize  # type: ignore[method-assign]
        call = asyncio.create_task(words(batcher, "refused", *[f"never read {number}" for number in range(20)]))
        await settle()
        gate.opened.set()
        with pytest.raises(InvalidArgumentError):
            await call
        assert "never" not in " ".join(ran(encoder)[2:])


async def test_close_answers_what_was_admitted_and_refuses_the_rest() -> None:
    async with held(4) as (batcher, gate, _, first):
        admitted = asyncio.create_task(words(batcher, "a", "b"))
        partly = asyncio.create_task(words(batcher, *[f"partly{number}" for number in range(10)], wait=True))
        stranger = asyncio.create_task(words(batcher, "stranger", wait=True))
        await settle()
        closing = asyncio.create_task(batcher.close())
        await settle()
        with pytest.raises(UnavailableError):
            await words(batcher, "too late")
        with pytest.raises(UnavailableError):
            await stranger
        gate.opened.set()
        await closing
        assert await first == [{"first"}]
        assert await admitted == [{"a"}, {"b"}]
        assert await partly == [{f"partly{number}"} for number in range(10)]
        assert batcher.allocation_count == 0


async def test_close_without_start_and_twice() -> None:
    batcher = Batcher(FakeEncoder(), allocations=2, threads=1, queue_capacity=4)
    await batcher.close()
    await batcher.close()
    with pytest.raises(UnavailableError):
        await words(batcher, "a")


async def test_close_does_not_wait_for_a_cancelled_call() -> None:
    async with held(4) as (batcher, gate, _, _first):
        gone = asyncio.create_task(words(batcher, "gone"))
        await settle()
        closing = asyncio.create_task(batcher.close())
        await settle()
        gone.cancel()
        gate.opened.set()
        await asyncio.wait_for(closing, 30)


async def test_sides_are_not_mixed_where_they_differ() -> None:
    gate = Gate()
    encoder = FakeEncoder(query_prefix="query ", delay=gate)
    async with running(encoder) as batcher:
        first = asyncio.create_task(words(batcher, "first"))
        await asyncio.to_thread(gate.reached.wait, 30)
        sides = [Side.QUERY, Side.DOCUMENT, Side.QUERY]
        calls = [
            asyncio.create_task(batcher.submit([f"text{number}"], side, deadline=None, wait=False))
            for number, side in enumerate(sides)
        ]
        await settle()
        gate.opened.set()
        answers = await asyncio.gather(*calls)
        await first
        assert [set(expansions[0].tokens) for expansions, _ in answers] == [
            {"query", "text0"},
            {"text1"},
            {"query", "text2"},
        ]
        assert [len(batch) for batch in encoder.batches] == [1, 2, 1]


async def test_all_allocations_work_at_the_same_time() -> None:
    meeting = threading.Barrier(3)
    encoder = FakeEncoder(delay=lambda: meeting.wait(30))
    async with running(encoder, allocations=3, batch_tokens=1) as batcher:
        # Three batches of one text each meet inside the model, or the barrier breaks.
        assert await words(batcher, "a", "b", "c") == [{"a"}, {"b"}, {"c"}]
        assert batcher.allocation_count == 3


async def test_timings_tell_where_the_time_went(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    # The module's alone: a turn at the model has a clock of its own.
    for module in ("batcher", "feeder"):
        monkeypatch.setattr(f"termwise.server.inference.{module}.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("termwise.server.inference.turns.time", SimpleNamespace(monotonic=lambda: clock[0]))

    class Slow(FakeEncoder):
        def tokenize(self, texts: Sequence[str], side: Side) -> list[TokenizedText]:
            clock[0] += 2 * ("a" in texts)
            return super().tokenize(texts, side)

        def encode(
            self, texts: Sequence[TokenizedText], side: Side, turn: AbstractContextManager[None] = NO_TURN
        ) -> list[Expansion]:
            expansions = super().encode(texts, side, turn)
            clock[0] += 3
            return expansions

    gate = Gate()
    async with running(Slow(delay=gate)) as batcher:
        first = asyncio.create_task(words(batcher, "first"))
        await asyncio.to_thread(gate.reached.wait, 30)
        call = asyncio.create_task(batcher.submit(["a"], Side.QUERY, deadline=None, wait=False))
        await settle()
        clock[0] += 5
        gate.opened.set()
        await first
        _, timings = await call
    assert (timings.queue, timings.tokenize, timings.inference) == (8, 2, 3), "it waits for all of the first batch"


async def test_many_callers_get_their_own_answers_from_a_real_encoder(encoder: Encoder) -> None:
    texts = [f"{animal} number {number}" for animal in ("salmon", "horse", "eagle") for number in range(20)]
    expected = [encoder.encode(encoder.tokenize([text], Side.QUERY), Side.QUERY)[0].tokens[:3] for text in texts]
    async with running(encoder, allocations=2, capacity=16) as batcher:
        answers = await asyncio.gather(
            *(batcher.submit([text], Side.QUERY, deadline=time.monotonic() + 60, wait=True) for text in texts)
        )
    assert [expansions[0].tokens[:3] for expansions, _ in answers] == expected


async def expand(batcher: Batcher, text: str, side: Side = Side.DOCUMENT, **options: Any) -> Expansion:
    expansions, _ = await batcher.submit([text], side, **{"deadline": None, "wait": False} | options)
    return expansions[0]


async def test_equal_texts_in_flight_reach_the_model_once() -> None:
    async with held(100) as (batcher, gate, encoder, first):
        joins = asyncio.create_task(words(batcher, "first"))  # it is with the model already
        waiting = [asyncio.create_task(words(batcher, "same", f"other{number}", "same")) for number in range(5)]
        patient = asyncio.create_task(words(batcher, "same", wait=True))
        await settle()
        assert batcher.pending == 6, "what is the same takes room once"
        gate.opened.set()
        assert await joins == await first == [{"first"}]
        for number, call in enumerate(waiting):
            assert await call == [{"same"}, {f"other{number}"}, {"same"}]
        assert await patient == [{"same"}]
        assert sorted(ran(encoder)) == ["first", *(f"other{number}" for number in range(5)), "same"]
        assert (batcher.cache_facts.hits, batcher.cache_facts.misses) == (11, 7)


@pytest.mark.parametrize("leaver", [0, 1])
async def test_a_caller_that_leaves_does_not_take_the_others_answer_along(
    monkeypatch: pytest.MonkeyPatch, leaver: int
) -> None:
    now = time.monotonic()
    # It stands still, so that the late one comes in time.
    for module in ("batcher", "feeder"):
        monkeypatch.setattr(f"termwise.server.inference.{module}.time", SimpleNamespace(monotonic=lambda: now))
    async with held(100) as (batcher, gate, encoder, _):
        pair = [asyncio.create_task(words(batcher, "same")) for _ in range(2)]
        stays = pair[1 - leaver]
        late = asyncio.create_task(words(batcher, "same", deadline=now + 0.02))
        await settle()
        pair[leaver].cancel()
        with pytest.raises(DeadlineExceededError):
            await late
        assert batcher.pending == 1
        gate.opened.set()
        assert await stays == [{"same"}]
        assert ran(encoder) == ["first", "same"]


async def test_a_text_that_all_have_left_never_reaches_the_model_and_may_be_asked_for_again() -> None:
    async with held(100) as (batcher, gate, encoder, _):
        gone = [asyncio.create_task(words(batcher, "same", deadline=time.monotonic() + 60)) for _ in range(3)]
        await settle()
        for call in gone:
            call.cancel()
        await settle()
        assert batcher.pending == 0
        again = asyncio.create_task(words(batcher, "same"))
        await settle()
        gate.opened.set()
        assert await again == [{"same"}]
        assert ran(encoder) == ["first", "same"]


async def test_an_equal_text_in_flight_outlives_the_caller_that_brought_it_to_the_model() -> None:
    async with held(100) as (batcher, gate, encoder, first):
        joins = asyncio.create_task(words(batcher, "first"))
        await settle()
        first.cancel()
        await settle()
        gate.opened.set()
        assert await joins == [{"first"}]
        assert ran(encoder) == ["first"]


async def test_a_waiting_text_is_taken_at_the_first_turn_of_any_of_its_callers() -> None:
    async with held(1000, batch_tokens=20) as (batcher, gate, encoder, _):
        large = asyncio.create_task(words(batcher, *[f"large{number}" for number in range(200)]))
        small = asyncio.create_task(words(batcher, "large199"))
        await settle()
        gate.opened.set()
        await asyncio.gather(large, small)
        assert ran(encoder).index("large199") < 30
        assert len(ran(encoder)) == 201


async def test_an_error_reaches_all_who_wait_for_the_text() -> None:
    gate = Gate()
    encoder = PickyEncoder(delay=gate)
    async with running(encoder, cache_size_bytes=1 << 20) as batcher:
        first = asyncio.create_task(words(batcher, "first"))
        await asyncio.to_thread(gate.reached.wait, 30)
        calls = [asyncio.create_task(words(batcher, text)) for text in ("refused", "refused", "broken", "broken")]
        await settle()
        gate.opened.set()
        await first
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [InvalidArgumentError] * 2 + [RuntimeError] * 2
        # What failed is not remembered.
        with pytest.raises(RuntimeError, match="a shape does not fit"):
            await words(batcher, "broken")


async def test_a_text_that_was_expanded_before_is_answered_from_the_cache_while_the_model_is_busy() -> None:
    gate = Gate()
    gate.opened.set()
    encoder = FakeEncoder(delay=gate)
    async with running(encoder, capacity=2, cache_size_bytes=1 << 20) as batcher:
        long_text = "a text that is longer than those which are their own keys " * 3
        before = [await expand(batcher, text) for text in ("salmon farm", long_text)]
        gate.opened.clear()
        gate.reached.clear()
        busy = asyncio.create_task(words(batcher, "busy"))
        await asyncio.to_thread(gate.reached.wait, 30)
        full = asyncio.create_task(words(batcher, "b", "c"))
        await settle()
        # The queue is full, the model busy, and yet:
        assert [await expand(batcher, text) for text in ("salmon farm", long_text)] == before
        patient, _ = await batcher.submit(["salmon farm"] * 500, Side.DOCUMENT, deadline=None, wait=True)
        assert patient == before[:1] * 500
        with pytest.raises(ResourceExhaustedError):
            await words(batcher, "salmon farm", "new")
        gate.opened.set()
        await asyncio.gather(busy, full)
        assert sum(text.startswith(("salmon", "a text")) for text in ran(encoder)) == 2
        facts = batcher.cache_facts
        assert (facts.hits, facts.misses, facts.size_bytes) == (502, 5, 1 << 20)
        assert 0 < facts.used_bytes < facts.size_bytes


async def test_without_a_cache_nothing_is_kept() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as batcher:
        await words(batcher, "same")
        await words(batcher, "same")
        assert ran(encoder) == ["same", "same"]
        assert batcher.cache_facts.used_bytes == 0


async def test_the_cache_tells_sides_apart_where_the_encoder_does() -> None:
    for prefix, texts in (("query ", ["query same", "same"]), ("", ["same"])):
        encoder = FakeEncoder(query_prefix=prefix)
        async with running(encoder, cache_size_bytes=1 << 20) as batcher:
            for _ in range(2):
                for side in (Side.QUERY, Side.DOCUMENT):
                    await expand(batcher, "same", side)
        assert ran(encoder) == texts


async def test_shared_expansions_cannot_be_changed() -> None:
    async with running(FakeEncoder(), cache_size_bytes=1 << 20) as batcher:
        expansion = await expand(batcher, "salmon")
        with pytest.raises(ValueError, match="read-only"):
            expansion.weights[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            expansion.token_ids[0] = 1


async def test_texts_that_are_cut_alike_are_computed_once_in_a_batch() -> None:
    async with held(100) as (batcher, gate, encoder, _):
        texts = ["Salmon farm", "salmon  FARM", "salmon farm", "farm salmon"]
        call = asyncio.create_task(words(batcher, *texts))
        await settle()
        gate.opened.set()
        assert await call == [{"salmon", "farm"}] * 4
        assert ran(encoder) == ["first", "salmon farm", "farm salmon"]


async def test_a_full_batch_is_prepared_while_the_model_runs_and_less_is_not() -> None:
    prepared = threading.Event()

    class Watched(FakeEncoder):
        def tokenize(self, texts: Sequence[str], side: Side) -> list[TokenizedText]:
            if "next" in texts:
                prepared.set()
            return super().tokenize(texts, side)

    gate = Gate()
    encoder = Watched(delay=gate)
    async with running(encoder, batch_tokens=50) as batcher:
        first = asyncio.create_task(words(batcher, "first"))
        await asyncio.to_thread(gate.reached.wait, 30)
        next_one = asyncio.create_task(words(batcher, "next"))
        await settle()
        assert batcher.pending == 1
        rest = asyncio.create_task(words(batcher, *[f"text{number}" for number in range(20)]))
        assert await asyncio.to_thread(prepared.wait, 30)
        assert batcher.pending < 21
        assert ran(encoder) == [], "the model has one run at a time"
        gate.opened.set()
        await asyncio.gather(first, next_one, rest)


async def test_an_allocation_runs_one_batch_at_a_time() -> None:
    inside = 0
    most = 0
    lock = threading.Lock()

    def enter() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0)
        with lock:
            inside -= 1

    encoder = FakeEncoder(delay=enter)
    async with running(encoder, batch_tokens=1, allocations=2, capacity=1000) as batcher:
        await words(batcher, *[f"text{number}" for number in range(300)])
    assert most <= 2
    assert len(encoder.batches) == 300


@pytest.mark.parametrize("allocations", [1, 3])
async def test_callers_that_come_and_leave_at_random_get_their_own_answers(allocations: int) -> None:
    chance = random.Random(allocations)
    encoder = PickyEncoder()
    async with running(
        encoder, capacity=20, allocations=allocations, batch_tokens=40, cache_size_bytes=8_000
    ) as batcher:

        async def caller() -> None:
            for _ in range(40):
                texts = [f"text{chance.randrange(60)}" for _ in range(chance.randint(1, 12))]
                texts += ["broken"] * (chance.random() < 0.02)
                deadline = time.monotonic() + chance.choice([0.0005, 60, 60])
                call = asyncio.create_task(words(batcher, *texts, wait=chance.random() < 0.5, deadline=deadline))
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                if chance.random() < 0.3:
                    call.cancel()
                (answer,) = await asyncio.gather(call, return_exceptions=True)
                if isinstance(answer, list):
                    assert answer == [{text} for text in texts]
                else:
                    assert isinstance(
                        answer, asyncio.CancelledError | DeadlineExceededError | ResourceExhaustedError | RuntimeError
                    )

        await asyncio.wait_for(asyncio.gather(*(caller() for _ in range(30))), 60)
        assert batcher.pending == 0
        assert batcher.allocation_count == allocations
        # Whatever happened, it still answers.
        assert await words(batcher, "salmon") == [{"salmon"}]
