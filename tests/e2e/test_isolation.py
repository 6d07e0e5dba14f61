"""Deployments side by side, started and stopped again and again: none notices, and nothing is left behind."""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest

from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = ".splade_tiny"
TEXTS = [f"{n}: salmon are raised in floating net pens, where the tide renews the water. " * (1 + n) for n in range(8)]
WARM = 5
"""Cycles after which the pools of threads and of memory have nearly their size."""


def start(server: Any, deployment: str, **settings: Any) -> None:
    request = pb.StartDeploymentRequest(model_id=MODEL, deployment_id=deployment, cache_size_bytes=0, **settings)
    request.wait_for = pb.StartDeploymentRequest.WAIT_FOR_FULLY_ALLOCATED
    server.models.StartDeployment(request, timeout=120)


def stop(server: Any, deployment: str) -> None:
    server.models.StopDeployment(pb.StopDeploymentRequest(deployment_id=deployment), timeout=60)


def update(server: Any, deployment: str, allocations: int) -> None:
    request = pb.UpdateDeploymentRequest(deployment_id=deployment, number_of_allocations=allocations)
    server.models.UpdateDeployment(request, timeout=60)


def infer(server: Any, deployment: str, texts: list[str]) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    request = pb.InferRequest(deployment_id=deployment, texts=texts)
    answer = server.models.Infer(request, timeout=60)
    return [(tuple(each.vector.tokens), tuple(each.vector.weights)) for each in answer.results]


class Steady:
    """Callers of a deployment, each of which compares every answer with the first."""

    def __init__(self, server: Any, deployment: str) -> None:
        self.calls = 0
        self.wrong: list[object] = []
        self._server, self._deployment = server, deployment
        self._expected = {text: infer(server, deployment, [text])[0] for text in TEXTS}
        self._over = threading.Event()
        self._called = threading.Condition()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(2)]

    @contextmanager
    def at_work(self) -> Iterator[Steady]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()

    def wait_for_calls(self, count: int) -> None:
        """Wait until so many more calls have ended."""
        with self._called:
            until = self.calls + count
            assert self._called.wait_for(lambda: self.calls >= until or self.wrong, timeout=60), "calls take too long"

    def _call(self, first: int) -> None:
        place = first
        while not self._over.is_set() and not self.wrong:
            texts = [TEXTS[(place + n) % len(TEXTS)] for n in range(3)]
            place += 1
            try:
                right = infer(self._server, self._deployment, texts) == [self._expected[text] for text in texts]
            except grpc.RpcError as error:
                self.wrong.append(error)
            else:
                self.wrong += [] if right else [texts]
            with self._called:
                self.calls += 1
                self._called.notify_all()


@contextmanager
def pestered(server: Any, deployment: str) -> Iterator[list[grpc.StatusCode]]:
    """Call a deployment that comes and goes; gives the codes of calls that failed."""
    codes: list[grpc.StatusCode] = []
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            try:
                infer(server, deployment, TEXTS)
            except grpc.RpcError as error:
                codes.append(error.code())

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield codes
    finally:
        over.set()
        thread.join()


def shake(server: Any, rounds: int, **settings: Any) -> None:
    """Start, update and stop a deployment under load beside another one under load, which must not notice."""
    start(server, "steady")
    with Steady(server, "steady").at_work() as steady:
        for _ in range(rounds):
            start(server, "shaken", threads_per_allocation=2, number_of_allocations=2, **settings)
            with pestered(server, "shaken") as codes:
                for allocations in (3, 1, 2):
                    update(server, "shaken", allocations)
                    steady.wait_for_calls(4)
                assert codes == [], "an update fails no call of the deployment itself"
                stop(server, "shaken")
            steady.wait_for_calls(4)
            assert set(codes) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, FAILED_PRECONDITION}, codes
            assert server.check("deployment/steady") == "SERVING"
            assert server.check("deployment/shaken") == "NOT_FOUND"
        assert steady.wrong == []
    stop(server, "steady")


FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def test_a_deployment_does_not_notice_that_another_starts_changes_and_stops(launch: Any, fresh: Path) -> None:
    shake(launch(fresh), 3)


@pytest.mark.slow
def test_a_deployment_does_not_notice_that_another_is_checked_beside_it(launch: Any, fresh: Path) -> None:
    # In float32 the first start imports torch and transformers to check the model, while the other one answers.
    server = launch(fresh)
    shake(server, 25, precision=pb.Deployment.PRECISION_FLOAT32)


def cycle(server: Any, rounds: int, deployment: str = "brief") -> None:
    """Start a deployment, use it and stop it."""
    for number in range(rounds):
        start(server, deployment, threads_per_allocation=2, number_of_allocations=2)
        infer(server, deployment, [f"{number} {text}" for text in TEXTS * 4])
        stop(server, deployment)


def least(process: psutil.Process, seconds: float, *, enough: tuple[float, float] = (0, 0)) -> tuple[float, float]:
    """Give the least memory in bytes and the fewest threads in a time, or as soon as both are little enough.

    A server gives memory back to the system a moment after a stop is answered.
    """
    found = (math.inf, math.inf)
    until = time.monotonic() + seconds
    while time.monotonic() < until and not (found[0] <= enough[0] and found[1] <= enough[1]):
        found = min(found[0], process.memory_info().rss), min(found[1], process.num_threads())
        threading.Event().wait(0.05)
    return found


def check_that_nothing_is_left(server: Any, rounds: int, warm: int = WARM) -> None:
    process = psutil.Process(server.process.pid)
    cycle(server, warm)
    memory, threads = least(process, 1)
    # The pool of threads for what blocks, 32 at most, grows by one now and then.
    bounds = memory * 1.05, threads * 1.05 + 2
    cycle(server, rounds)
    after = least(process, 10, enough=bounds)
    assert after[0] <= bounds[0], f"{memory / 1e6:.1f} MB became {after[0] / 1e6:.1f} MB"
    assert after[1] <= bounds[1], f"{threads} threads became {after[1]}"


def test_ten_cycles_leave_no_memory_and_no_threads_behind(launch: Any, fresh: Path) -> None:
    check_that_nothing_is_left(launch(fresh), 10)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["", "off"])
def test_fifty_cycles_leave_no_memory_and_no_threads_behind(launch: Any, fresh: Path, kernel: str) -> None:
    # What torch keeps of its own has its size after some 15 cycles, and then stays within a hundredth.
    check_that_nothing_is_left(launch(fresh, env={"TERMWISE_KERNEL": kernel} if kernel else {}), 50, warm=20)
