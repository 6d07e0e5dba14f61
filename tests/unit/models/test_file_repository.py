from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.errors import FailedPreconditionError, InvalidArgumentError
from termwise.server.models.repositories.base import FetchStoppedError
from termwise.server.models.repositories.file import FileRepository
from termwise.server.models.repositories.pypi import PyPIRepository

if TYPE_CHECKING:
    from collections.abc import Callable

    Tree = Callable[[Path], dict[str, bytes]]


ROOT = Path("/")


def nothing(done: int, total: int) -> None:
    del done, total


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def fetch(source: Path, target: Path, *, sha256: str = "", report: Callable[[int, int], None] = nothing) -> None:
    scratch = target.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    uri = f"file://{quote(str(source))}"
    FileRepository(ROOT).fetch(uri, target, scratch=scratch, sha256=sha256, report=report)


def test_copies_what_a_model_needs_and_no_pickle(source: Path, target: Path, tree: Tree) -> None:
    (source / "1_SpladePooling").mkdir()
    (source / "1_SpladePooling" / "config.json").write_text("{}")
    for name in ("pytorch_model.bin", "heads.pt", "optimizer.pkl", "model.onnx", "modeling_mine.py", ".hidden.json"):
        (source / name).write_bytes(b"x")
    (source / ".git").mkdir()
    (source / ".git" / "config.json").write_text("{}")
    fetch(source, target)
    assert sorted(tree(target)) == [
        "1_SpladePooling/config.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_progress_is_exact(source: Path, target: Path) -> None:
    (source / "model.safetensors").write_bytes(bytes(3_000_000))
    steps: list[tuple[int, int]] = []
    fetch(source, target, report=lambda done, total: steps.append((done, total)))
    assert {total for _, total in steps} == {3_000_004}
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert len(steps) > 4
    assert steps[-1] == (3_000_004, 3_000_004)


def test_a_stop_ends_the_copy(source: Path, target: Path) -> None:
    (source / "model.safetensors").write_bytes(bytes(3_000_000))

    def stop(done: int, total: int) -> None:
        del total
        if done > 1_000_000:
            raise FetchStoppedError

    with pytest.raises(FetchStoppedError):
        fetch(source, target, report=stop)


@pytest.mark.parametrize(
    ("missing", "extra", "message"),
    [
        ("tokenizer.json", (), "lacks its tokenizer; add tokenizer.json"),
        ("config.json", (), "lacks config.json"),
        ("model.safetensors", (), "lacks model.safetensors"),
        ("model.safetensors", ("pytorch_model.bin",), "holds pytorch_model.bin, a pickle.*save_pretrained"),
        ("model.safetensors", ("model.pt",), "holds model.pt, a pickle"),
    ],
)
def test_a_lacking_file_is_named(
    source: Path, target: Path, missing: str, extra: tuple[str, ...], message: str, tree: Tree
) -> None:
    (source / missing).unlink()
    for name in extra:
        (source / name).write_bytes(b"x")
    with pytest.raises(FailedPreconditionError, match=message):
        fetch(source, target)
    assert tree(target) == {}


def test_vocabulary_file_is_a_tokenizer(source: Path, target: Path, tree: Tree) -> None:
    (source / "tokenizer.json").rename(source / "vocab.txt")
    fetch(source, target)
    assert "vocab.txt" in tree(target)


def test_a_missing_folder_is_named(tmp_path: Path, target: Path) -> None:
    with pytest.raises(FailedPreconditionError, match=r'no folder ".*/absent"'):
        fetch(tmp_path / "absent", target)


def test_checksum_names_both(source: Path, target: Path) -> None:
    actual = hashlib.sha256(b"weights").hexdigest()
    fetch(source, target, sha256=actual)
    for file in target.iterdir():
        file.unlink()
    with pytest.raises(FailedPreconditionError) as caught:
        fetch(source, target, sha256="0" * 64)
    assert actual in caught.value.message
    assert "0" * 64 in caught.value.message
    assert caught.value.metadata == {"actual_sha256": actual, "expected_sha256": "0" * 64}


def test_links_inside_are_followed(source: Path, target: Path, tree: Tree) -> None:
    (source / "blob.safetensors").write_bytes(b"weights")
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to("blob.safetensors")
    fetch(source, target)
    assert tree(target)["model.safetensors"] == b"weights"
    assert not (target / "model.safetensors").is_symlink()


def test_links_that_lead_out_are_refused(tmp_path: Path, source: Path, target: Path, tree: Tree) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("secret")
    (source / "extra.json").symlink_to(secret)
    with pytest.raises(FailedPreconditionError, match=r'"extra.json" is a link that leads out'):
        fetch(source, target)
    assert b"secret" not in tree(target).values()


def test_linked_folders_are_left_alone(tmp_path: Path, source: Path, target: Path, tree: Tree) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    (source / "linked").symlink_to(other)
    (source / "itself").symlink_to(source)
    fetch(source, target)
    assert sorted(tree(target)) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_pipe_is_refused_instead_of_read_for_ever(source: Path, target: Path) -> None:
    os.mkfifo(source / "pipe.json")
    with pytest.raises(FailedPreconditionError, match="no regular file"):
        fetch(source, target)


def test_names_with_odd_characters(tmp_path: Path, source: Path, target: Path, tree: Tree) -> None:
    odd = tmp_path / "a #1 %20? ü"
    source.rename(odd)
    fetch(odd, target)
    assert len(tree(target)) == 3


@pytest.mark.parametrize(
    "uri",
    [
        "file://",
        "file:///",
        "file://host/folder",
        "file:folder",
        "file:///a?b",
        "file:///a#b",
        "file:///a%00b",
        "file://[",
        "file:///a/../b",
        "file:///a/%2e%2e/b",
    ],
)
def test_file_form_is_checked(uri: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        FileRepository(ROOT).check(uri)
    assert caught.value.violations[0].field == "source_uri"


@given(st.text().map("file://{}".format) | st.text().map("pypi://{}".format) | st.text())
def test_any_text_is_a_source_or_refused(uri: str) -> None:
    for repository in (FileRepository(ROOT), PyPIRepository()):
        try:
            repository.check(uri)
        except InvalidArgumentError as error:
            assert error.violations[0].field == "source_uri"  # noqa: PT017
        else:
            assert uri.startswith(repository.scheme + ":")


def package(folder: Path, name: str = "elser", archive: bytes = b"archive", **says: object) -> Path:
    """Write a package's files; nothing here looks into its archive."""
    metadata = {
        "packaged_model_id": name,
        "size": len(archive),
        "sha256": hashlib.sha256(archive).hexdigest(),
        "vocabulary_file": f"{name}.vocab.json",
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.metadata.json").write_text(json.dumps(metadata | says))
    (folder / f"{name}.pt").write_bytes(archive)
    (folder / f"{name}.vocab.json").write_text('{"vocabulary": ["a"]}')
    return folder


CANONICAL = ["package.metadata.json", "package.pt", "package.vocab.json"]


@pytest.mark.parametrize("named", ["", "elser.metadata.json"])
def test_a_package_is_copied_under_its_names_here(tmp_path: Path, target: Path, tree: Tree, named: str) -> None:
    folder = package(tmp_path / "elser")
    (folder / "README.md").write_text("x")
    fetch(folder / named, target, sha256=hashlib.sha256(b"archive").hexdigest())
    assert sorted(tree(target)) == CANONICAL


def test_of_several_packages_one_is_named(tmp_path: Path, target: Path, tree: Tree) -> None:
    folder = package(package(tmp_path / "both"), "other")
    with pytest.raises(FailedPreconditionError, match=r"holds 2 packages .*file://…/elser.metadata.json"):
        fetch(folder, target)
    fetch(folder / "other.metadata.json", target)
    assert sorted(tree(target)) == CANONICAL


@pytest.mark.parametrize(
    ("says", "reason", "message"),
    [
        ({"size": 6}, "SIZE_MISMATCH", "7 bytes instead of the 6"),
        ({"sha256": "0" * 64}, "CHECKSUM_MISMATCH", "has SHA-256"),
        ({"size": None}, "PACKAGE_UNUSABLE", "size"),
        ({"packaged_model_id": "../secret"}, "PACKAGE_UNUSABLE", "no plain name"),
        ({"packaged_model_id": "/etc/secret"}, "PACKAGE_UNUSABLE", "no plain name"),
        ({"vocabulary_file": "../secret.json"}, "PACKAGE_UNUSABLE", "vocabulary_file"),
        ({"vocabulary_file": "absent.json"}, "MODEL_UNUSABLE", "lacks absent.json"),
        ({"vocabulary_file": "link.json"}, "MODEL_UNUSABLE", '"link.json" is a link that leads out'),
        ({"vocabulary_file": "long.json"}, "SOURCE_UNUSABLE", "20,000,001 bytes or more, over the 20,000,000"),
    ],
)
def test_a_package_of_no_use_says_why(
    tmp_path: Path, target: Path, tree: Tree, says: dict[str, object], reason: str, message: str
) -> None:
    folder = package(tmp_path / "elser", **says)
    (tmp_path / "secret.json").write_text("secret")
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    with (folder / "long.json").open("wb") as sink:
        sink.truncate(20_000_001)
    for source in (folder, folder / "elser.metadata.json"):
        with pytest.raises(FailedPreconditionError, match=message) as caught:
            fetch(source, target)
        assert caught.value.reason_code == reason
        assert tree(target) == {}


def test_sources_lie_in_the_folder_of_models(tmp_path: Path, source: Path, target: Path, tree: Tree) -> None:
    models = tmp_path / "models"
    models.mkdir()
    repository = FileRepository(models)
    for uri in (f"file://{source}", f"file://{tmp_path}", f"file://{models}-2/x"):
        with pytest.raises(InvalidArgumentError, match="does not lie in the folder that the setting model_folder"):
            repository.check(uri)
    (models / "out").symlink_to(source)
    repository.check(f"file://{models}/out")
    for name in ("out", "out/config.json.metadata.json"):
        with pytest.raises(FailedPreconditionError, match=r"leads out of the folder .* model_folder") as caught:
            repository.fetch(f"file://{models}/{name}", target, scratch=target, sha256="", report=nothing)
        assert caught.value.reason_code == "SOURCE_LEADS_OUT"
    assert tree(target) == {}
    source.rename(models / "in")
    (models / "also").symlink_to("in")
    repository.fetch(f"file://{models}/also", target, scratch=target, sha256="", report=nothing)
    assert len(tree(target)) == 3


def test_without_a_folder_of_models_there_are_no_file_sources(source: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="set model_folder") as caught:
        FileRepository(None).check(f"file://{source}")
    assert caught.value.reason_code == "MODEL_FOLDER_NOT_SET"
