"""Adaptive allocations against Elasticsearch's rule, step by step, and against loads that are known."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from termwise.server.inference.statistics import StatisticsView
from termwise.server.models.requests import AdaptiveAllocations
from termwise.server.models.scaling import IDLE_SECONDS, SAMPLE_SECONDS, Estimate, Scaler, wanted_allocations

LOADS = st.floats(0, 200)
NUMBERS = st.integers(1, 64)
LIMITS = st.builds(
    lambda fewest, more: AdaptiveAllocations(fewest, None if more is None else max(1, fewest + more)),
    st.integers(0, 40),
    st.none() | st.integers(0, 40),
)
WIDE = AdaptiveAllocations(0, 1_000)


def by_steps(at_least: float, at_most: float, current: int) -> int:
    """Follow the rule one worker at a time."""
    while at_least / current > 0.9:
        current += 1
    while current > 1 and at_most / (current - 1) < 0.85:
        current -= 1
    return current


@given(LOADS, LOADS, NUMBERS, LIMITS)
def test_the_number_is_that_of_the_rule_step_by_step(
    one: float, other: float, current: int, limits: AdaptiveAllocations
) -> None:
    at_least, at_most = sorted((one, other))
    for load, threshold in ((at_least, 0.9), (at_most, 0.85)):
        # On the threshold itself, rounding decides.
        assume(math.isclose(load / threshold, round(load / threshold), rel_tol=1e-9) is False or load == 0)
    expected = min(max(by_steps(at_least, at_most, current), limits.fewest), limits.ceiling)
    assert wanted_allocations(at_least, at_most, current, limits) == expected


@given(LOADS, LOADS, NUMBERS, LIMITS)
def test_the_number_stays_within_the_limits(
    one: float, other: float, current: int, limits: AdaptiveAllocations
) -> None:
    at_least, at_most = sorted((one, other))
    wanted = wanted_allocations(at_least, at_most, current, limits)
    assert limits.fewest <= wanted <= (32 if limits.most is None and limits.fewest <= 32 else limits.ceiling)
    assert wanted >= 1


@given(LOADS, LOADS, NUMBERS, LIMITS)
def test_more_load_never_wants_fewer(one: float, other: float, current: int, limits: AdaptiveAllocations) -> None:
    less, more = sorted((one, other))
    assert wanted_allocations(less, less, current, limits) <= wanted_allocations(more, more, current, limits)


@given(LOADS, NUMBERS, LIMITS)
def test_a_constant_load_is_settled_by_one_step(load: float, current: int, limits: AdaptiveAllocations) -> None:
    wanted = wanted_allocations(load, load, current, limits)
    assert wanted_allocations(load, load, max(1, wanted), limits) == max(1, wanted)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(1e-6, 1e6)), min_size=1, max_size=50),
)
def test_an_estimate_lies_among_its_samples(samples: list[tuple[float, float]]) -> None:
    estimate = Estimate()
    for sample, variance in samples:
        estimate.add(sample, variance)
    values = [sample for sample, _ in samples]
    slack = 1e-6 * max(values)
    assert min(values) - slack <= estimate.value <= max(values) + slack
    assert 0 <= estimate.lower <= estimate.value + slack
    assert estimate.value - slack <= estimate.upper


class Traffic:
    """A deployment under a load that the test knows: texts arrive by chance, each takes about so long."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.now = 1_000.0
        self.scaler = Scaler(self.now)
        self.arrivals = 0
        self.busy = 0.0
        self.current = 1

    def pass_by(self, seconds: float, rate: float, text_seconds: float, limits: AdaptiveAllocations) -> list[int]:
        """Let time pass, and give the number of workers after each sample."""
        numbers = []
        for _ in range(int(seconds / SAMPLE_SECONDS)):
            self.now += SAMPLE_SECONDS
            texts = self._poisson(rate * SAMPLE_SECONDS)
            self.arrivals += texts
            self.busy += sum(self.random.expovariate(1 / text_seconds) for _ in range(texts))
            figures = StatisticsView(
                inference_count=self.arrivals, arrivals=self.arrivals, busy_seconds=self.busy, rejected_count=0
            )
            self.scaler.sample(self.now, figures, 0)
            self.current = self.scaler.wanted(self.now, self.current, limits)
            numbers.append(self.current)
        return numbers

    def _poisson(self, mean: float) -> int:
        """Count the events of a unit of time (by their distances)."""
        count, passed = 0, self.random.expovariate(1.0)
        while passed < mean:
            count += 1
            passed += self.random.expovariate(1.0)
        return count


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rate", "text_seconds", "enough"), [(1.0, 1.0, {2, 3}), (30.0, 0.1, {4}), (5.0, 0.01, {1})])
def test_chance_alone_moves_nothing(rate: float, text_seconds: float, enough: set[int], seed: int) -> None:
    traffic = Traffic(seed)
    traffic.pass_by(900, rate, text_seconds, WIDE)
    numbers = traffic.pass_by(4 * 3600, rate, text_seconds, WIDE)
    assert set(numbers) <= enough
    assert sum(before != after for before, after in itertools.pairwise(numbers)) <= 2


@pytest.mark.parametrize(("before", "after"), [(2.0, 60.0), (60.0, 2.0)])
def test_a_change_is_followed_within_a_minute(before: float, after: float) -> None:
    traffic = Traffic()
    traffic.pass_by(1_800, before, 0.1, WIDE)
    assert traffic.pass_by(60, after, 0.1, WIDE)[-1] == pytest.approx(after * 0.1 / 0.9, abs=1.5)


def test_the_limits_hold_whatever_the_load() -> None:
    limits = AdaptiveAllocations(2, 5)
    traffic = Traffic()
    assert set(traffic.pass_by(300, 200.0, 0.1, limits)[5:]) == {5}
    assert set(traffic.pass_by(600, 0.1, 0.01, limits)[30:]) == {2}
    assert set(traffic.pass_by(2 * IDLE_SECONDS, 0.0, 0.1, limits)) == {2}


def test_without_a_limit_of_its_own_it_grows_to_32() -> None:
    assert Traffic().pass_by(300, 2_000.0, 0.1, AdaptiveAllocations())[-1] == 32


def test_fifteen_minutes_without_a_text_end_the_last_worker_and_none_comes_by_itself() -> None:
    traffic = Traffic()
    traffic.pass_by(600, 2.0, 0.1, AdaptiveAllocations(0, 4))
    numbers = traffic.pass_by(IDLE_SECONDS - SAMPLE_SECONDS, 0.0, 0.1, AdaptiveAllocations(0, 4))
    assert set(numbers) == {1}
    assert set(traffic.pass_by(600, 0.0, 0.1, AdaptiveAllocations(0, 4))) == {0}


def test_texts_that_wait_keep_the_last_worker() -> None:
    scaler = Scaler(0.0)
    for now in range(10, 2_000, 10):
        scaler.sample(now, StatisticsView(), 1)
    assert scaler.wanted(2_000, 1, AdaptiveAllocations()) == 1


def test_texts_that_found_no_room_are_a_load() -> None:
    scaler = Scaler(0.0)
    for sample in range(1, 20):
        figures = StatisticsView(
            inference_count=100 * sample, arrivals=100 * sample, rejected_count=300 * sample, busy_seconds=10.0 * sample
        )
        scaler.sample(10.0 * sample, figures, 0)
    assert scaler.load == pytest.approx(4.0)
    assert scaler.wanted(190.0, 1, WIDE) >= 4
