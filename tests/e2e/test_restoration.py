"""What an operator has asked for is there again after a restart, and after a kill: as it was, and at work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.inference.hardware import has_amx
from termwise.server.inference.native.library import best_level
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = ".splade_tiny"
TEXT = "is pluto a planet?"


def limits(least: int, most: int) -> pb.AdaptiveAllocations:
    return pb.AdaptiveAllocations(min_number_of_allocations=least, max_number_of_allocations=most)


STARTS = {
    "fixed": {"number_of_allocations": 2, "threads_per_allocation": 2, "queue_capacity": 77, "cache_size_bytes": 0},
    "low": {"priority": pb.Deployment.PRIORITY_LOW, "cache_size_bytes": 1 << 20},
    "adaptive": {"adaptive_allocations": limits(1, 3)},
    "idle": {"adaptive_allocations": limits(0, 2)},
    "grown": {},
    "turned": {"precision": pb.Deployment.PRECISION_AUTO},
}
UPDATES = {"grown": {"number_of_allocations": 3}, "turned": {"adaptive_allocations": limits(2, 4)}}
PASSING = ("create_time", "start_time", "cache_used_bytes", "cache_hit_count", "cache_miss_count")
"""What begins anew with the server or changes with use."""


def standing(server: Any) -> dict[str, pb.Deployment]:
    """Give each deployment as it stands, without what passes."""
    listed = server.models.ListDeployments(pb.ListDeploymentsRequest(page_size=100), timeout=30).deployments
    for deployment in listed:
        assert deployment.HasField("create_time")
        for name in PASSING:
            deployment.ClearField(name)
    return {deployment.deployment_id: deployment for deployment in listed}


def check_that_all_answer(server: Any) -> None:
    for name in (*STARTS, "mine"):
        answer = server.models.Infer(pb.InferRequest(deployment_id=name, texts=[TEXT]), timeout=30)
        assert answer.results[0].vector.tokens, name
    for name in STARTS:
        assert server.check(f"deployment/{name}") == "SERVING"
    assert server.check("deployment/stopped") == "NOT_FOUND"


@pytest.mark.parametrize("end", [lambda server: server.stop(), lambda server: server.kill()], ids=["stopped", "killed"])
def test_deployments_aliases_and_priorities_are_there_again(
    launch: Any, fresh: Path, end: Callable[[Any], object]
) -> None:
    server = launch(fresh)
    for name, settings in STARTS.items():
        server.models.StartDeployment(
            pb.StartDeploymentRequest(model_id=MODEL, deployment_id=name, **settings), timeout=60
        )
    server.deploy("stopped")
    server.models.StopDeployment(pb.StopDeploymentRequest(deployment_id="stopped"), timeout=30)
    for name, settings in UPDATES.items():
        server.models.UpdateDeployment(pb.UpdateDeploymentRequest(deployment_id=name, **settings), timeout=30)
    for alias in ("gone", "mine"):
        server.models.PutModelAlias(pb.PutModelAliasRequest(alias=alias, model_id=MODEL), timeout=30)
    server.models.DeleteModelAlias(pb.DeleteModelAliasRequest(alias="gone", model_id=MODEL), timeout=30)
    check_that_all_answer(server)
    before = standing(server)
    assert before["grown"].target_allocation_count == 3
    assert before["turned"].adaptive_allocations == limits(2, 4)

    end(server)
    server = launch(fresh)
    server.wait_ready()

    check_that_all_answer(server)
    assert standing(server) == before
    model = server.models.GetTrainedModel(pb.GetTrainedModelRequest(model_id="mine"), timeout=30).trained_model
    assert (model.model_id, list(model.aliases)) == (MODEL, ["mine"])
    if best_level() is not None and not has_amx():
        # Its import would take most of a start, and the kernel needs none of it.
        assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert server.stop() == 0
