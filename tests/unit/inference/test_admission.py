"""The line before the workers, driven at random and held against what must always be true."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from termwise.server.inference.admission import Call, Queue
from termwise.server.inference.base import Side

_STEP = st.one_of(
    st.tuples(st.just("eager"), st.integers(1, 9)),
    st.tuples(st.just("patient"), st.integers(1, 30)),
    st.tuples(st.just("take"), st.integers(1, 60)),
    st.tuples(st.just("end"), st.integers(0, 40)),
)


def make(future: asyncio.Future[None], number: int, texts: int, *, patient: bool) -> Call:
    return Call(
        texts=[f"{number} {position}" for position in range(texts)],
        side=Side.QUERY if number % 3 else Side.DOCUMENT,
        deadline=None,
        future=future,
        since=0.0,
        left=texts,
        results=[None] * texts,
        patient=patient,
    )


@given(capacity=st.integers(1, 12), steps=st.lists(_STEP, max_size=40))
def test_queue_keeps_its_promises(capacity: int, steps: list[tuple[str, int]]) -> None:
    loop = asyncio.new_event_loop()
    queue = Queue(capacity)
    calls: list[Call] = []
    taken: list[str] = []
    for step, number in steps:
        if step in {"eager", "patient"}:
            call = make(loop.create_future(), len(calls), number, patient=step == "patient")
            room = capacity - queue.waiting
            admitted = queue.admit(call)
            assert admitted == (call.patient or number <= room)
            if admitted:
                calls.append(call)
        elif step == "take":
            entries = queue.take(number, 0.0)
            assert len({entry.call.side for entry in entries}) <= 1
            assert not any(entry.call.over for entry in entries)
            taken += [entry.text for entry in entries]
        elif calls:
            queue.end(calls[number % len(calls)])
        alive = [call for call in calls if not call.over]
        assert queue.waiting == sum(call.admitted - call.taken for call in alive) <= capacity
        patient = [call for call in alive if call.patient]
        assert sum(call.admitted - call.taken for call in patient) <= max(1, capacity // 2)
        # First come, first served: nobody is admitted while one before it still has texts outside.
        outside = [call for call in patient if call.admitted < len(call.texts)]
        assert not any(call.admitted for call in outside[1:])
    while entries := queue.take(50, 0.0):
        taken += [entry.text for entry in entries]
    assert queue.waiting == 0
    assert len(taken) == len(set(taken))
    expected = {text for call in calls if not call.over for text in call.texts}
    assert expected <= set(taken)
    loop.close()
