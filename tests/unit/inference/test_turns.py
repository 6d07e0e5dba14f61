"""Turns at the model."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.inference.turns import Turn, Turns


def make(turns: Turns) -> Turn:
    with turns.lock:
        return turns.make()


def started(turn: Turn, name: str, order: list[str]) -> threading.Thread:
    def run() -> None:
        with turn:
            order.append(name)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_turns_come_in_the_order_in_which_they_were_made_whoever_asks_first() -> None:
    turns = Turns(threading.Lock(), 1)
    order: list[str] = []
    held, second, third = make(turns), make(turns), make(turns)
    held.take()
    eager = started(third, "third", order)
    held.give_back()
    again = make(turns)
    late = [started(again, "again", order), started(second, "second", order)]

    for thread in (eager, *late):
        thread.join()
    assert order == ["second", "third", "again"]


def test_one_that_gives_back_what_it_never_took_lets_the_next_have_it() -> None:
    turns = Turns(threading.Lock(), 1)
    failed, second = make(turns), make(turns)
    failed.give_back()
    failed.give_back()
    second.take()

    third, fourth = make(turns), make(turns)
    third.give_back()
    second.give_back()
    fourth.take()


def test_as_many_compute_at_a_time_as_there_are_turns() -> None:
    turns = Turns(threading.Lock(), 2)
    order: list[str] = []
    one, two, three = make(turns), make(turns), make(turns)
    one.take()
    two.take()
    thread = started(three, "three", order)
    assert not three.taken

    two.give_back()
    thread.join()
    assert order == ["three"]


def test_a_turn_is_taken_again_after_those_who_wait() -> None:
    turns = Turns(threading.Lock(), 1)
    order: list[str] = []
    first, second = make(turns), make(turns)
    with first:
        thread = started(second, "second", order)
    with first:
        order.append("first again")
    thread.join()

    assert order == ["second", "first again"]
    assert first.waited > 0
    assert first.held > 0


@pytest.mark.parametrize("number", [1, 3])
def test_never_more_than_that_many_compute(number: int) -> None:
    turns = Turns(threading.Lock(), number)
    inside = most = 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with make(turns):
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most <= number
    assert inside == 0


def test_more_turns_let_those_in_line_compute_and_fewer_let_those_who_compute_end() -> None:
    turns = Turns(threading.Lock(), 1)
    line = [make(turns) for _ in range(5)]
    with turns.lock:
        turns.resize(3)
    assert [turn.taken for turn in line] == [True, True, True, False, False]
    with turns.lock:
        assert turns.running == 3
        turns.resize(1)
    line[1].give_back()
    line[0].give_back()
    assert [turn.taken for turn in line[2:]] == [True, False, False]
    line[2].give_back()
    assert [turn.taken for turn in line[3:]] == [True, False]
    for turn in line[3:]:
        turn.give_back()
    with turns.lock:
        assert turns.running == 0


@given(
    number=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from(["make", "leave", "resize"]), st.integers(0, 9)), max_size=60),
)
def test_as_many_turns_as_there_may_be_are_taken_in_order_whatever_their_number(
    number: int, steps: list[tuple[str, int]]
) -> None:
    heard = []
    turns = Turns(threading.Lock(), number, lambda: heard.append(turns.running))
    line: list[Turn] = []
    for step, what in steps:
        before = sum(turn.taken for turn in line)
        if step == "make":
            line.append(make(turns))
        elif step == "leave" and line:
            line.pop(what % len(line)).give_back()
            before = min(before, sum(turn.taken for turn in line))
        elif step == "resize":
            number = 1 + what % 4
            with turns.lock:
                turns.resize(number)
        taken = sum(turn.taken for turn in line)
        # Nobody is robbed of a turn, and nobody gets one beyond the number.
        assert taken == max(before, min(number, len(line)))
        assert all(turn.taken for turn in line[:taken])
        if step != "resize" and heard:
            assert heard[-1] == turns.running
