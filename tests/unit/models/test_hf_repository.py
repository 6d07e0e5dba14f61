from __future__ import annotations

import hashlib
import os
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elser_package import tiny_package
from hub import Hub, git_sha1
from termwise.server.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from termwise.server.models import artifacts
from termwise.server.models.repositories import hub_files
from termwise.server.models.repositories.base import FetchStoppedError
from termwise.server.models.repositories.hf import HuggingFaceRepository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Tree = Callable[[Path], dict[str, bytes]]

WEIGHTS = random.Random(1).randbytes(3_000_000)
MODEL = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "model.safetensors": WEIGHTS}
OTHERS = {"pytorch_model.bin": b"pickle", ".gitattributes": b"x", "train.py": b"x", "onnx/model.onnx": b"x"}


def nothing(done: int, total: int) -> None:
    del done, total


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants  # noqa: PLC0415 - slow to import

    monkeypatch.setattr(hub_files, "_PAUSES_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.endpoint)
        template = f"{made.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield made


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    target, scratch = tmp_path / "target", tmp_path / "scratch"
    target.mkdir()
    scratch.mkdir()
    return target, scratch


def fetch(
    folders: tuple[Path, Path],
    uri: str = "hf://org/name",
    *,
    sha256: str = "",
    report: Callable[[int, int], None] = nothing,
    streams: int = 1,
) -> None:
    HuggingFaceRepository(streams).fetch(uri, folders[0], scratch=folders[1], sha256=sha256, report=report)


def test_takes_a_models_files_and_no_others(hub: Hub, folders: tuple[Path, Path], tree: Tree) -> None:
    hub.add("org/name", {**MODEL, **OTHERS, "1_SpladePooling/config.json": b"{}"})
    steps: list[tuple[int, int]] = []
    fetch(folders, sha256=hashlib.sha256(WEIGHTS).hexdigest(), report=lambda done, total: steps.append((done, total)))
    assert tree(folders[0]) == {**MODEL, "1_SpladePooling/config.json": b"{}"}
    total = sum(map(len, MODEL.values())) + 2
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert set(hub.sent) == {*MODEL, "1_SpladePooling/config.json"}


def test_a_folder_of_a_repository(hub: Hub, folders: tuple[Path, Path], tree: Tree) -> None:
    files = {f"models/small/{name}": data for name, data in MODEL.items()}
    commit = hub.add("org/name", {**files, "config.json": b"other", "models/smaller/config.json": b"other"})
    fetch(folders, f"hf://org/name@{commit}/models/small")
    assert tree(folders[0]) == MODEL


def begin(hub: Hub, folders: tuple[Path, Path], streams: int = 1) -> int:
    """Stop a download midway, and give how many bytes it had."""
    hub.hold_after = 2_000_000
    steps = [0]

    def stop(done: int, total: int) -> None:
        del total
        steps.append(done)
        if done >= 1_500_000 and hub.held.is_set():
            raise FetchStoppedError

    with pytest.raises(FetchStoppedError):
        fetch(folders, report=stop, streams=streams)
    hub.hold_after = None
    hub.go.set()
    return steps[-1]


@pytest.mark.parametrize("streams", [1, 3])
def test_what_is_there_is_not_fetched_again(hub: Hub, folders: tuple[Path, Path], tree: Tree, streams: int) -> None:
    hub.add("org/name", MODEL)
    held = begin(hub, folders, streams)
    hub.asked.clear()
    steps: list[int] = []
    fetch(folders, report=lambda done, _: steps.append(done), streams=streams)
    assert tree(folders[0]) == MODEL
    assert min(step for step in steps if step) >= held >= 1_500_000
    assert sum(end - start for _, start, end in hub.asked) <= sum(map(len, MODEL.values())) - held


def test_parts_come_side_by_side(hub: Hub, folders: tuple[Path, Path], tree: Tree) -> None:
    hub.add("org/name", MODEL)
    hub.cuts = [300_000, 1, 100_000]
    hub.failures = [503]
    fetch(folders, streams=3)
    assert tree(folders[0]) == MODEL
    starts = sorted(start for name, start, _ in hub.asked if name == "model.safetensors")
    assert starts[0] == 0
    assert {1_048_576, 2_097_152} < set(starts)
    assert hub.bytes_sent == sum(map(len, MODEL.values()))


def test_a_revision_is_resolved_once(hub: Hub, folders: tuple[Path, Path], tree: Tree) -> None:
    """A download that goes on after the branch moved still is of the commit that it began with."""
    hub.add("org/name", MODEL)
    begin(hub, folders)
    hub.add("org/name", {**MODEL, "config.json": b"newer", "model.safetensors": b"newer"})
    fetch(folders)
    assert tree(folders[0]) == MODEL


def test_cuts_and_busy_answers_are_gone_over(hub: Hub, folders: tuple[Path, Path], tree: Tree) -> None:
    hub.add("org/name", MODEL)
    hub.failures = [503, 429]
    hub.cuts = [700_000, 100, 900_000]
    fetch(folders)
    assert tree(folders[0]) == MODEL
    assert [start for name, start, _ in hub.asked if name == "model.safetensors"] == [0, 700_000, 700_100, 1_600_100]


@pytest.mark.parametrize("streams", [1, 3])
def test_a_server_without_ranges_sends_all_again(
    hub: Hub, folders: tuple[Path, Path], tree: Tree, streams: int
) -> None:
    hub.add("org/name", MODEL)
    hub.ranges = False
    hub.cuts = [700_000]
    steps: list[tuple[int, int]] = []
    fetch(folders, report=lambda done, total: steps.append((done, total)), streams=streams)
    assert tree(folders[0]) == MODEL
    assert steps[-1][0] == steps[-1][1]


def test_a_hub_that_stays_broken_is_unavailable(hub: Hub, folders: tuple[Path, Path]) -> None:
    hub.add("org/name", MODEL)
    hub.failures = [500] * 10
    with pytest.raises(UnavailableError, match=r"hf://org/name@main cannot be had now: .* answers with 500"):
        fetch(folders)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_altered_files_are_refused(hub: Hub, folders: tuple[Path, Path], name: str) -> None:
    hub.add("org/name", MODEL)
    hub.altered[name] = bytes(len(MODEL[name]))
    with pytest.raises(FailedPreconditionError, match=f"{name} of hf://org/name@main has .* instead of") as error:
        fetch(folders)
    assert error.value.reason_code == "CHECKSUM_MISMATCH"
    assert list(folders[0].iterdir()) == []


@pytest.mark.parametrize("streams", [1, 3])
def test_a_file_of_another_size_is_refused(hub: Hub, folders: tuple[Path, Path], streams: int) -> None:
    hub.add("org/name", MODEL)
    hub.altered["model.safetensors"] = bytes(4_000_000)
    with pytest.raises(FailedPreconditionError, match=r"another model.safetensors than the one of 3,000,000 bytes"):
        fetch(folders, streams=streams)


def test_sha256_is_that_of_the_weights(hub: Hub, folders: tuple[Path, Path]) -> None:
    hub.add("org/name", MODEL)
    with pytest.raises(FailedPreconditionError, match="has SHA-256"):
        fetch(folders, sha256="0" * 64)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"x"}, "pytorch_model.bin, a pickle"),
        ({"README.md": b"x"}, "hf://org/name@main lacks config.json"),
        ({}, "hf://org/name@main holds no files"),
    ],
)
def test_what_is_no_model_is_not_fetched(
    hub: Hub, folders: tuple[Path, Path], files: dict[str, bytes], message: str
) -> None:
    hub.add("org/name", files)
    with pytest.raises(FailedPreconditionError, match=message):
        fetch(folders)
    assert hub.sent == {}


def test_a_package_in_elsers_layout(hub: Hub, folders: tuple[Path, Path], tmp_path: Path, tree: Tree) -> None:
    package = tree(tiny_package(tmp_path / "package"))
    hub.add("org/name", {**package, "README.md": b"x", "other/config.json": b"{}"})
    archive = next(data for name, data in package.items() if name.endswith(".pt"))
    fetch(folders, sha256=hashlib.sha256(archive).hexdigest())
    assert sorted(tree(folders[0])) == ["package.metadata.json", "package.pt", "package.vocab.json"]
    assert set(tree(folders[0]).values()) == set(package.values())
    (tmp_path / "wrong").mkdir()
    with pytest.raises(FailedPreconditionError, match=r"package.pt has SHA-256"):
        fetch((tmp_path / "wrong", folders[1]), sha256="0" * 64)


def test_a_full_disk_is_told(hub: Hub, folders: tuple[Path, Path], small_disk: Callable[[int], Any]) -> None:
    hub.add("org/name", MODEL)
    with small_disk(1 << 20), pytest.raises(OSError, match="too large") as error:
        fetch(folders)
    assert isinstance(artifacts.from_os_error(error.value, "fetching"), ResourceExhaustedError)


def test_names_that_lead_out_are_left_alone(hub: Hub, folders: tuple[Path, Path], tree: Tree, tmp_path: Path) -> None:
    hub.add("org/name", {**MODEL, "../evil.json": b"evil", "/etc/evil.json": b"evil", "a/../../evil.json": b"evil"})
    fetch(folders)
    assert tree(folders[0]) == MODEL
    assert b"evil" not in tree(tmp_path).values()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf://org/absent", r'There is no "org/absent" on the Hugging Face Hub \(127.0.0.1\), or it is private'),
        ("hf://org/name@absent", 'has no revision "absent"'),
        ("hf://org/gated", "is gated: accept its terms on the Hub, and set HF_TOKEN"),
        ("hf://org/name@main/absent", "hf://org/name@main/absent holds no files"),
    ],
)
def test_what_is_not_there_is_one_sentence(hub: Hub, folders: tuple[Path, Path], uri: str, message: str) -> None:
    hub.add("org/name", MODEL)
    hub.add("org/gated", MODEL)
    hub.gated.add("org/gated")
    with pytest.raises(FailedPreconditionError, match=message) as error:
        fetch(folders, uri)
    assert error.value.message.count("\n") == 0
    assert error.value.message.endswith(".")


def test_the_token_goes_to_the_hub_alone(
    hub: Hub, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("org/name", MODEL)
    hub.tokens.add("hf_secret")
    with pytest.raises(FailedPreconditionError, match="HF_TOKEN may not read it"):
        fetch(folders)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.failures = [503]
    hub.cuts = [1_000]
    fetch(folders)
    stored = {token for path, token in hub.authorizations if path.startswith("/stored/")}
    assert stored == {None}
    assert "hf_secret" not in caplog.text


def test_a_hub_out_of_reach_is_unavailable(
    hub: Hub, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants  # noqa: PLC0415

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UnavailableError, match=r"cannot be reached \(ConnectError\); check the network, HF_ENDPOINT"):
        fetch(folders)
    assert hub.requests == []


@pytest.mark.parametrize("room", [3_000_000, 10_000_000])
def test_the_disks_room_is_looked_at_first(
    hub: Hub, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    hub.add("org/name", MODEL)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": room + (32 << 20)}))
    if room < 3_000_010:
        with pytest.raises(ResourceExhaustedError, match="needs 3,000,010 bytes"):
            fetch(folders)
        assert hub.sent == {}
    else:
        fetch(folders)


def cache(folder: Path, files: dict[str, bytes], repo: str = "org/name", commit: str = "c" * 40) -> None:
    """Lay files out as huggingface_hub's cache does: contents by their hash, a commit's names linked to them."""
    root = folder / "cache" / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    (root / "blobs").mkdir()
    for name, data in files.items():
        large = name.endswith(".safetensors")
        blob = root / "blobs" / (hashlib.sha256(data).hexdigest() if large else git_sha1(data))
        blob.write_bytes(data)
        link = root / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_the_cache_serves(
    hub: Hub,
    folders: tuple[Path, Path],
    tmp_path: Path,
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    offline: bool,
) -> None:
    from huggingface_hub import constants  # noqa: PLC0415

    if offline:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    cache(tmp_path, {**MODEL, **OTHERS})
    fetch(folders)
    assert tree(folders[0]) == MODEL
    assert hub.requests == []


def test_offline_without_a_cached_model_says_so(
    hub: Hub, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants  # noqa: PLC0415

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FailedPreconditionError, match=r"not in the local cache .* HF_HUB_OFFLINE keeps the server"):
        fetch(folders)
    assert hub.requests == []


def test_a_broken_cache_is_refused(
    hub: Hub, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants  # noqa: PLC0415

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache(tmp_path, MODEL)
    blob = tmp_path / "cache" / "models--org--name" / "blobs" / hashlib.sha256(WEIGHTS).hexdigest()
    blob.write_bytes(bytes(len(WEIGHTS)))
    with pytest.raises(FailedPreconditionError, match=r"model.safetensors of .* has SHA-256"):
        fetch(folders)
    assert hub.requests == []


def test_what_the_cache_holds_of_a_commit_is_not_fetched(
    hub: Hub, folders: tuple[Path, Path], tmp_path: Path, tree: Tree
) -> None:
    commit = hub.add("org/name", MODEL)
    cache(tmp_path, {"model.safetensors": WEIGHTS}, commit=commit)
    fetch(folders)
    assert tree(folders[0]) == MODEL
    assert set(hub.sent) == {"config.json", "tokenizer.json"}


@pytest.mark.parametrize(
    "uri",
    [
        "hf://",
        "hf://name",
        "hf://org/",
        "hf://org/name@",
        "hf://org/name@main/../x",
        "hf://org/name@main//x",
        "hf://org/..",
        "hf://org/na--me",
        "hf://-org/name",
        "hf://org/name@main?x",
        "hf://org/name@a%2F..%2Fb",
        "hf://user:secret@org/name",
        "hf://org/name@main/a\\b",
    ],
)
def test_form_is_checked(uri: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        HuggingFaceRepository().check(uri)
    assert caught.value.violations[0].field == "source_uri"


@pytest.mark.parametrize(
    "uri", ["hf://org/name", "hf://org/name@v1.0", "hf://a/b@refs%2Fpr%2F1/folder/inner", "hf://a/b/folder"]
)
def test_good_forms_pass(uri: str) -> None:
    HuggingFaceRepository().check(uri)


@given(st.text(st.sampled_from("aZ0/@.-%_+#? \\2Fü"), max_size=20))
def test_any_text_is_refused_or_names_a_repository(text: str) -> None:
    try:
        HuggingFaceRepository().check(f"hf://{text}")
    except InvalidArgumentError:
        return
    assert ".." not in text.replace("%2F", "/").split("/")
    assert "/" in text
