"""Objects of an archive that are not what its code says of them: torch would read what lies behind them."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING

import pytest
import torch

from archives import change, read_members, replace_archive, save
from elser_package import as_model_folder, tiny_package
from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.base import ExpansionConfig
from termwise.server.inference.torchscript.package import inspect_package, load_package
from termwise.server.inference.torchscript.pickles import MOST_STEPS, read_pickle
from termwise.server.inference.torchscript.source import check_source

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CONFIG = ExpansionConfig()


class Small(torch.nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return ids


class Large(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.ones(14))
        self.pairs = torch.jit.Attribute([(1, "one"), (2, "two")], list[tuple[int, str]])
        self.named = torch.jit.Attribute({"half": 0.5}, dict[str, float])

    def answer(self, ids: Tensor) -> Tensor:
        number, _ = self.pairs[0]
        return self.table * number * self.named["half"] + 0 * ids.sum()

    def forward(self, ids: Tensor) -> Tensor:
        return self.answer(ids)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small = Small()
        self.large = Large()

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        return self.large.answer(self.small(ids))


@pytest.fixture(scope="module")
def good() -> bytes:
    return save(torch.jit.script(Model()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return as_model_folder(tiny_package(tmp_path / "package"), tmp_path / "model")


def refusal(folder: Path, archive: bytes) -> str:
    replace_archive(folder, archive)
    with pytest.raises(FailedPreconditionError) as raised:
        inspect_package(folder, CONFIG)
    assert raised.value.reason_code == "TORCHSCRIPT_UNSAFE"
    return raised.value.message


def text(value: str) -> bytes:
    return b"X" + struct.pack("<L", len(value)) + value.encode()


def test_a_model_with_attributes_of_all_kinds_runs(good: bytes, folder: Path) -> None:
    replace_archive(folder, good)
    assert inspect_package(folder, CONFIG).layout == "torchscript"
    assert load_package(folder, CONFIG)


def kind(code: bytes, name: str) -> tuple[bytes, bytes]:
    """Give a class's module and name as a pickle has them."""
    (line,) = (each for each in code.decode().splitlines() if each.startswith(f"  {name.lower()} : "))
    module, _, last = line.split(" : ")[1].rpartition(".")
    return module.encode(), last.encode()


def test_an_object_of_another_class_is_refused(good: bytes, folder: Path) -> None:
    members = read_members(good)
    (code,) = (content for name, content in members.items() if name.endswith(".py") and b"class Model" in content)
    (small, large) = (b"c" + b"\n".join(kind(code, name)) + b"\n" for name in ("Small", "Large"))
    # The field that is declared as Large holds an object of Small, which has none of its fields.
    archive = change(good, r"/data\.pkl$", lambda raw: raw.replace(large, small))
    assert "something else at 'large'" in refusal(folder, archive)


@pytest.mark.parametrize(
    ("held", "instead", "place"),
    [
        (text("one"), b"K\x05", "pairs"),
        (text("two"), b"NN", "pairs"),
        (b"G" + struct.pack(">d", 0.5), b"K\x01", "named"),
    ],
)
def test_a_container_of_other_things_is_refused(
    held: bytes, instead: bytes, place: str, good: bytes, folder: Path
) -> None:
    archive = change(good, r"/data\.pkl$", lambda raw: raw.replace(held, instead))
    assert place in refusal(folder, archive)


def test_a_cast_to_another_class_is_refused_before_it_runs(good: bytes, folder: Path) -> None:
    members = read_members(good)
    (code,) = (content for name, content in members.items() if name.endswith(".py") and b"class Model" in content)
    large = b".".join(kind(code, "Large"))
    cast = b"large = unchecked_cast(" + large + b", self.small)"
    replace_archive(folder, change(good, r"\.py$", lambda each: each.replace(b"large = self.large", cast)))
    with pytest.raises(FailedPreconditionError, match="unseen"):
        load_package(folder, CONFIG)


def test_constants_that_are_no_tensors_are_refused(good: bytes, folder: Path) -> None:
    archive = change(good, r"/constants\.pkl$", lambda _: b"\x80\x02(K\x01t.")
    assert "constants.pkl" in refusal(folder, archive)


def test_lines_of_code_that_lead_nowhere_are_refused(good: bytes, folder: Path) -> None:
    texts = text("FORMAT_WITH_STRING_TABLE") + b"(" + text("a") + b"t"
    for line in (b"K\x00K\x00\x86", b"(K\x00((](K\x07eK\x00K\x00tK\x00K\x00tK\x00t"):
        raw = b"\x80\x02(" + texts + b"(" + line + b"tt."
        assert "lines of code" in refusal(folder, change(good, r"\.debug_pkl$", lambda _, raw=raw: raw))


@pytest.mark.parametrize(
    "raw",
    [
        # What is appended, entered or kept is a mark: torch would take what lies below it.
        b"\x80\x02](a.",
        b"\x80\x02}K\x01(s.",
        b"\x80\x02](q\x00h\x00K\x01e.",
        # One key for Python, two for torch.
        b"\x80\x02}(K\x01K\x02K\x01K\x03u.",
        b"\x80\x02}(K\x01K\x02G?\xf0\x00\x00\x00\x00\x00\x00K\x03u.",
        b"\x80\x02}(\x88K\x02u.",
        # An object without its state is a number for torch.
        b"\x80\x02c__torch__\nA\n)\x81K\x01b.",
    ],
)
def test_what_two_readers_of_a_pickle_take_for_different_things_is_refused(raw: bytes) -> None:
    with pytest.raises(FailedPreconditionError):
        read_pickle(raw, "data.pkl", lambda _: -1)


def test_pickles_are_counted_together() -> None:
    steps = itertools.count(MOST_STEPS - 3)
    raw = b"\x80\x02}."
    read_pickle(raw, "data.pkl", lambda _: -1, steps)
    with pytest.raises(FailedPreconditionError, match="steps"):
        read_pickle(raw, "constants.pkl", lambda _: -1, steps)


CLASS = b"class A(Module):\n  __parameters__ = []\n  x : int\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ({"code/__torch__/a.py": CLASS + CLASS}, "twice"),
        ({"code/__torch__/a/b.py": CLASS, "code/__torch__/a.b.py": CLASS}, "name"),
        ({"code/__torch__/a.py": CLASS + b"  x : Tensor\n"}, "declares"),
        ({"code/__torch__/a.py": CLASS + b'  __forward_hooks__ : List[str] = ["x"]\n'}, "declares"),
        ({"code/__torch__/a.py": b"\n" * (3 << 20)}, "bytes"),
    ],
)
def test_code_that_defines_something_twice_or_too_much_is_refused(code: dict[str, bytes], said: str) -> None:
    with pytest.raises(FailedPreconditionError, match=said):
        check_source(code)


def test_the_time_that_code_takes_grows_with_its_length_alone() -> None:
    classes = b"".join(
        b"class A%d(Module):\n  def forward(self: A%d, x: int) -> int:\n    return x\n" % (n, n) for n in range(2000)
    )
    calls = b"def f(x: A1) -> int:\n" + b"".join(b"  a = (x).forward(1, )\n" for _ in range(4_000)) + b"  return a\n"
    assert check_source({"code/__torch__/a.py": classes, "code/__torch__/b.py": calls}).largest() > 0
