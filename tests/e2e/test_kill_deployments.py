"""A kill -9 amid starts, updates and stops: what was acknowledged is as it was said to be, and what is there works."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

MODEL = ".splade_tiny"
CALLERS = 3


@dataclass
class Wishes:
    """One caller's deployments, by the allocations that each may have; 0: it is not there.

    While a call about it is on its way, that is as many as before or as many as after.
    """

    number: int
    allowed: dict[str, set[int]] = field(default_factory=dict)
    acknowledged: int = 0
    end: Any = None

    def __post_init__(self) -> None:
        self.allowed = {f"caller{self.number}-{place}": {0} for place in range(3)}

    def call(self, server: Any, chance: random.Random) -> None:
        """Start what is not there, update or stop what is, until the server is gone."""
        while True:
            name, states = chance.choice(list(self.allowed.items()))
            (before,) = states
            after = chance.choice([1, 2, 3] if before == 0 else [0, 0, 1, 2, 3])
            self.allowed[name] = {before, after}
            try:
                if after == 0:
                    server.models.StopDeployment(pb.StopDeploymentRequest(deployment_id=name), timeout=60)
                elif before:
                    request = pb.UpdateDeploymentRequest(deployment_id=name, number_of_allocations=after)
                    server.models.UpdateDeployment(request, timeout=60)
                else:
                    self._start(server, name, after, chance)
            except grpc.RpcError as error:
                self.end = error
                return
            self.allowed[name] = {after}
            self.acknowledged += 1

    def _start(self, server: Any, name: str, allocations: int, chance: random.Random) -> None:
        request = pb.StartDeploymentRequest(model_id=MODEL, deployment_id=name, number_of_allocations=allocations)
        request.wait_for = chance.choice([request.WAIT_FOR_STARTING, request.WAIT_FOR_STARTED])
        server.models.StartDeployment(request, timeout=60)


def kill_and_compare(launch: Any, data: Path, kills: int) -> None:
    chance = random.Random(11)
    wishes = [Wishes(number) for number in range(CALLERS)]
    server = launch(data)
    for turn in range(kills):
        target = sum(each.acknowledged for each in wishes) + chance.randint(3, 25)
        callers = [threading.Thread(target=each.call, args=(server, random.Random(chance.random()))) for each in wishes]
        for caller in callers:
            caller.start()
        while sum(each.acknowledged for each in wishes) < target:
            assert any(caller.is_alive() for caller in callers), "the callers gave up"
            threading.Event().wait(0.002)
        server.process.kill()
        for caller in callers:
            caller.join(30)
        assert {each.end.code() for each in wishes} == {grpc.StatusCode.UNAVAILABLE}, wishes
        server.kill()
        server = launch(data)
        server.wait_ready()
        listed = server.models.ListDeployments(pb.ListDeploymentsRequest(page_size=100), timeout=30).deployments
        found = {each.deployment_id: each.target_allocation_count for each in listed}
        known = {name: allowed for each in wishes for name, allowed in each.allowed.items()}
        assert found.keys() <= known.keys()
        for name, allowed in known.items():
            assert found.get(name, 0) in allowed, (turn, name, found.get(name), allowed)
            assert server.check(f"deployment/{name}") == ("SERVING" if name in found else "NOT_FOUND")
        for name in found:
            answer = server.models.Infer(pb.InferRequest(deployment_id=name, texts=["is pluto a planet?"]), timeout=30)
            assert answer.results[0].vector.tokens
        for each in wishes:
            each.allowed = {name: {found.get(name, 0)} for name in each.allowed}
    assert server.stop() == 0


def test_two_kills_amid_starts_updates_and_stops_lose_nothing(launch: Any, fresh: Path) -> None:
    kill_and_compare(launch, fresh, 2)


@pytest.mark.slow
def test_fifteen_kills_amid_starts_updates_and_stops_lose_nothing(launch: Any, fresh: Path) -> None:
    kill_and_compare(launch, fresh, 15)
