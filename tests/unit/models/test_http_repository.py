from __future__ import annotations

import hashlib
import json
import random
import shutil
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from termwise.server.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from termwise.server.inference.torchscript.names import ARCHIVE, METADATA, VOCABULARY
from termwise.server.models.repositories.base import FetchStoppedError
from termwise.server.models.repositories.http import HttpRepository
from termwise.server.models.repositories.locations import below
from termwise.server.models.repositories.web import Access, Patience
from web_server import WebServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Tree = Callable[[Path], dict[str, bytes]]

QUICK = Patience(connect_seconds=5, silence_seconds=20, attempts=3, first_pause_seconds=0.01)
HASTY = {
    "slow": replace(QUICK, silence_seconds=0.4),
    "drip": replace(QUICK, window_seconds=0.3, window_bytes=100),
}
ARCHIVE_BYTES = random.Random(1).randbytes(6 << 20)
VOCABULARY_BYTES = b'{"vocabulary": ["[PAD]"]}'
PT = "/models/elser.pt"


def package(archive: bytes = ARCHIVE_BYTES, **says: Any) -> dict[str, bytes]:
    """Give the files of a package; nothing here looks into its archive."""
    metadata = {
        "packaged_model_id": "elser",
        "size": len(archive),
        "sha256": hashlib.sha256(archive).hexdigest(),
        "vocabulary_file": "elser.vocab.json",
    }
    return {
        "/models/elser.metadata.json": json.dumps(metadata | says).encode(),
        PT: archive,
        "/models/elser.vocab.json": VOCABULARY_BYTES,
    }


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer(package()) as server:
        yield server


class Place:
    """A model's folder in the making, over several attempts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scratch = folder / "files", folder / "scratch"
        self.folder.mkdir()
        self.scratch.mkdir()
        self.steps: list[tuple[int, int]] = []
        self.stop_at = 1 << 60

    def report(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        if done >= self.stop_at:
            raise FetchStoppedError

    def fetch(self, url: str, *, sha256: str = "", access: Access | None = None, patience: Patience = QUICK) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.steps.clear()
        repository = HttpRepository(url.partition(":")[0], access or Access(), patience)
        repository.fetch(url, self.folder, scratch=self.scratch, sha256=sha256, report=self.report)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def elser(web: WebServer) -> str:
    return f"{web.url}/models/elser.metadata.json"


def assert_whole(place: Place, archive: bytes = ARCHIVE_BYTES) -> None:
    assert sorted(file.name for file in place.folder.iterdir()) == sorted([ARCHIVE, METADATA, VOCABULARY])
    assert (place.folder / ARCHIVE).read_bytes() == archive
    assert (place.folder / VOCABULARY).read_bytes() == VOCABULARY_BYTES


def test_a_package_comes_in_parts_side_by_side(web: WebServer, place: Place) -> None:
    web.hold_after, web.go_at = 1 << 20, 5
    place.fetch(elser(web))
    assert_whole(place)
    assert web.most_at_once == 5
    assert web.sent[PT] == len(ARCHIVE_BYTES) + 1  # the one byte that asks for the size
    assert place.steps[-1] == (len(ARCHIVE_BYTES), len(ARCHIVE_BYTES))
    assert [done for done, _ in place.steps] == sorted(done for done, _ in place.steps)


@pytest.mark.parametrize("fault", ["none", "lengths", "lying", "etags"])
def test_servers_without_ranges_do_too(web: WebServer, place: Place, fault: str) -> None:
    web.ranges = fault in {"lying", "etags"}
    web.lengths = fault != "lengths"
    web.lying_ranges = fault == "lying"
    web.etags = {PT: ""} if fault == "etags" else {}
    place.fetch(elser(web))
    assert_whole(place)


def test_cuts_are_gone_on_from(web: WebServer, place: Place) -> None:
    web.cut_after, web.cuts = 400_000, 12
    place.fetch(elser(web))
    assert_whole(place)
    assert web.sent[PT] < 1.1 * len(ARCHIVE_BYTES)


@settings(max_examples=20)
@given(
    cut_after=st.integers(1, 3 << 20),
    cuts=st.integers(0, 6),
    statuses=st.lists(st.sampled_from([429, 500, 503]), max_size=3),
    streams=st.integers(1, 8),
    ranges=st.booleans(),
    size=st.integers(1, 5 << 19),
)
def test_whatever_breaks_off_what_comes_is_whole(
    cut_after: int, cuts: int, statuses: list[int], streams: int, *, ranges: bool, size: int
) -> None:
    archive = ARCHIVE_BYTES[-size:]
    patience = replace(QUICK, attempts=12, first_pause_seconds=0.001, longest_pause_seconds=0.001)
    with WebServer(package(archive), ranges=ranges, cut_after=cut_after, cuts=cuts) as web, TemporaryDirectory() as at:
        web.statuses[PT] = statuses
        place = Place(Path(at))
        place.fetch(elser(web), access=Access(streams=streams), patience=patience)
        assert_whole(place, archive)


def test_a_fetch_that_was_stopped_goes_on(web: WebServer, place: Place) -> None:
    web.hold_after = 4 << 20
    place.stop_at = 4_100_000  # nearly all that was sent has come
    with pytest.raises(FetchStoppedError):
        place.fetch(elser(web))
    web.go.set()
    place.stop_at = 1 << 60
    place.fetch(elser(web))
    assert_whole(place)
    assert web.sent[PT] < 1.1 * len(ARCHIVE_BYTES)
    assert next(done for done, _ in place.steps if done) > 4_000_000


def test_a_file_that_changed_meanwhile_is_begun_anew(web: WebServer, place: Place) -> None:
    web.hold_after = 4 << 20
    place.stop_at = 4_100_000  # nearly all that was sent has come
    with pytest.raises(FetchStoppedError):
        place.fetch(elser(web))
    web.go.set()
    place.stop_at = 1 << 60
    changed = random.Random(2).randbytes(len(ARCHIVE_BYTES))
    web.files = package(changed)
    place.fetch(elser(web))
    assert_whole(place, changed)


def test_a_stop_is_heard_while_the_server_is_silent(web: WebServer, place: Place) -> None:
    web.hold_after = 1 << 20
    calls = []

    def stop(done: int, total: int) -> None:
        del total
        calls.append(done)
        if len(calls) > 8:
            raise FetchStoppedError

    place.report = stop  # type: ignore[method-assign]
    with pytest.raises(FetchStoppedError):
        place.fetch(elser(web), patience=Patience(silence_seconds=60))
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("model-http")]


def without(path: str) -> Callable[[WebServer], Any]:
    return lambda web: web.files.pop(path)


def holding(**files: bytes) -> Callable[[WebServer], Any]:
    return lambda web: web.files.update(
        {f"/models/elser.{name.replace('_', '.')}": data for name, data in files.items()}
    )


def doing(**how: Any) -> Callable[[WebServer], Any]:
    return lambda web: [setattr(web, name, value) for name, value in how.items()]


def saying(**says: Any) -> Callable[[WebServer], Any]:
    return lambda web: web.files.update(package(**says))


def unsaid(web: WebServer) -> None:
    web.ranges = web.lengths = False
    web.files["/models/elser.vocab.json"] = bytes(20_000_001)


def truncated(web: WebServer) -> None:
    web.ranges = web.lengths = False
    web.files[PT] = web.files[PT][:-1]


def overlong(web: WebServer) -> None:
    web.ranges = web.lengths = False
    web.files[PT] += b"x"


FAULTS: dict[str, tuple[Callable[[WebServer], Any], str, str]] = {
    "truncated": (holding(pt=ARCHIVE_BYTES[:1_000]), "SIZE_MISMATCH", "1,000 bytes instead of the 6,291,456"),
    "longer": (holding(pt=ARCHIVE_BYTES + b"x"), "SIZE_MISMATCH", "6,291,457 bytes instead of the 6,291,456"),
    "longer unsaid": (overlong, "SIZE_MISMATCH", "6,291,457 bytes instead of the 6,291,456"),
    "truncated unsaid": (truncated, "SOURCE_UNREACHABLE", "cut off"),
    "hash": (holding(pt=bytes(len(ARCHIVE_BYTES))), "CHECKSUM_MISMATCH", "has SHA-256"),
    "404": (without("/models/elser.metadata.json"), "SOURCE_NOT_FOUND", "no file at http://127.0.0.1"),
    "404 archive": (without(PT), "SOURCE_NOT_FOUND", "elser.pt"),
    "404 vocabulary": (without("/models/elser.vocab.json"), "SOURCE_NOT_FOUND", "elser.vocab.json"),
    "418": (doing(statuses={PT: [418]}), "SOURCE_UNUSABLE", "HTTP 418"),
    "500": (doing(statuses={PT: [500] * 20}), "SOURCE_BROKEN", "HTTP 500"),
    "cuts": (doing(cut_after=1), "SOURCE_UNREACHABLE", "cut off"),
    "slow": (doing(hold_after=1 << 20), "SOURCE_UNREACHABLE", "silent for too long"),
    "drip": (doing(drip_seconds=0.02), "SOURCE_UNREACHABLE", "cut off"),
    "redirect": (
        doing(redirects={PT: "http://me:hunter2@example.com/elser.pt?key=hunter2"}),
        "REDIRECT_REFUSED",
        "redirects to http://example.com/elser.pt;",
    ),
    "loop": (doing(redirects={PT: PT}), "SOURCE_UNUSABLE", "without end"),
    "denied": (doing(credentials="me:hunter2"), "SOURCE_DENIED", "HTTP 401.*model_repository_password"),
    "metadata": (holding(metadata_json=b"{"), "PACKAGE_UNUSABLE", "not readable JSON"),
    "long metadata": (holding(metadata_json=b" " * 1_000_001), "SOURCE_UNUSABLE", "over the 1,000,000"),
    "long vocabulary": (holding(vocab_json=bytes(20_000_001)), "SOURCE_UNUSABLE", "over the 20,000,000"),
    "long vocabulary unsaid": (unsaid, "SOURCE_UNUSABLE", "over the 20,000,000"),
    "no sha256": (saying(sha256=None), "PACKAGE_UNUSABLE", "sha256"),
    "id leads out": (saying(packaged_model_id="../elser"), "PACKAGE_UNUSABLE", "no plain name"),
}
PASSING = {"SOURCE_BROKEN", "SOURCE_UNREACHABLE"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_sentence(web: WebServer, place: Place, fault: str) -> None:
    make, reason, says = FAULTS[fault]
    make(web)
    with pytest.raises(UnavailableError if reason in PASSING else FailedPreconditionError, match=says) as caught:
        place.fetch(elser(web), patience=HASTY.get(fault, QUICK))
    assert caught.value.reason_code == reason
    assert "hunter2" not in caught.value.message
    assert list(place.folder.iterdir()) == []
    assert fault != "long vocabulary" or web.sent.get(PT, 0) == 0


def test_the_checksum_that_was_wanted_is_compared(web: WebServer, place: Place) -> None:
    place.fetch(elser(web), sha256=hashlib.sha256(ARCHIVE_BYTES).hexdigest())
    with pytest.raises(FailedPreconditionError, match="0" * 64):
        place.fetch(elser(web), sha256="0" * 64)


def test_a_server_that_is_gone(place: Place) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/models/elser.metadata.json"
        with pytest.raises(UnavailableError, match="cannot be reached: connection refused"):
            place.fetch(url)


def test_a_server_that_is_busy_is_asked_again(web: WebServer, place: Place) -> None:
    web.statuses[PT] = [503, 500]
    web.statuses["/models/elser.metadata.json"] = [429]
    place.fetch(elser(web))
    assert_whole(place)


def test_redirects_on_one_host_are_followed(web: WebServer, place: Place) -> None:
    web.files["/elsewhere"] = web.files.pop(PT)
    web.redirects[PT] = "/elsewhere?version=1"
    web.files["/elsewhere?version=1"] = web.files.pop("/elsewhere")
    place.fetch(elser(web))
    assert_whole(place)


def test_credentials_go_to_the_repository_alone(web: WebServer, place: Place) -> None:
    web.credentials = "me:hunter2"
    access = Access(f"{web.url}/models", "me", "hunter2")
    place.fetch(elser(web), access=access)
    assert_whole(place)
    assert "hunter2" not in repr(access)
    web.credentials = ""
    web.requests.clear()
    web.files |= {name.replace("/models/", "/models2/"): data for name, data in web.files.items()}
    place.fetch(f"{web.url}/models2/elser.metadata.json", access=access)
    assert {credentials for _, _, credentials in web.requests} == {""}


def test_wrong_credentials_are_in_no_message(web: WebServer, place: Place) -> None:
    web.credentials = "me:right"
    with pytest.raises(FailedPreconditionError, match="HTTP 401") as caught:
        place.fetch(elser(web), access=Access(web.url, "me", "hunter2"))
    assert "hunter2" not in caught.value.message


def test_a_proxy_is_used_and_its_credentials_are_in_no_message(web: WebServer, place: Place) -> None:
    # To a proxy a whole URL is asked for.
    web.files |= {f"http://models.invalid{name}": data for name, data in web.files.items()}
    url = "http://models.invalid/models/elser.metadata.json"
    place.fetch(url, access=Access(proxy=web.url))
    assert_whole(place)
    with pytest.raises(UnavailableError) as caught:
        place.fetch(url, access=Access(proxy="http://me:hunter2@127.0.0.1:1"))
    assert "hunter2" not in caught.value.message


def test_certificates_are_looked_at(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = str(tmp_path / "both.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=models -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", certificate, "-out", tmp_path / "ca.pem"], check=True, timeout=60)
    with Path(certificate).open("a") as both:
        both.write((tmp_path / "ca.pem").read_text())
    with WebServer(package(), certificate=certificate) as web:
        with pytest.raises(UnavailableError, match="its certificate is not trusted; name its authority's file"):
            place.fetch(elser(web))
        assert web.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        place.fetch(elser(web))
        assert_whole(place)


def test_a_full_disk_is_said_to_be_one(web: WebServer, place: Place, small_disk: Callable[[int], Any]) -> None:
    with small_disk(1 << 20), pytest.raises(OSError, match="File too large"):
        place.fetch(elser(web))


def test_a_disk_with_too_little_room_fetches_nothing(
    web: WebServer, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = shutil.disk_usage(place.folder)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    with pytest.raises(ResourceExhaustedError, match=r"needs 6,291,456 bytes.*1,000,000 free"):
        place.fetch(elser(web))
    assert web.sent[PT] == 1


SHARDED = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "b-2.safetensors"}}),
    "model-1.safetensors": b"one",
    "b-2.safetensors": b"two",
}
ROUTED = {
    "modules.json": json.dumps([{"path": "", "type": "Router"}]),
    "router_config.json": json.dumps({"types": {"query_0_Static": "x", "document_0_MLM": "y"}}),
    "query_0_Static/config.json": b"{}",
    "query_0_Static/model.safetensors": b"table",
    "query_0_Static/tokenizer.json": b"{}",
    "document_0_MLM/config.json": b"{}",
    "document_0_MLM/model.safetensors": b"weights",
    "document_0_MLM/tokenizer.json": b"{}",
}
PLAIN = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights", "idf.json": b"{}"}


def folder(files: dict[str, Any], *more: str) -> dict[str, bytes]:
    named = {f"/m/{name}": data if isinstance(data, bytes) else data.encode() for name, data in files.items()}
    return named | {f"/m/{name}": b"x" for name in more}


@pytest.mark.parametrize("files", [PLAIN, SHARDED, ROUTED], ids=["plain", "sharded", "routed"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_gives_what_a_model_needs(
    web: WebServer, place: Place, files: dict[str, Any], slash: str, tree: Tree
) -> None:
    web.files = folder(files, "pytorch_model.bin", "notes.json")
    place.fetch(f"{web.url}/m{slash}")
    assert sorted(tree(place.folder)) == sorted(files)
    assert place.steps[-1][0] == place.steps[-1][1] == sum(map(len, files.values()))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "holds no files"),
        ({"config.json": b"{}"}, "lacks model.safetensors"),
        (SHARDED | {"model.safetensors.index.json": b'{"weight_map": {"a": "../x"}}'}, "would lead out"),
        (SHARDED | {"model.safetensors.index.json": b'{"weight_map": {"a": "/etc/x"}}'}, "would lead out"),
        (SHARDED | {"model.safetensors.index.json": b'{"weight_map": {"a": "absent"}}'}, "lacks absent"),
        (SHARDED | {"model.safetensors.index.json": b"[]"}, "weight_map"),
        (ROUTED | {"modules.json": b'[{"path": "a/../../b"}]'}, "would lead out"),
        (ROUTED | {"modules.json": b"{}"}, "no list of modules"),
        (ROUTED | {"router_config.json": b"{"}, "no JSON"),
    ],
)
def test_a_folder_of_no_use_says_why(web: WebServer, place: Place, files: dict[str, Any], says: str) -> None:
    web.files = folder(files)
    with pytest.raises(FailedPreconditionError, match=says):
        place.fetch(f"{web.url}/m/")


def test_a_folder_has_its_weights_compared(web: WebServer, place: Place) -> None:
    web.files = folder(PLAIN)
    place.fetch(f"{web.url}/m/", sha256=hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(FailedPreconditionError, match="has SHA-256"):
        place.fetch(f"{web.url}/m/", sha256="0" * 64)


@pytest.mark.parametrize(
    "uri",
    [
        "http://",
        "http:///m",
        "http://me:hunter2@host/m",
        "http://host/m?key=1",
        "http://host/m#1",
        "http://host/../m",
        "http://host/%2e%2e/m",
        "http://host/a%5cb",
        "http://host:99999/m",
        "http://host/model.safetensors",
        "http://host/elser.pt",
        "http://host/a b",
        "https://host/m",
        "HTTP://host/m",
    ],
)
def test_web_form_is_checked(uri: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        HttpRepository("http", Access()).check(uri)
    assert caught.value.violations[0].field == "source_uri"
    assert "hunter2" not in caught.value.message


@given(st.text().map("http://{}".format) | st.from_regex(r"http://[a-z@:./?#%\[\]0-9]*", fullmatch=True))
def test_any_url_is_a_source_or_refused(uri: str) -> None:
    try:
        HttpRepository("http", Access()).check(uri)
    except InvalidArgumentError as error:
        assert error.violations[0].field == "source_uri"  # noqa: PT017
    else:
        assert "@" not in uri.split("/")[2]
        assert ".." not in uri.split("/")[3:]


@given(st.text() | st.from_regex(r"[a-z./%\\ ]*", fullmatch=True))
def test_no_name_leads_out_of_its_folder(name: str) -> None:
    base = "http://host/a/b/"
    try:
        url = below(base, name)
    except FailedPreconditionError:
        return
    assert url.startswith(base)
    assert url.isascii()
    assert not {"", ".", ".."} & set(url.removeprefix(base).split("/"))
