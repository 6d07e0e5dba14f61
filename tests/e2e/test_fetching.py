"""What of a model's files was fetched or uploaded outlives a kill -9; a loopback Hugging Face Hub counts its bytes."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING, Any

import grpc
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
    hub.asked.clear()

    server = launch(tmp_path / "data", env=env)
    last = [(step.state, step.bytes_done, step.bytes_total) for step in steps(server)]
    assert last[-1][0] == pb.TrainedModel.STATE_READY
    assert last[-1][1] == last[-1][2] > len(weights)
    assert sum(end - start for _, start, end in hub.asked) < 0.65 * len(weights)
    assert (tmp_path / "data" / "models" / "mine" / WEIGHTS).read_bytes() == weights
    assert [entry.name for entry in (tmp_path / "data" / "models").iterdir()] == ["mine"]
    assert server.stop() == 0


def test_a_killed_server_goes_on_with_an_upload(launch: Any, tmp_path: Path) -> None:
    files = {file.name: file.read_bytes() for file in fetch_default_model().iterdir()}
    killed = threading.Event()

    def send(names: list[str], held: int = 0, *, commit: bool) -> Iterator[pb.UploadTrainedModelRequest]:
        for name in names:
            data, offset = files[name], held if name == WEIGHTS else 0
            digest = hashlib.sha256(data).hexdigest()
            header = pb.UploadHeader(
                model_id="mine", file_name=name, size_bytes=len(data), sha256=digest, offset=offset
            )
            yield pb.UploadTrainedModelRequest(header=header)
            for start in range(offset, len(data), 1 << 20):
                if name == WEIGHTS and not commit and start > len(data) * 3 // 4:
                    killed.wait(60)
                    return
                yield pb.UploadTrainedModelRequest(data=data[start : start + (1 << 20)])
        if commit:
            yield pb.UploadTrainedModelRequest(commit=pb.UploadCommit())

    def held(server: Any) -> dict[str, int]:
        model = server.models.GetTrainedModel(pb.GetTrainedModelRequest(model_id="mine"), timeout=30).trained_model
        return {each.file_name: each.bytes_held for each in model.uploads}

    server = launch(tmp_path / "data")
    server.models.PutTrainedModel(pb.PutTrainedModelRequest(model_id="mine"), timeout=30)
    others = sorted(files.keys() - {WEIGHTS})
    upload = server.models.UploadTrainedModel.future(send([*others, WEIGHTS], commit=False))
    while held(server).get(WEIGHTS, 0) < 8 << 20:
        assert not upload.done()
    server.kill()
    killed.set()
    assert upload.exception().code() is grpc.StatusCode.UNAVAILABLE

    server = launch(tmp_path / "data")
    before = held(server)
    assert before.pop(WEIGHTS) >= 8 << 20
    assert before == {name: len(files[name]) for name in others}
    with pytest.raises(grpc.RpcError, match="are held, and not 5") as error:
        server.models.UploadTrainedModel(send([WEIGHTS], 5, commit=True), timeout=60)
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    done = server.models.UploadTrainedModel(send([WEIGHTS], held(server)[WEIGHTS], commit=True), timeout=60)
    assert done.trained_model.state == pb.TrainedModel.STATE_READY
    assert not done.trained_model.uploads
    folder = tmp_path / "data" / "models"
    assert {file.name: file.read_bytes() for file in (folder / "mine").iterdir()} == files
    assert [entry.name for entry in folder.iterdir()] == ["mine"]
    assert server.stop() == 0


def test_a_cancelled_download_leaves_nothing(launch: Any, tmp_path: Path, hub: Hub) -> None:
    hub.hold_after = 4 << 20
    server = launch(tmp_path / "data", env={"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "cache")})
    server.models.PutTrainedModel(pb.PutTrainedModelRequest(model_id="mine", source_uri="hf://org/name"), timeout=30)
    assert any(step.bytes_done > 2 << 20 for step in steps(server))
    answer = server.models.CancelDownload(pb.CancelDownloadRequest(model_id="mine"), timeout=30)
    assert answer.trained_model.state == pb.TrainedModel.STATE_FAILED
    assert "was cancelled" in answer.trained_model.error
    assert list((tmp_path / "data" / "models").iterdir()) == []
    with pytest.raises(grpc.RpcError, match="nothing to cancel"):
        server.models.CancelDownload(pb.CancelDownloadRequest(model_id="mine"), timeout=30)
    hub.hold_after = None
    hub.go.set()
    assert list(steps(server))[-1].state == pb.TrainedModel.STATE_READY
    assert server.stop() == 0
