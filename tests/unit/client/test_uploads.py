from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from termwise.client import (
    NO_RETRIES,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
    UploadProgress,
)
from termwise.client.uploads import PART_BYTES, local_files
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UPLOAD, GET = "TrainedModels/UploadTrainedModel", "TrainedModels/GetTrainedModel"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a model's folder of 2.5 parts, with things in it that are not the model's."""
    (tmp_path / "1_SpladePooling").mkdir()
    (tmp_path / ".git").mkdir()
    for name, data in {
        "config.json": b"{}",
        "model.safetensors": bytes(range(256)) * (PART_BYTES // 100),
        "1_SpladePooling/config.json": b'{"pooling": "max"}',
        "pytorch_model.bin": b"pickle",
        "optimizer.pt": b"pickle",
        ".git/config.json": b"{}",
        "run.sh": b"",
        "empty.txt": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


class _Store:
    """Holds what is uploaded, as the server does; the connection breaks once `room` bytes have come."""

    def __init__(self, *room: int) -> None:
        self.room = list(room)
        self.held: dict[str, bytes] = {}
        self.headers: dict[str, pb.UploadHeader] = {}
        self.received = 0
        self.ready = False
        self.drop_answer = False
        self.opened: list[tuple[str, int]] = []

    def look(self, _: Any, __: Any) -> pb.GetTrainedModelResponse:
        state = pb.TrainedModel.STATE_READY if self.ready else pb.TrainedModel.STATE_DEFINED
        model = pb.TrainedModel(model_id="mine", state=state)
        for name, header in self.headers.items() if not self.ready else ():
            model.uploads.add(
                file_name=name, size_bytes=header.size_bytes, sha256=header.sha256, bytes_held=len(self.held[name])
            )
        return pb.GetTrainedModelResponse(trained_model=model)

    def upload(self, requests: Iterator[pb.UploadTrainedModelRequest], context: grpc.ServicerContext) -> Any:
        room = self.room.pop(0) if self.room else 1 << 40
        name = ""
        for request in requests:
            match request.WhichOneof("part"):
                case "header":
                    name = request.header.file_name
                    assert request.header.model_id == "mine"
                    assert request.header.offset in {0, len(self.held.get(name, b""))}
                    self.held[name] = self.held.get(name, b"")[: request.header.offset]
                    self.headers[name] = request.header
                    self.opened.append((name, request.header.offset))
                case "data":
                    room -= len(request.data)
                    if room < 0:
                        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
                    self.held[name] += request.data
                    self.received += len(request.data)
                case "commit":
                    for key, header in self.headers.items():
                        assert hashlib.sha256(self.held[key]).hexdigest() == header.sha256
                        assert len(self.held[key]) == header.size_bytes
                    self.ready = True
                    if self.drop_answer:
                        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return pb.UploadTrainedModelResponse(trained_model=self.look(None, None).trained_model)


def _serve(server: Any, store: _Store) -> None:
    server.script(UPLOAD, store.upload)
    server.script(GET, store.look)


WANTED = ["1_SpladePooling/config.json", "config.json", "empty.txt", "model.safetensors"]


def test_a_folder_arrives_whole(server: Any, call: Any, folder: Path) -> None:
    store = _Store()
    _serve(server, store)
    steps: list[UploadProgress] = []

    model = call(lambda c: c.models.upload("mine", folder, on_progress=steps.append))

    assert model.state == pb.TrainedModel.STATE_READY
    assert store.held == {name: (folder / name).read_bytes() for name in WANTED}
    total = sum((folder / name).stat().st_size for name in WANTED)
    assert steps[-1] == UploadProgress("", total, total)
    assert [each.bytes_done for each in steps] == sorted(each.bytes_done for each in steps)
    assert {each.file_name for each in steps} == {*WANTED, ""}


def test_single_files_go_by_the_names_they_are_given(server: Any, call: Any, folder: Path) -> None:
    store = _Store()
    _serve(server, store)

    call(lambda c: c.models.upload("mine", {"elser.pt": folder / "optimizer.pt", "elser.metadata.json": "/dev/null"}))

    assert store.held == {"elser.pt": b"pickle", "elser.metadata.json": b""}


def test_a_broken_upload_goes_on_where_it_was(server: Any, call: Any, folder: Path) -> None:
    store = _Store(PART_BYTES + 100, PART_BYTES)
    _serve(server, store)
    steps: list[UploadProgress] = []

    model = call(lambda c: c.models.upload("mine", folder, on_progress=steps.append))

    total = sum((folder / name).stat().st_size for name in WANTED)
    assert model.state == pb.TrainedModel.STATE_READY
    assert store.received == total, "nothing was sent twice"
    assert [offset for name, offset in store.opened if name == "model.safetensors"] == [0, PART_BYTES, 2 * PART_BYTES]
    assert steps[-1].bytes_done == total


def test_what_the_server_holds_of_an_earlier_upload_is_not_sent_again(server: Any, call: Any, folder: Path) -> None:
    store = _Store(PART_BYTES + 100)
    _serve(server, store)
    with pytest.raises(UnavailableError):
        call(lambda c: c.models.upload("mine", folder), retry=NO_RETRIES)
    (folder / "config.json").write_bytes(b"[]")

    call(lambda c: c.models.upload("mine", folder))

    assert store.held["config.json"] == b"[]", "a file that is another now is begun anew"
    assert store.received == sum((folder / name).stat().st_size for name in WANTED) + 2


def test_a_commit_whose_answer_was_lost_is_no_error(server: Any, call: Any, folder: Path) -> None:
    store = _Store()
    store.drop_answer = True
    _serve(server, store)

    assert call(lambda c: c.models.upload("mine", folder)).state == pb.TrainedModel.STATE_READY
    assert len(server.calls[UPLOAD]) == 1


def test_an_error_of_the_server_ends_it(server: Any, call: Any, folder: Path) -> None:
    def refuse(_: Any, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "The model has a source.")

    server.script(GET, _Store().look)
    server.script(UPLOAD, refuse)

    with pytest.raises(FailedPreconditionError, match="has a source"):
        call(lambda c: c.models.upload("mine", folder))
    assert len(server.calls[UPLOAD]) == 1


def test_it_is_given_up_where_nothing_moves(server: Any, call: Any, folder: Path) -> None:
    _serve(server, _Store(*[0] * 50))

    with pytest.raises(UnavailableError):
        call(lambda c: c.models.upload("mine", folder))
    assert len(server.calls[UPLOAD]) <= 12


def test_a_file_that_is_gone_is_an_error_of_its_own(server: Any, call: Any, folder: Path) -> None:
    _serve(server, _Store())

    with pytest.raises(FileNotFoundError):
        call(lambda c: c.models.upload("mine", {"config.json": folder / "absent.json"}))


def test_what_is_no_model_is_refused_before_sending(server: Any, call: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for files in (folder, folder / "config.json", {}):
        with pytest.raises(InvalidArgumentError) as caught:
            call(lambda c, files=files: c.models.upload("mine", files))
        assert caught.value.field_violations[0].field == "files"
    assert not server.calls


def test_a_package_in_elsers_layout_is_wanted_whole(tmp_path: Path) -> None:
    for name in ("elser_model_1.pt", "elser_model_1.metadata.json", "elser_model_1.vocab.json", "other.pt"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in local_files(tmp_path)] == [
        "elser_model_1.metadata.json",
        "elser_model_1.pt",
        "elser_model_1.vocab.json",
    ]
