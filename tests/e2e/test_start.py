"""Starting and stopping, as operators and orchestrators do."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from termwise.server.metadata.folder import FORMAT_VERSION, DataFolder

if TYPE_CHECKING:
    from pathlib import Path


def test_it_says_where_it_listens_and_stops_cleanly(launch: Any, tmp_path: Path) -> None:
    server = launch(tmp_path / "data")
    server.wait_ready()
    assert server.check("") == server.check("liveness") == server.check("readiness") == "SERVING"
    assert server.stop() == 0
    events = {event["event"]: event for event in server.events()}
    assert events[f"listening on {server.address}"]["address"] == server.address
    assert "stopped" in events


def test_each_call_is_one_log_line_and_an_unknown_variable_is_warned_of(launch: Any, tmp_path: Path) -> None:
    server = launch(tmp_path / "data", env={"TERMWISE_STORAG": "memory"})
    request = health_pb2.HealthCheckRequest(service="nothing")
    with pytest.raises(grpc.RpcError):
        server.health.Check(request, metadata=(("x-request-id", "mine-1"),))
    server.stop()
    (line,) = [event for event in server.events() if event.get("request_id") == "mine-1"]
    assert (line["event"], line["method"], line["code"]) == ("call", "/grpc.health.v1.Health/Check", "NOT_FOUND")
    assert line["duration_ms"] >= 0
    (warning,) = [event for event in server.events() if event["event"] == "unknown_environment_variable"]
    assert "storage" in warning["problem"]


def test_a_second_server_on_the_same_folder_is_refused_and_an_interrupt_stops_the_first(
    launch: Any, refused: Any, tmp_path: Path
) -> None:
    server = launch(tmp_path / "data")
    status, said = refused(tmp_path / "data")
    assert status == 1
    assert "is held by another server" in said
    assert str(server.process.pid) in said
    assert server.check("") == "SERVING"
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0


def test_a_newer_format_is_refused(refused: Any, tmp_path: Path) -> None:
    DataFolder.open(tmp_path / "data").close()
    (tmp_path / "data" / "FORMAT").write_text(json.dumps({"format_version": FORMAT_VERSION + 1}))
    status, said = refused(tmp_path / "data")
    assert status == 1
    assert f"format version {FORMAT_VERSION + 1}, this server knows up to {FORMAT_VERSION}" in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_refused(refused: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, said = refused(tmp_path / "data", "--port", port)
    assert status == 1
    assert f"127.0.0.1:{port}" in said
    assert "another program has the port" in said


def test_a_setting_that_cannot_be_is_refused(refused: Any, tmp_path: Path) -> None:
    status, said = refused(tmp_path / "data", env={"TERMWISE_MAX_MESSAGE_BYTES": "lots"})
    assert status == 2
    assert "TERMWISE_MAX_MESSAGE_BYTES" in said
    assert "lots" in said


def test_an_unknown_storage_backend_is_refused(refused: Any, tmp_path: Path) -> None:
    status, said = refused(tmp_path / "data", "--storage", "papyrus")
    assert status == 1
    assert "papyrus" in said
    assert "tantivy" in said


def test_an_index_whose_files_are_broken_is_told_by_health_and_the_rest_serves(launch: Any, tmp_path: Path) -> None:
    server = launch(tmp_path / "data")
    server.create_index("whole")
    server.create_index("broken")
    server.stop()
    with sqlite3.connect(tmp_path / "data" / "metadata.sqlite") as metadata:
        (name,) = metadata.execute("SELECT storage_name FROM indices WHERE name = 'broken'").fetchone()
    metadata.close()
    (tmp_path / "data" / "indices" / "tantivy" / name / "format.json").write_text("{")
    server = launch(tmp_path / "data")
    server.wait_ready()
    assert server.check("index/whole") == "SERVING"
    assert server.check("index/broken") == "NOT_SERVING"
    (line,) = [event for event in server.events() if event["event"] == "index_broken"]
    assert line["index"] == "broken"


def test_a_port_file_that_cannot_be_written_is_refused(refused: Any, tmp_path: Path) -> None:
    status, said = refused(tmp_path / "data", "--port-file", str(tmp_path / "nowhere" / "port"))
    assert status == 1
    assert "Give another with --port-file" in said
    assert "Traceback" not in said
