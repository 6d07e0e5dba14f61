"""Deployments that change while they run: more and fewer allocations, sleep, and workers that die."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.context import RequestContext
from termwise.server.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from termwise.server.inference import crew
from termwise.server.inference.fake import FakeEncoder
from termwise.server.models.requests import (
    AdaptiveAllocations,
    DeploymentUpdate,
    DeploymentWait,
    ModelWait,
    NewDeployment,
    NewModel,
)
from termwise.server.models.runner import DeploymentState
from termwise.server.models.scaling import IDLE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from termwise.server.metadata.store import MetadataStore

CONTEXT = RequestContext("test")
SLEEPER = NewDeployment("mine", adaptive=AdaptiveAllocations(0, 3))


class Clock:
    """Monotonic seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ready(live: Callable[..., Any], clock: Clock, source: Path) -> Any:
    """Give a life in which the model "mine" is READY, and whose time stands still."""
    life = live(clock=clock, retry_seconds=0.001)
    await life.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    return life


async def expand(
    life: Any, *texts: str, context: RequestContext = CONTEXT, wait: bool = False
) -> list[tuple[str, ...]]:
    answer = await life.deployments.expand(context, "mine", texts or ["salmon"], None, wait=wait)
    return [each.tokens for each in answer.expansions]


async def sleep(life: Any, clock: Clock) -> None:
    """Let a deployment fall asleep."""
    for seconds in (10, IDLE_SECONDS):  # the first look sees what came last
        clock.now += seconds
        await life.deployments.scale()
    await until(lambda: life.deployments.get("mine").allocation_count == 0)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    pytest.fail("it never came")


def workers() -> list[str]:
    """Give the names of the threads that encode; those of this test, since all others have stopped theirs."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("encoder-")]


def hold(entered: threading.Event, go: threading.Event) -> Callable[[], FakeEncoder]:
    def wait() -> None:
        entered.set()
        assert go.wait(30)

    return lambda: FakeEncoder(delay=wait)


async def test_an_update_changes_the_number_at_once_and_for_good(ready: Any, store: MetadataStore) -> None:
    await ready.deployments.start(CONTEXT, NewDeployment("mine", number_of_allocations=2))
    changed = await ready.deployments.update("mine", DeploymentUpdate(5))
    assert changed.record.number_of_allocations == 5
    await until(lambda: ready.deployments.get("mine").allocation_count == 5)
    assert store.get_deployment("mine") == changed.record
    await ready.deployments.update("mine", DeploymentUpdate(1))
    await until(lambda: ready.deployments.get("mine").allocation_count == 1)
    assert ready.deployments.get("mine").peak_allocation_count == 5
    assert await expand(ready) == [("salmon",)]


async def test_no_call_is_lost_while_a_deployment_is_updated(ready: Any) -> None:
    new = NewDeployment("mine", queue_capacity=99_999, cache_size_bytes=0)
    await ready.deployments.start(CONTEXT, new)
    over = False

    async def caller(number: int) -> int:
        calls = 0
        while not over:
            word = f"w{number}x{calls}"
            assert await expand(ready, word) == [(word,)]
            calls += 1
        return calls

    callers = [asyncio.create_task(caller(number)) for number in range(20)]
    for allocations in (4, 1, 7, 2, 3, 1, 6, 1):
        await ready.deployments.update("mine", DeploymentUpdate(allocations))
        for _ in range(20):
            await asyncio.sleep(0)
    over = True
    assert sum(await asyncio.gather(*callers)) > 20


async def test_what_waits_when_a_deployment_shrinks_is_answered(ready: Any) -> None:
    entered, go = threading.Event(), threading.Event()
    ready.load = hold(entered, go)
    await ready.deployments.start(CONTEXT, NewDeployment("mine", number_of_allocations=3))
    calls = [asyncio.create_task(expand(ready, f"w{number}")) for number in range(30)]
    assert await asyncio.to_thread(entered.wait, 30)
    await ready.deployments.update("mine", DeploymentUpdate(1))
    go.set()
    assert await asyncio.gather(*calls) == [[(f"w{number}",)] for number in range(30)]


async def test_an_update_while_starting_is_what_starts(life: Any) -> None:
    await life.catalog.put(CONTEXT, NewModel("mine", "held://x"))
    await life.deployments.start(CONTEXT, NewDeployment("mine"), DeploymentWait.STARTING)
    assert (await life.deployments.update("mine", DeploymentUpdate(3))).state is DeploymentState.STARTING
    life.repository.go.set()
    await life.deployments.settled()
    await until(lambda: life.deployments.get("mine").allocation_count == 3)


async def test_adaptive_allocations_begin_and_end_by_an_update(ready: Any) -> None:
    await ready.deployments.start(CONTEXT, NewDeployment("mine", number_of_allocations=2))
    changed = await ready.deployments.update("mine", DeploymentUpdate(adaptive=AdaptiveAllocations(3, 5)))
    assert (changed.record.number_of_allocations, changed.adaptive) == (3, AdaptiveAllocations(3, 5))
    changed = await ready.deployments.update("mine", DeploymentUpdate(4))
    assert (changed.record.number_of_allocations, changed.adaptive) == (4, None)


@pytest.mark.parametrize(
    ("update", "field"),
    [
        (DeploymentUpdate(), "number_of_allocations"),
        (DeploymentUpdate(0), "number_of_allocations"),
        (DeploymentUpdate(1, AdaptiveAllocations()), "number_of_allocations"),
        (DeploymentUpdate(adaptive=AdaptiveAllocations(-1)), "adaptive_allocations.min_number_of_allocations"),
        (DeploymentUpdate(adaptive=AdaptiveAllocations(0, 0)), "adaptive_allocations.max_number_of_allocations"),
        (DeploymentUpdate(adaptive=AdaptiveAllocations(3, 2)), "adaptive_allocations.max_number_of_allocations"),
    ],
)
async def test_a_bad_update_names_its_field(ready: Any, update: DeploymentUpdate, field: str) -> None:
    await ready.deployments.start(CONTEXT, NewDeployment("mine"))
    with pytest.raises(InvalidArgumentError) as caught:
        await ready.deployments.update("mine", update)
    assert caught.value.violations[0].field == field


async def test_low_priority_keeps_its_one_allocation(ready: Any) -> None:
    deployment = await ready.deployments.start(CONTEXT, NewDeployment("mine", priority="low"))
    assert deployment.record.priority == "low"
    for update in (DeploymentUpdate(2), DeploymentUpdate(adaptive=AdaptiveAllocations())):
        with pytest.raises(FailedPreconditionError, match="low priority"):
            await ready.deployments.update("mine", update)
    await ready.deployments.update("mine", DeploymentUpdate(1))
    assert await expand(ready) == [("salmon",)]
    with pytest.raises(NotFoundError):
        await ready.deployments.update("other", DeploymentUpdate(1))


async def test_load_makes_a_deployment_grow_and_its_end_makes_it_shrink(ready: Any, clock: Clock) -> None:
    busy = 0.004
    ready.load = lambda: FakeEncoder(delay=lambda: time.sleep(busy))
    await ready.deployments.start(
        CONTEXT, NewDeployment("mine", cache_size_bytes=0, adaptive=AdaptiveAllocations(1, 4))
    )
    for sample in range(5):
        for text in range(5):
            await expand(ready, f"w{sample}x{text}")
        clock.now += 0.01
        await ready.deployments.scale()
    assert ready.deployments.get("mine").record.number_of_allocations > 1
    for _ in range(10):
        clock.now += 10
        await ready.deployments.scale()
    assert ready.deployments.get("mine").record.number_of_allocations == 1


async def test_an_idle_deployment_sleeps_and_the_next_text_wakes_it(ready: Any, clock: Clock) -> None:
    await ready.deployments.start(CONTEXT, SLEEPER)
    assert await expand(ready) == [("salmon",)]
    await sleep(ready, clock)
    asleep = ready.deployments.get("mine")
    assert (asleep.state, asleep.allocation_count, asleep.memory) == (DeploymentState.STARTED, 0, None)
    assert ready.health[-1] == ("mine", True)
    answers = await asyncio.gather(*(expand(ready, f"w{number}") for number in range(10)))
    assert answers == [[(f"w{number}",)] for number in range(10)]
    assert len(ready.encoders) == 2  # it was let go, and loaded once
    awake = ready.deployments.get("mine")
    assert (awake.allocation_count, awake.statistics.inference_count) == (1, 11)
    assert awake.memory is not None


async def test_a_full_disk_keeps_a_deployment_as_it_is_until_there_is_room(
    ready: Any, clock: Clock, small_disk: Callable[[int], Any]
) -> None:
    await ready.deployments.start(CONTEXT, SLEEPER)
    clock.now += 10
    await ready.deployments.scale()
    clock.now += IDLE_SECONDS
    with small_disk(16_384):
        await asyncio.wait_for(ready.deployments.scale(), 30)
        assert ready.deployments.get("mine").allocation_count == 1
    clock.now += 10
    await ready.deployments.scale()
    await until(lambda: ready.deployments.get("mine").allocation_count == 0)


async def test_a_deployment_that_may_not_sleep_stays_awake(ready: Any, clock: Clock) -> None:
    await ready.deployments.start(CONTEXT, NewDeployment("mine", adaptive=AdaptiveAllocations(1, 3)))
    clock.now += 2 * IDLE_SECONDS
    await ready.deployments.scale()
    assert ready.deployments.get("mine").allocation_count == 1


async def test_a_caller_that_cannot_wait_for_the_waking_is_told_and_it_goes_on(ready: Any, clock: Clock) -> None:
    await ready.deployments.start(CONTEXT, SLEEPER)
    await sleep(ready, clock)
    go = threading.Event()

    def load() -> FakeEncoder:
        assert go.wait(30)
        return FakeEncoder()

    ready.load = load
    with pytest.raises(DeadlineExceededError, match="still waking"):
        await expand(ready, context=RequestContext("hurried", deadline=time.monotonic() + 0.05))
    patient = asyncio.create_task(expand(ready))
    go.set()
    assert await patient == [("salmon",)]
    assert len(ready.encoders) == 2


async def test_a_sleeper_that_cannot_be_loaded_any_more_says_why(ready: Any, clock: Clock) -> None:
    await ready.deployments.start(CONTEXT, SLEEPER)
    await sleep(ready, clock)

    def load() -> FakeEncoder:
        message = "The files are gone."
        raise FailedPreconditionError(message)

    ready.load = load
    with pytest.raises(FailedPreconditionError, match="The files are gone"):
        await expand(ready)
    assert ready.deployments.get("mine").state is DeploymentState.FAILED


async def test_a_sleeper_is_updated_cleared_and_stopped(ready: Any, clock: Clock) -> None:
    await ready.deployments.start(CONTEXT, SLEEPER)
    await sleep(ready, clock)
    ready.deployments.clear_cache("mine")
    changed = await ready.deployments.update("mine", DeploymentUpdate(adaptive=AdaptiveAllocations(0, 2)))
    assert changed.allocation_count == 0
    await ready.deployments.update("mine", DeploymentUpdate(2))
    await until(lambda: ready.deployments.get("mine").allocation_count == 2)
    await ready.deployments.update("mine", DeploymentUpdate(adaptive=AdaptiveAllocations()))
    await sleep(ready, clock)
    await ready.deployments.stop(CONTEXT, "mine")
    assert ready.deployments.list() == []


async def test_an_update_while_waking_wakes_it_once(ready: Any, clock: Clock) -> None:
    await ready.deployments.start(CONTEXT, SLEEPER)
    await sleep(ready, clock)
    entered, go = threading.Event(), threading.Event()

    def load() -> FakeEncoder:
        entered.set()
        assert go.wait(30)
        return FakeEncoder()

    ready.load = load
    asked = asyncio.create_task(expand(ready))
    assert await asyncio.to_thread(entered.wait, 30)
    await ready.deployments.update("mine", DeploymentUpdate(2))
    go.set()
    assert await asked == [("salmon",)]
    await until(lambda: ready.deployments.get("mine").allocation_count == 2)
    await ready.deployments.stop(CONTEXT, "mine")
    assert not workers()


@pytest.mark.parametrize("steps", range(5))
async def test_what_is_stopped_while_it_comes_up_stays_stopped(ready: Any, steps: int) -> None:
    entered, go = threading.Event(), threading.Event()

    def load() -> FakeEncoder:
        entered.set()
        assert go.wait(30)
        return FakeEncoder()

    ready.load = load
    await ready.deployments.start(CONTEXT, NewDeployment("mine"), DeploymentWait.STARTING)
    assert await asyncio.to_thread(entered.wait, 30)
    go.set()
    time.sleep(0.02)  # noqa: ASYNC251 - the loaded model waits at the event loop's door
    for _ in range(steps):
        await asyncio.sleep(0)
    ending = asyncio.create_task(ready.deployments.close())
    states = []
    while not ending.done():
        await asyncio.sleep(0)
        states += [each.state for each in ready.deployments.list()]
    first = states.index(DeploymentState.STOPPING)
    assert set(states[first:]) == {DeploymentState.STOPPING}
    assert not workers()


async def test_a_deployment_that_is_stopped_while_it_wakes_tells_who_waits(ready: Any, clock: Clock) -> None:
    await ready.deployments.start(CONTEXT, SLEEPER)
    await sleep(ready, clock)
    loading, go = threading.Event(), threading.Event()

    def load() -> FakeEncoder:
        loading.set()
        assert go.wait(30)
        return FakeEncoder()

    ready.load = load
    call = asyncio.create_task(expand(ready))
    assert await asyncio.to_thread(loading.wait, 30)
    await ready.deployments.stop(CONTEXT, "mine")
    go.set()
    with pytest.raises(FailedPreconditionError, match="is stopping"):
        await call
    assert ready.deployments.list() == []


async def test_a_deployment_that_wakes_for_long_does_not_fall_asleep_meanwhile(ready: Any, clock: Clock) -> None:
    await ready.deployments.start(CONTEXT, SLEEPER)
    await sleep(ready, clock)
    loading, go = threading.Event(), threading.Event()

    def load() -> FakeEncoder:
        loading.set()
        assert go.wait(30)
        return FakeEncoder()

    ready.load = load
    call = asyncio.create_task(expand(ready))
    assert await asyncio.to_thread(loading.wait, 30)
    clock.now += IDLE_SECONDS
    await ready.deployments.scale()
    assert ready.deployments.get("mine").record.number_of_allocations == 1
    go.set()
    assert await call == [("salmon",)]
    await sleep(ready, clock)


async def test_falling_asleep_and_waking_again_and_again_loses_nothing(ready: Any, clock: Clock) -> None:
    await ready.deployments.start(CONTEXT, SLEEPER)
    for turn in range(20):
        clock.now += 10
        await ready.deployments.scale()
        clock.now += IDLE_SECONDS
        answers = await asyncio.gather(
            ready.deployments.scale(), *(expand(ready, f"w{turn}x{number}") for number in range(5))
        )
        assert answers[1:] == [[(f"w{turn}x{number}",)] for number in range(5)]


async def test_what_was_asleep_comes_back_asleep_and_the_rest_with_its_last_number(
    live: Callable[..., Any], clock: Clock, source: Path
) -> None:
    first = live(clock=clock)
    await first.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    await first.deployments.start(CONTEXT, SLEEPER)
    await sleep(first, clock)
    await first.deployments.start(CONTEXT, NewDeployment("mine", "low", priority="low"))
    await first.deployments.start(CONTEXT, NewDeployment("mine", "wide", adaptive=AdaptiveAllocations(3, 6)))
    await first.end()
    second = live(clock=clock)
    await second.restore()
    await second.deployments.settled()
    states = {each.record.deployment_id: each for each in second.deployments.list()}
    assert {each.state for each in states.values()} == {DeploymentState.STARTED}
    assert (states["mine"].allocation_count, states["mine"].adaptive) == (0, AdaptiveAllocations(0, 3))
    assert states["low"].record.priority == "low"
    assert (states["wide"].allocation_count, states["wide"].adaptive) == (3, AdaptiveAllocations(3, 6))
    assert len(second.encoders) == 1
    assert await expand(second) == [("salmon",)]


class PanicError(BaseException):
    """Like what a panic of a library in Rust becomes: no worker survives it."""


async def test_a_deployment_whose_workers_keep_dying_is_tried_again_by_itself(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "DELAYS", (0.0,))

    def die() -> None:
        raise PanicError

    ready.load = lambda: FakeEncoder(delay=die)
    await ready.deployments.start(CONTEXT, NewDeployment("mine"))
    ready.load = FakeEncoder
    failures: list[Exception] = []
    while len(ready.encoders) < 2:
        try:
            await expand(ready, f"w{len(failures)}")
        except (UnavailableError, FailedPreconditionError) as error:
            failures.append(error)
        await asyncio.sleep(0)
    await ready.deployments.settled()
    assert len(failures) >= 2
    assert await expand(ready, "after") == [("after",)]
    assert [answers for _, answers in ready.health] == [False, True, False, False, True]


async def test_a_deployment_that_broke_down_says_so_until_it_is_tried_again(
    live: Callable[..., Any], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "DELAYS", (0.0,))

    def die() -> None:
        raise PanicError

    life = live(lambda: FakeEncoder(delay=die), retry_seconds=60.0)
    await life.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    await life.deployments.start(CONTEXT, NewDeployment("mine"))
    while life.deployments.get("mine").state is DeploymentState.STARTED:
        with pytest.raises(UnavailableError):
            await expand(life, f"w{time.monotonic_ns()}")
        await asyncio.sleep(0)
    assert "workers die one after the other" in life.deployments.get("mine").error
    with pytest.raises(UnavailableError, match=r"broke down: .* started again by itself") as caught:
        await expand(life)
    assert caught.value.retry_after is not None
    assert 50 < caught.value.retry_after.total_seconds() <= 60
    await life.deployments.stop(CONTEXT, "mine")
    assert life.deployments.list() == []


async def test_a_deployment_beyond_the_memory_is_refused_with_both_figures(
    live: Callable[..., Any], source: Path
) -> None:
    probe = live()
    await probe.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    alone = (await probe.deployments.estimate(NewDeployment("mine"))).memory
    assert alone.total_bytes == alone.weights_bytes + alone.per_allocation_bytes + alone.cache_bytes
    assert probe.deployments.list() == []
    limit = alone.total_bytes + alone.per_allocation_bytes
    life = live(memory_bytes=limit)
    deployment = await life.deployments.start(CONTEXT, NewDeployment("mine"))
    assert deployment.memory == alone
    with pytest.raises(ResourceExhaustedError) as caught:
        await life.deployments.update("mine", DeploymentUpdate(3))
    assert f"{alone.total_bytes + 2 * alone.per_allocation_bytes:,}" in caught.value.message
    assert f"{limit:,}" in caught.value.message
    assert life.deployments.get("mine").record.number_of_allocations == 1
    with pytest.raises(ResourceExhaustedError):
        await life.deployments.estimate(NewDeployment("mine", "other", number_of_allocations=3))
    await life.deployments.update("mine", DeploymentUpdate(2))
    with pytest.raises(ResourceExhaustedError):
        await life.deployments.start(CONTEXT, NewDeployment("mine", "other"))
    await life.deployments.update("mine", DeploymentUpdate(1))
    other = NewDeployment("mine", "other", cache_size_bytes=0)
    await life.deployments.start(CONTEXT, other)  # the two share their weights
    await life.deployments.stop(CONTEXT, "other")
    await life.deployments.start(CONTEXT, other)


async def test_two_starts_at_a_time_do_not_overbook(live: Callable[..., Any], source: Path) -> None:
    probe = live()
    await probe.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    alone = (await probe.deployments.estimate(NewDeployment("mine"))).memory.total_bytes
    life = live(memory_bytes=alone)
    starts = (life.deployments.start(CONTEXT, NewDeployment("mine", name)) for name in ("a", "b", "c"))
    outcomes = await asyncio.gather(*starts, return_exceptions=True)
    assert sum(isinstance(outcome, ResourceExhaustedError) for outcome in outcomes) == 2
    assert len(life.deployments.list()) == 1


async def test_what_sleeps_leaves_its_memory_to_others(live: Callable[..., Any], clock: Clock, source: Path) -> None:
    probe = live()
    await probe.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    alone = (await probe.deployments.estimate(NewDeployment("mine"))).memory.total_bytes
    life = live(clock=clock, memory_bytes=alone)
    await life.deployments.start(CONTEXT, SLEEPER)
    await sleep(life, clock)
    await life.deployments.start(CONTEXT, NewDeployment("mine", "other"))
    with pytest.raises(ResourceExhaustedError, match="model_memory_bytes"):
        await expand(life)
    await life.deployments.stop(CONTEXT, "other")
    assert await expand(life) == [("salmon",)]


async def test_a_deployment_grows_only_as_far_as_memory_lets_it(
    live: Callable[..., Any], clock: Clock, source: Path
) -> None:
    probe = live()
    await probe.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    two = (await probe.deployments.estimate(NewDeployment("mine", number_of_allocations=2))).memory.total_bytes
    life = live(lambda: FakeEncoder(delay=lambda: time.sleep(0.004)), clock=clock, memory_bytes=two)
    await life.deployments.start(CONTEXT, NewDeployment("mine", adaptive=AdaptiveAllocations(1, 8)))
    for sample in range(5):
        for text in range(5):
            await expand(life, f"w{sample}x{text}")
        clock.now += 0.01
        await life.deployments.scale()
    assert life.deployments.get("mine").record.number_of_allocations == 2


async def test_after_a_restart_with_less_memory_what_does_not_fit_says_so(
    live: Callable[..., Any], source: Path
) -> None:
    first = live()
    await first.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    await first.deployments.start(CONTEXT, NewDeployment("mine"))
    await first.end()
    second = live(memory_bytes=1)
    await second.restore()
    await second.deployments.settled()
    back = second.deployments.get("mine")
    assert back.state is DeploymentState.FAILED
    assert "of the 1 that model_memory_bytes allows" in back.error


async def test_fewer_allocations_bring_back_what_did_not_fit(live: Callable[..., Any], source: Path) -> None:
    first = live()
    await first.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    room = (await first.deployments.estimate(NewDeployment("mine"))).memory.total_bytes
    await first.deployments.start(CONTEXT, NewDeployment("mine", number_of_allocations=2))
    await first.end()
    second = live(memory_bytes=room)
    await second.restore()
    await second.deployments.settled()
    assert second.deployments.get("mine").state is DeploymentState.FAILED
    with pytest.raises(ResourceExhaustedError):
        await second.deployments.update("mine", DeploymentUpdate(2))
    assert second.deployments.get("mine").state is DeploymentState.FAILED
    await second.deployments.update("mine", DeploymentUpdate(1))
    await second.deployments.settled()
    assert await expand(second) == [("salmon",)]


async def test_a_loaded_model_counts_by_the_precision_that_it_got(live: Callable[..., Any], source: Path) -> None:
    class Narrow(FakeEncoder):
        precision = "bfloat16"

    life = live(Narrow)
    await life.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    asked = await life.deployments.estimate(NewDeployment("mine", precision="bfloat16"))
    automatic = await life.deployments.estimate(NewDeployment("mine"))
    assert asked.memory.total_bytes < automatic.memory.total_bytes
    assert (await life.deployments.start(CONTEXT, NewDeployment("mine"))).memory == asked.memory
    changed = await life.deployments.update("mine", DeploymentUpdate(2))
    assert changed.memory.weights_bytes == asked.memory.weights_bytes
