"""A deployment's figures: against a slow count of the same events, and as a batcher gathers them."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from termwise.server.errors import DeadlineExceededError, InvalidArgumentError, ResourceExhaustedError, TermwiseError
from termwise.server.inference.base import NO_TURN, Expansion, Side, TokenizedText
from termwise.server.inference.batcher import Batcher
from termwise.server.inference.fake import FakeEncoder
from termwise.server.inference.statistics import Statistics, StatisticsView, Tally

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager


class Event(NamedTuple):
    """Seconds since the event before, and what happened."""

    gap: float
    answered: int
    hits: int
    seconds: float


_EVENT = st.builds(
    lambda gap, answered, share, quarters: Event(gap, answered, int(answered * share), quarters / 4),
    st.one_of(st.floats(0, 3), st.sampled_from([0.0, 0.25, 59.0, 59.75, 60.0, 60.25, 3600.0])),
    st.integers(0, 50),
    st.floats(0, 1),
    st.integers(0, 8),
)


def reference(events: list[tuple[float, Event]], now: float) -> StatisticsView:
    """Count every event anew, second by second."""

    def minute(moment: float) -> list[Event]:
        return [event for at, event in events if int(moment) - 60 < int(at) <= int(moment)]

    def mean(seconds: float, count: int) -> float:
        return seconds / count if count else 0.0

    everything = [event for _, event in events]
    answered, hits = sum(event.answered for event in everything), sum(event.hits for event in everything)
    # What failed took the model's time as well, but is no answer.
    seconds = sum(event.seconds for event in everything if event.answered)
    last = minute(now)
    return StatisticsView(
        inference_count=answered,
        cache_hit_count=hits,
        cache_hit_count_last_minute=sum(event.hits for event in last),
        average_inference_seconds=mean(seconds, answered),
        average_inference_seconds_last_minute=mean(
            sum(event.seconds for event in last if event.answered), sum(event.answered for event in last)
        ),
        average_inference_seconds_excluding_cache_hits=mean(seconds, answered - hits),
        throughput_last_minute=sum(event.answered for event in last),
        peak_throughput_per_minute=max(
            (
                sum(event.answered for at, event in events[: place + 1] if int(moment) - 60 < int(at))
                for place, (moment, _) in enumerate(events)
            ),
            default=0,
        ),
        busy_seconds=sum(event.seconds for event in everything),
    )


@given(events=st.lists(_EVENT, max_size=40), rest=st.floats(0, 100))
@settings(max_examples=200, deadline=None)
def test_figures_are_those_of_a_slow_count(events: list[Event], rest: float) -> None:
    clock = [1000.0]
    statistics = Statistics(clock=lambda: clock[0])
    happened = []
    for event in events:
        clock[0] += event.gap
        statistics.add(Tally(answered=event.answered, hits=event.hits), clock[0], event.seconds)
        happened.append((clock[0], event))
        assert statistics.read() == reference(happened, clock[0])
    assert statistics.read(clock[0] + rest) == reference(happened, clock[0] + rest)


def test_nothing_is_counted_twice_and_arrivals_are_an_access() -> None:
    statistics = Statistics(clock=lambda: 20.0, wall=lambda: 1_700_000_000.5)
    tally = Tally(arrivals=3, errors=2, timeouts=4, rejected=5)
    statistics.add(tally, 10.0)
    statistics.add(tally, 15.0)

    view = statistics.read()
    assert (view.arrivals, view.error_count, view.timeout_count, view.rejected_count) == (3, 2, 4, 5)
    assert view.last_access == datetime(2023, 11, 14, 22, 13, 10, 500_000, UTC)
    assert Statistics().read() == StatisticsView()


class Broken(FakeEncoder):
    """Fails on "broken", and refuses "refused"."""

    def tokenize(self, texts: Sequence[str], side: Side) -> list[TokenizedText]:
        if "refused" in texts:
            raise InvalidArgumentError("A text is too long.")
        return super().tokenize(texts, side)

    def encode(
        self, texts: Sequence[TokenizedText], side: Side, turn: AbstractContextManager[None] = NO_TURN
    ) -> list[Expansion]:
        expansions = super().encode(texts, side, turn)
        if any("broken" in expansion.tokens for expansion in expansions):
            raise RuntimeError
        return expansions


class Running:
    """A batcher with statistics, whose model can be held."""

    def __init__(self, *, cache_size_bytes: int = 1 << 20, statistics: Statistics | None = None) -> None:
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.statistics = Statistics() if statistics is None else statistics
        self.batcher = Batcher(
            Broken(delay=self._delay),
            allocations=1,
            threads=1,
            queue_capacity=4,
            cache_size_bytes=cache_size_bytes,
            statistics=self.statistics,
        )

    def _delay(self) -> None:
        self.reached.set()
        assert self.open.wait(30)

    async def __aenter__(self) -> Self:
        self.batcher.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.open.set()
        await self.batcher.close()

    async def ask(self, *texts: str, deadline: float | None = None, wait: bool = False) -> None:
        await self.batcher.submit(texts, Side.DOCUMENT, deadline=deadline, wait=wait)

    async def hold(self, *texts: str, deadline: float | None = None) -> asyncio.Task[None]:
        """Hold the model with a batch in hand."""
        self.open.clear()
        self.reached.clear()
        task = asyncio.create_task(self.ask(*texts, deadline=deadline))
        await asyncio.to_thread(self.reached.wait, 30)
        return task

    @property
    def view(self) -> StatisticsView:
        return self.statistics.read()


async def test_three_requests_of_which_one_was_asked_before_are_three_inferences_and_a_hit() -> None:
    # As Elasticsearch's own test of a deployment's cache has it.
    async with Running() as running:
        for text in ("words", "are", "words"):
            await running.ask(text)
        assert (running.view.inference_count, running.view.cache_hit_count) == (3, 1)
        assert (running.view.cache_hit_count_last_minute, running.view.throughput_last_minute) == (1, 3)
        assert running.view.cache_miss_count == 2
        running.batcher.clear_cache()
        await running.ask("words")
        assert (running.view.inference_count, running.view.cache_hit_count) == (4, 1)
        assert running.batcher.cache_facts.used_bytes > 0


async def test_a_cleared_cache_holds_nothing() -> None:
    async with Running() as running:
        await running.ask("words")
        running.batcher.clear_cache()
        assert running.batcher.cache_facts.used_bytes == 0


async def test_equal_texts_in_flight_count_as_hits_once_they_are_answered() -> None:
    async with Running(cache_size_bytes=0) as running:
        first = await running.hold("same", "same", "other")
        second = asyncio.create_task(running.ask("same"))
        await asyncio.sleep(0)
        assert (running.view.arrivals, running.view.inference_count) == (4, 0)
        running.open.set()
        await asyncio.gather(first, second)
        assert (running.view.inference_count, running.view.cache_hit_count) == (4, 2)


async def test_averages_share_the_time_of_the_model() -> None:
    async with Running() as running:
        await running.ask("a", "b")
        await running.ask("a", "b")
        view = running.view
    assert view.average_inference_seconds == pytest.approx(view.busy_seconds / 4)
    assert view.average_inference_seconds_excluding_cache_hits == pytest.approx(view.busy_seconds / 2)
    assert view.busy_seconds > 0


async def test_texts_that_the_model_fails_on_are_errors_and_refused_ones_are_not() -> None:
    async with Running() as running:
        with pytest.raises(RuntimeError):
            await running.ask("broken", "beside it")
        with pytest.raises(InvalidArgumentError):
            await running.ask("refused")
        assert (running.view.error_count, running.view.inference_count) == (2, 0)
        assert running.view.busy_seconds > 0
        assert running.view.average_inference_seconds == 0


async def test_texts_that_come_too_late_are_timeouts_wherever_they_were() -> None:
    async with Running() as running:
        with_model = await running.hold("with the model", deadline=time.monotonic() + 0.03)
        waiting = asyncio.create_task(running.ask("waits", "too", deadline=time.monotonic() + 0.02))
        before = asyncio.create_task(running.ask("not even admitted", deadline=time.monotonic() - 1))
        outcomes = await asyncio.gather(with_model, waiting, before, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [DeadlineExceededError] * 3
        assert running.view.timeout_count == 4, "one of the calls has two texts"


async def test_a_call_that_is_cancelled_at_its_deadline_is_late_and_one_that_leaves_before_is_not() -> None:
    async with Running() as running:
        await running.hold("held")
        late = asyncio.create_task(running.ask("late", deadline=time.monotonic() + 0.005))
        leaves = asyncio.create_task(running.ask("leaves", deadline=time.monotonic() + 60))
        await asyncio.sleep(0)
        for call in (late, leaves):
            call.cancel()
        await asyncio.gather(late, leaves, return_exceptions=True)
        assert running.view.timeout_count == 1


async def test_texts_for_which_there_is_no_room_are_rejected() -> None:
    async with Running() as running:
        held = await running.hold("held")
        waiting = asyncio.create_task(running.ask("b", "c"))
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError):
            await running.ask("d", "e", "f")
        assert (running.view.rejected_count, running.view.arrivals) == (3, 3)
        running.open.set()
        await asyncio.gather(held, waiting)


async def test_figures_outlive_a_batcher() -> None:
    statistics = Statistics()
    for text in ("a", "b"):
        async with Running(statistics=statistics) as running:
            await running.ask(text, "c")
    assert statistics.read().inference_count == 4


async def test_every_text_is_counted_once_whatever_becomes_of_it() -> None:
    async with Running(cache_size_bytes=4_000) as running:
        answered = failed = 0

        async def caller(number: int) -> None:
            nonlocal answered, failed
            for place in range(30):
                texts = [f"text {(number * place + each) % 40}" for each in range(1 + place % 5)]
                texts += ["broken"] * (place % 11 == 0)
                try:
                    await running.ask(*texts, wait=True)
                except (RuntimeError, TermwiseError):
                    failed += len(texts)
                else:
                    answered += len(texts)

        await asyncio.gather(*(caller(number) for number in range(8)))
        view = running.view
        # Texts of a call that failed may have been answered before it did.
        assert answered <= view.inference_count <= answered + failed
        assert view.inference_count + view.error_count <= view.arrivals <= answered + failed
        assert view.cache_hit_count + view.cache_miss_count == view.inference_count
        assert running.batcher.pending == 0
