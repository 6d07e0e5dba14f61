from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (
            ["models", "list", "my-*", "best", "--tag", "sparse"],
            pb.ListTrainedModelsRequest(model_ids=["my-*", "best"], tags=["sparse"]),
        ),
        (["models", "delete", "m"], pb.DeleteTrainedModelRequest(model_id="m")),
        (["models", "delete", "m", "--force"], pb.DeleteTrainedModelRequest(model_id="m", force=True)),
        (["models", "alias", "best", "m"], pb.PutModelAliasRequest(alias="best", model_id="m")),
        (
            ["models", "alias", "best", "m", "--reassign"],
            pb.PutModelAliasRequest(alias="best", model_id="m", reassign=True),
        ),
        (["models", "unalias", "best"], pb.DeleteModelAliasRequest(alias="best")),
        (["models", "unalias", "best", "--model-id", "m"], pb.DeleteModelAliasRequest(alias="best", model_id="m")),
        (["models", "stats", "m", "a*"], pb.GetTrainedModelStatsRequest(model_ids=["m", "a*"])),
        (["deployments", "stats", "d"], pb.GetTrainedModelStatsRequest(model_ids=["d"])),
        (
            ["deployments", "start", "m", "--priority", "low", "--dry-run", "--wait-for", "starting"],
            pb.StartDeploymentRequest(
                model_id="m", priority=pb.Deployment.PRIORITY_LOW, validate_only=True, wait_for="WAIT_FOR_STARTING"
            ),
        ),
        (
            ["deployments", "start", "m", "--min-allocations", "0", "--max-allocations", "4"],
            pb.StartDeploymentRequest(
                model_id="m",
                adaptive_allocations={"min_number_of_allocations": 0, "max_number_of_allocations": 4},
                wait_for="WAIT_FOR_STARTED",
            ),
        ),
        (
            ["deployments", "update", "d", "--number-of-allocations", "3"],
            pb.UpdateDeploymentRequest(deployment_id="d", number_of_allocations=3),
        ),
        (
            ["deployments", "update", "d", "--max-allocations", "8"],
            pb.UpdateDeploymentRequest(deployment_id="d", adaptive_allocations={"max_number_of_allocations": 8}),
        ),
        (["deployments", "clear-cache", "d"], pb.ClearDeploymentCacheRequest(deployment_id="d")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("style", ["table", "json"])
def test_a_command_sends_what_its_options_say(
    termwise: Any, requests: list[Any], arguments: list[str], request_: Any, style: str
) -> None:
    result = termwise(*arguments, "--format", style)

    assert result.exit_code == 0, result.stderr
    assert requests == [request_]
    if style == "json":
        assert all(json.loads(line) for line in result.stdout.splitlines())


def test_stats_are_a_row_a_model_and_a_row_a_deployment(termwise: Any) -> None:
    both = termwise("models", "stats").stdout.splitlines()
    own = termwise("deployments", "stats").stdout.splitlines()
    plain = json.loads(termwise("models", "stats", "--format", "json").stdout)

    assert both[1].split()[0] == ".splade_tiny"
    assert both[2:] == own
    assert own[1].split() == ["for_search", "1", "of", "2", "1,234", "34", "0", "0", "0", "5", "1.50", "0", "0", "0"]
    assert plain["deployment_stats"][0]["inference_count"] == "1234"


def test_upload_stores_the_model_and_sends_its_folder(termwise: Any, requests: list[Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")

    first = termwise("models", "upload", "mine", str(tmp_path), "--format", "json")
    again = termwise("models", "upload", "mine", str(tmp_path))

    assert requests == [pb.PutTrainedModelRequest(model_id="mine", wait_for="WAIT_FOR_STORED")]
    model = json.loads(first.stdout)
    assert (model["state"], model["description"]) == ("STATE_READY", "header data header data commit")
    assert again.exit_code == 0


def test_upload_of_no_model_is_one_line(termwise: Any, tmp_path: Path) -> None:
    result = termwise("models", "upload", "mine", str(tmp_path / "absent"))

    assert result.exit_code == 1
    assert "is no folder" in result.stderr


def test_cancel_says_so(termwise: Any) -> None:
    assert termwise("models", "cancel", "m").stdout == 'The download of "m" is cancelled.\n'
