"""An acknowledgement is sent after the disk has the write; a full disk is told and loses nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from termwise.v1 import indices_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STRACE = shutil.which("strace")


def can_trace() -> bool:
    """Tell whether strace is here and allowed to trace."""
    if STRACE is None:
        return False
    return subprocess.run([STRACE, "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


def put(server: Any, name: str, text: str = "A text.") -> Any:
    request = indices_pb2.PutDocumentRequest(index="docs")
    request.document.id = name
    request.document.source_json = f'{{"text": "{text}"}}'
    return server.indices.PutDocument(request, timeout=60)


@pytest.mark.skipif(not can_trace(), reason="needs strace, and leave to trace")
def test_every_acknowledgement_follows_a_sync(launch: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    flags = [
        "-f",
        "--seccomp-bpf",
        "-s",
        "4096",
        "-e",
        "trace=fsync,fdatasync,sendmsg,recvmsg",
        "-e",
        "signal=none",
        "-o",
        str(trace),
    ]
    server = launch(tmp_path / "data", before=[str(STRACE), *flags])
    server.create_index("docs")
    names = [f"marked-{number:03}" for number in range(20)]
    for name in names:
        put(server, name)
    for one in server.bulk("docs", [("marked-bulk", {"text": "A text."})]):
        assert not one.HasField("error")
    # strace ends with its child, which gets the signal.
    child = trace.read_text().split(maxsplit=1)[0]
    os.kill(int(child), 15)
    server.process.wait(60)
    lines = trace.read_text(errors="replace").splitlines()
    for name in [*names, "marked-bulk"]:
        asked = next(n for n, line in enumerate(lines) if name in line and "recvmsg" in line)
        told = next(n for n, line in enumerate(lines) if name in line and "sendmsg(" in line and n > asked)
        synced = [line for line in lines[asked:told] if re.search(r"\bf(data)?sync\b.*= 0$", line)]
        assert synced, f"no sync between the request and the acknowledgement of {name}"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 48 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("needs root to mount a small disk")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=48m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("may not mount a small disk here")
    yield place
    subprocess.run([shutil.which("umount") or "umount", "-l", place], check=True)


def test_a_full_disk_is_told_and_loses_nothing(launch: Any, small_disk: Path, details_of: Any) -> None:
    data = small_disk / "data"
    server = launch(data)
    server.create_index("docs")
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(b"x" * (free - 6_000_000))
    written = []

    def fill() -> None:
        for number in range(400):
            put(server, f"d{number}", os.urandom(100_000).hex())
            written.append(number)

    with pytest.raises(grpc.RpcError) as caught:
        fill()
    found = details_of(caught.value)
    assert found["code"] == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert found["ErrorInfo"].reason == "DISK_FULL"
    assert "RetryInfo" in found
    assert written

    def make() -> None:
        for number in range(400):
            server.create_index(f"more-{number}")

    with pytest.raises(grpc.RpcError) as caught:
        make()
    assert details_of(caught.value)["code"] == grpc.StatusCode.RESOURCE_EXHAUSTED

    def there() -> int:
        request = indices_pb2.GetIndexStatsRequest(index="docs")
        return int(server.indices.GetIndexStats(request, timeout=60).stats.document_count)

    assert there() == len(written)
    ballast.unlink()
    put(server, "later")
    assert there() == len(written) + 1
    server.kill()
    server = launch(data)
    assert there() == len(written) + 1
    server.stop()
