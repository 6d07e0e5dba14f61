from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from termwise.server.errors import FailedPreconditionError
from termwise.server.metadata.folder import FORMAT_VERSION, DataFolder

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_a_new_folder_is_laid_out(tmp_path: Path) -> None:
    with DataFolder.open(tmp_path / "a" / "data") as folder:
        assert folder.models.is_dir()
        assert folder.cache.is_dir()
        assert folder.indices("tantivy").is_dir()
        assert folder.metadata.parent == folder.path
        assert json.loads((folder.path / "FORMAT").read_text()) == {"format_version": FORMAT_VERSION}


def test_a_folder_opens_again(tmp_path: Path) -> None:
    with DataFolder.open(tmp_path) as folder:
        (folder.models / "kept").write_text("x")
    with DataFolder.open(tmp_path) as folder:
        assert (folder.models / "kept").read_text() == "x"


def test_a_folder_that_is_held_is_refused_with_the_holder(tmp_path: Path) -> None:
    with DataFolder.open(tmp_path), pytest.raises(FailedPreconditionError) as caught:
        DataFolder.open(tmp_path)
    assert "held by another server" in caught.value.message
    assert caught.value.metadata["process"] == str(os.getpid())
    assert caught.value.reason_code == "DATA_FOLDER_HELD"


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, signal\n"
        "from termwise.server.metadata.folder import DataFolder\n"
        "folder = DataFolder.open(pathlib.Path(sys.argv[1])); print('held', flush=True); signal.pause()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FailedPreconditionError, match=f"process {holder.pid}"):
            DataFolder.open(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait(60)
    DataFolder.open(tmp_path).close()


def test_a_newer_format_is_refused_with_both_versions(tmp_path: Path) -> None:
    DataFolder.open(tmp_path).close()
    (tmp_path / "FORMAT").write_text(json.dumps({"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(FailedPreconditionError) as caught:
        DataFolder.open(tmp_path)
    assert f"format version {FORMAT_VERSION + 1}" in caught.value.message
    assert f"up to {FORMAT_VERSION}" in caught.value.message
    assert caught.value.reason_code == "DATA_FORMAT_TOO_NEW"
    # The refusal let go of the lock.
    (tmp_path / "FORMAT").write_text(json.dumps({"format_version": FORMAT_VERSION}))
    DataFolder.open(tmp_path).close()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": "1"}', '{"format_version": 0}', "true"])
def test_a_broken_format_file_is_refused(tmp_path: Path, text: str) -> None:
    DataFolder.open(tmp_path).close()
    (tmp_path / "FORMAT").write_text(text)
    with pytest.raises(FailedPreconditionError) as caught:
        DataFolder.open(tmp_path)
    assert caught.value.reason_code == "DATA_FORMAT_BROKEN"


def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FailedPreconditionError, match=r"thesis\.tex"):
        DataFolder.open(tmp_path)


def test_a_volume_mounted_for_models_is_no_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "lost+found").mkdir()
    DataFolder.open(tmp_path).close()


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow; as short as can be, since the test runner's own output may be a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="cannot be written: File too large"), full_disk():
        DataFolder.open(tmp_path)


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    DataFolder.open(tmp_path).close()
    return tmp_path


def test_a_folder_opens_on_a_full_disk(laid_out: Path) -> None:
    with full_disk():
        DataFolder.open(laid_out).close()


def test_each_folder_is_entered_in_the_one_above_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with DataFolder.open(tmp_path / "a" / "data") as folder:
        folder.indices("tantivy")
    above = [tmp_path, tmp_path / "a", tmp_path / "a" / "data", tmp_path / "a" / "data" / "indices"]
    assert set(map(str, above)) <= set(synced)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FailedPreconditionError, match="cannot be written"):
        DataFolder.open(tmp_path / "file")
