"""What of a model's files was fetched outlives a kill -9, with a loopback Hugging Face Hub that counts its bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from default_model import fetch_default_model
from hub import Hub
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as made:
        made.add("org/name", {file.name: file.read_bytes() for file in fetch_default_model().iterdir()})
        yield made


def steps(server: Any) -> Iterator[Any]:
    for answer in server.models.DownloadTrainedModel(pb.DownloadTrainedModelRequest(model_id="mine"), timeout=60):
        yield answer.progress


def test_a_killed_server_goes_on_with_its_download(launch: Any, tmp_path: Path, hub: Hub) -> None:
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    (weights,) = (files[WEIGHTS] for files in hub.repositories["org/name"].values())
    hub.hold_after = len(weights) // 2
    server = launch(tmp_path / "data", env=env)
    server.models.PutTrainedModel(pb.PutTrainedModelRequest(model_id="mine", source_uri="hf://org/name"), timeout=30)
    assert any(step.bytes_done > 0.45 * len(weights) for step in steps(server))
    server.kill()
    hub.add("org/name", {"config.json": b"newer"})
    hub.hold_after = None
    hub.go.set()

    server = launch(tmp_path / "data", env=env)
    last = [(step.state, step.bytes_done, step.bytes_total) for step in steps(server)]
    assert last[-1][0] == pb.TrainedModel.STATE_READY
    assert last[-1][1] == last[-1][2] > len(weights)
    begun, resumed = (start for name, start in hub.starts if name == WEIGHTS)
    assert begun == 0
    assert 0.45 * len(weights) < resumed < 0.6 * len(weights)
    assert (tmp_path / "data" / "models" / "mine" / WEIGHTS).read_bytes() == weights
    assert [entry.name for entry in (tmp_path / "data" / "models").iterdir()] == ["mine"]
    assert server.stop() == 0
