"""Archives that torch's zip reader and ours could read differently: one content for the checks, another to be run."""

from __future__ import annotations

import io
import shutil
import struct
import zipfile
from typing import TYPE_CHECKING

import pytest

from archives import read_members, replace_archive, write_members
from elser_package import as_model_folder, tiny_package
from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.base import ExpansionConfig
from termwise.server.inference.torchscript.names import ARCHIVE
from termwise.server.inference.torchscript.package import inspect_package

if TYPE_CHECKING:
    from pathlib import Path

# What tells a reader of zip files where the large record is.
LOCATOR = b"PK\x06\x07"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return as_model_folder(tiny_package(folder / "package"), folder / "model")


@pytest.fixture
def members(tiny: Path) -> dict[str, bytes]:
    return read_members((tiny / ARCHIVE).read_bytes())


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "model")


def refusal(folder: Path, archive: bytes) -> str:
    replace_archive(folder, archive)
    with pytest.raises(FailedPreconditionError) as raised:
        inspect_package(folder, ExpansionConfig())
    return raised.value.message


def moved(archive: bytes, by: int) -> tuple[bytes, bytes, int]:
    """Take an archive apart for a place `by` bytes into another: its members, its directory, and how many there are."""
    count, size, start = struct.unpack("<H2L", archive[-12:-2])
    directory = bytearray(archive[start : start + size])
    place = 0
    for _ in range(count):
        lengths = struct.unpack_from("<3H", directory, place + 28)
        (offset,) = struct.unpack_from("<L", directory, place + 42)
        struct.pack_into("<L", directory, place + 42, offset + by)
        place += 46 + sum(lengths)
    return archive[:start], bytes(directory), count


def test_a_second_directory_inside_a_tensor_is_refused(members: dict[str, bytes], folder: Path) -> None:
    top = next(iter(members)).split("/")[0]
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
        tensor = zipfile.ZipInfo(f"{top}/data/77")
        body, directory, count = moved(write_members(members), opened.start_dir + 30 + len(tensor.filename))
        start = opened.start_dir + 30 + len(tensor.filename) + len(body)
        large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start)
        opened.writestr(tensor, body + directory + large)
        # torch follows the locator, which stands where it looks for it; Python's reader looks in front of it.
        opened.infolist()[-1].comment = struct.pack("<4sLQL", LOCATOR, 0, start + len(directory), 1)
    assert "two directories" in refusal(folder, held.getvalue())


@pytest.mark.parametrize("shift", [-46, -1, 1, 16, 22])
def test_a_directory_that_does_not_stand_where_the_last_record_says_is_refused(
    shift: int, members: dict[str, bytes], folder: Path
) -> None:
    archive = bytearray(write_members(members))
    (start,) = struct.unpack_from("<L", archive, len(archive) - 6)
    struct.pack_into("<L", archive, len(archive) - 6, start + shift)
    assert refusal(folder, bytes(archive))


@pytest.mark.parametrize(("name", "twin"), [("code/x.py", "code/X.py"), ("data/a", "data/A")])
def test_names_that_differ_in_capital_letters_are_refused(
    name: str, twin: str, members: dict[str, bytes], folder: Path
) -> None:
    # torch takes either for the other: the tensor of one with the size of the other.
    top = next(iter(members)).split("/")[0]
    twins = {f"{top}/{each}": b"" for each in (name, twin)}
    assert "twice" in refusal(folder, write_members(members | twins))


def test_a_member_that_its_own_header_calls_otherwise_is_refused(members: dict[str, bytes], folder: Path) -> None:
    top = next(iter(members)).split("/")[0]
    archive = write_members(members | {f"{top}/data/77": b"1234"})
    changed = archive.replace(b"data/77", b"data/78", 1)
    assert "another one" in refusal(folder, changed)


def test_members_that_share_bytes_are_refused(members: dict[str, bytes], folder: Path) -> None:
    top = next(iter(members)).split("/")[0]
    archive = bytearray(write_members({f"{top}/data/77": bytes(64)} | members))
    # Its header says that so many more bytes stand before the content, which then is that of the next ones.
    struct.pack_into("<H", archive, 28, 200)
    assert "overlap" in refusal(folder, bytes(archive))
