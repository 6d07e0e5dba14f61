"""The line before the workers, driven at random and held against what must always be true."""

from __future__ import annotations

import asyncio
from itertools import count, takewhile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from termwise.server.inference.admission import Queue
from termwise.server.inference.base import Expansion, Side
from termwise.server.inference.cache import ExpansionCache
from termwise.server.inference.calls import Call, Job

if TYPE_CHECKING:
    from collections.abc import Iterable

# Texts of calls come from a few, so that many are equal.
_TEXTS = st.lists(st.integers(0, 25).map("text {}".format), min_size=1, max_size=12)
_STEP = st.one_of(
    st.tuples(st.just("eager"), _TEXTS),
    st.tuples(st.just("patient"), _TEXTS),
    st.tuples(st.just("stream"), _TEXTS),
    st.tuples(st.just("take"), st.integers(1, 60)),
    st.tuples(st.just("run"), st.integers(0, 40)),
    st.tuples(st.just("fail"), st.integers(0, 40)),
    st.tuples(st.just("end"), st.integers(0, 40)),
    # A worker died: what it left half done is put right.
    st.tuples(st.just("restore"), st.just(0)),
)


def expansion(text: str) -> Expansion:
    return Expansion((text,), np.zeros(1, np.int64), np.ones(1, np.float32), 1, truncated=False)


def answers(call: Call) -> list[str]:
    return [each.tokens[0] for each in call.answer()[0]]


class Model:
    """What the queue is held against: all calls there were, and the jobs that are with workers."""

    def __init__(self, capacity: int, cache_size: int) -> None:
        self.capacity = capacity
        self.queue = Queue(capacity, ExpansionCache(cache_size))
        self.loop = asyncio.new_event_loop()
        self.calls: list[Call] = []
        self.left: list[Call] = []
        self.done: list[Call] = []
        self.taken: list[Job] = []
        self.ran = 0

    def admit(self, texts: list[str], *, patient: bool, group: str = "") -> None:
        side = Side.QUERY if len(self.calls) % 3 else Side.DOCUMENT
        call = Call(texts, side, None, self.loop.create_future(), 0.0, patient, group)
        waiting = self.queue.waiting
        if self.queue.admit(call):
            self.calls.append(call)
        else:
            assert not patient
            assert waiting + len(set(texts)) > self.capacity
            assert self.queue.waiting == waiting

    def take(self, budget: int) -> None:
        jobs = self.queue.take(budget, 0.0)
        assert jobs or not self.queue.waiting
        assert len({job.side for job in jobs}) <= 1
        assert not any(job.is_dead(0.0) for job in jobs)
        self.taken += jobs

    def run(self, job: Job) -> None:
        for each in self.queue.still_wanted([job], 0.0):
            self.queue.complete(each, expansion(each.text), 0.0, 0.0, 0.0)
            self.ran += 1

    def fail(self, job: Job) -> None:
        for call in self.queue.fail(job):
            self.end(call)
        assert not job.callers()

    def end(self, call: Call) -> None:
        if not call.over:
            self.left.append(call)
        self.queue.end(call, 0.0)

    def check(self) -> None:
        for call in self.queue.take_finished():
            assert answers(call) == list(call.texts)
            assert call not in self.done
            assert call not in self.left
            self.done.append(call)
        alive = [call for call in self.calls if not call.over]
        assert 0 <= self.queue.waiting <= self.capacity
        assert not (self.queue.waiting and not alive)
        assert 0 <= self.queue._patient_waiting <= max(1, self.capacity // 2)
        # Jobs in flight are all different.
        flying = [job for job in self.taken if not job.is_dead(0.0)]
        assert len({job.key for job in flying}) == len(flying)
        # First come, first served, within a stream and among calls without one: nobody is looked at while one before it
        # still has texts outside.
        for group in ("", "0", "1"):
            calls = [call for call in alive if call.patient and call.group == group]
            done = takewhile(lambda call: call.seen == len(call.texts), calls)
            assert not any(call.seen for call in calls[len(list(done)) + 1 :])
        assert sum(0 < call.seen < len(call.texts) for call in alive) <= 1

    def finish(self) -> Iterable[Call]:
        while self.queue.waiting or self.taken:
            self.take(50)
            while self.taken:
                self.run(self.taken.pop())
            self.check()
        self.loop.close()
        return (call for call in self.calls if call not in self.left)


@given(
    capacity=st.integers(1, 12),
    cache_size=st.sampled_from([0, 3000, 1 << 20]),
    steps=st.lists(_STEP, max_size=50),
)
@settings(max_examples=300, deadline=None)
def test_queue_keeps_its_promises(capacity: int, cache_size: int, steps: list[tuple[str, list[str] | int]]) -> None:
    model = Model(capacity, cache_size)
    for step, what in steps:
        if isinstance(what, list):
            # Of the streams' calls, one and the next but one are of one stream.
            model.admit(what, patient=step != "eager", group=f"{len(model.calls) % 2}" if step == "stream" else "")
        elif step == "take":
            model.take(what)
        elif step in {"run", "fail"} and model.taken:
            getattr(model, step)(model.taken.pop(what % len(model.taken)))
        elif step == "restore":
            model.queue.restore_turns()
        elif step == "end" and model.calls:
            model.end(model.calls[what % len(model.calls)])
        model.check()
    assert all(call in model.done for call in model.finish()), "everybody who stayed is answered"
    tally = model.queue.tally
    assert tally.arrivals == sum(call.seen for call in model.calls)
    assert tally.answered == sum(len(call.texts) - call.left for call in model.calls)
    assert tally.answered - tally.hits == model.ran


@pytest.mark.parametrize("capacity", [16, 64, 1024])
@pytest.mark.parametrize(("budget", "unary"), [(30, 0), (100, 0), (60, 12)])
def test_streams_get_equal_shares_in_order_whatever_the_windows_of_calls_that_they_keep(
    capacity: int, budget: int, unary: int
) -> None:
    queue = Queue(capacity)
    loop = asyncio.new_event_loop()
    windows = {"wide": 100, "unary": unary, "narrow": 50}
    numbers = count()
    ran: dict[str, list[int]] = {name: [] for name in windows}

    def send(name: str) -> None:
        text, patient = f"{name} {next(numbers)}", name != "unary"
        queue.admit(Call([text], Side.QUERY, None, loop.create_future(), 0.0, patient, name if patient else ""))

    for name, window in windows.items():
        for _ in range(window):
            send(name)
    for turn in range(150):
        if turn == 50:
            # What they began with is done.
            ran = {name: [] for name in windows}
        for job in queue.take(budget, 0.0):
            name, number = job.text.split()
            ran[name].append(int(number))
            queue.complete(job, expansion(job.text), 0.0, 0.0, 0.0)
        for call in queue.take_finished():
            send(call.texts[0].split()[0])
    loop.close()
    assert len(ran["narrow"]) == pytest.approx(len(ran["wide"]), rel=0.05)
    assert len(ran["unary"]) >= unary
    assert all(order == sorted(order) for order in ran.values())
