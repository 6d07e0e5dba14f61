"""What is refused before any of an archive is loaded, and what is not."""

from __future__ import annotations

import contextlib
import io
import keyword
import os
import pickle
import re
import shutil
import stat
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archives import change, read_members, replace_archive, save, write_members
from elser_package import as_model_folder, tiny_package
from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.base import ExpansionConfig
from termwise.server.inference.torchscript.copying import copied
from termwise.server.inference.torchscript.names import ARCHIVE
from termwise.server.inference.torchscript.operators import ALLOWED, CHANCE, DORMANT
from termwise.server.inference.torchscript.package import inspect_package, load_package
from termwise.server.inference.torchscript.source import check_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

CONFIG = ExpansionConfig()
# The code of the small model; torch gives a class another name where the process knows one of its name.
CODE = r"/elser_package(/___torch_mangle_\d+)?\.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return as_model_folder(tiny_package(folder / "package"), folder / "model")


@pytest.fixture(scope="module")
def good(tiny: Path) -> bytes:
    return (tiny / ARCHIVE).read_bytes()


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "model")


@pytest.fixture(scope="module")
def scratch(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder whose archive is written anew by each example."""
    return shutil.copytree(tiny, tmp_path_factory.mktemp("scratch") / "model")


def refusal(folder: Path, archive: bytes) -> FailedPreconditionError:
    """Give why an archive is refused, which is found out before anything is loaded."""
    replace_archive(folder, archive)
    with pytest.raises(FailedPreconditionError) as raised:
        inspect_package(folder, CONFIG)
    with pytest.raises(FailedPreconditionError) as again:
        load_package(folder, CONFIG)
    assert again.value.message == raised.value.message
    assert raised.value.message.endswith(".")
    assert raised.value.message.isascii()
    return raised.value


class Answers(torch.nn.Module):
    """The end of the hand-written models below."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.ones(14))


class SavesState(Answers):
    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.table, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        torch.save(state[0], "stolen")
        self.table = state[0]
        self.training = state[1]

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        return self.table


class WritesFile(Answers):
    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        torch.save(ids, "stolen")
        return self.table


class ReadsFile(Answers):
    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        return torch.from_file("/etc/hostname", False, 14)  # noqa: FBT003


class ReachesBeyond(Answers):
    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        return torch.as_strided(self.table, [1, 14], [1, 1], 1000)


class Forks(Answers):
    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        return torch.jit.wait(torch.jit.fork(torch.neg, self.table))


class Prints(Answers):
    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        print(ids)
        return self.table


class ShowsMemory(Answers):
    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        return torch.empty([1, 14])


SCRIPTED = [
    (SavesState, "__setstate__|__getstate__"),
    (WritesFile, "aten::save"),
    (ReadsFile, "aten::from_file"),
    (ReachesBeyond, "aten::as_strided"),
    (Forks, "FunctionDef"),
    (Prints, "print"),
    (ShowsMemory, "aten::empty"),
]


@pytest.mark.parametrize(("kind", "named"), SCRIPTED)
def test_code_that_a_model_does_not_need_is_refused_by_name(
    kind: type[torch.nn.Module], named: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive = save(torch.jit.script(kind()))
    monkeypatch.chdir(tmp_path)
    error = refusal(folder, archive)
    assert error.reason_code == "TORCHSCRIPT_UNSAFE"
    assert any(each in error.message for each in named.split("|"))
    assert not (tmp_path / "stolen").exists()


class Runs:
    """Pickled, it runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch stolen",)


@pytest.mark.parametrize("member", [r"/data\.pkl$", r"/constants\.pkl$", rf"{CODE}\.debug_pkl$"])
def test_a_pickle_inside_that_runs_code_is_refused(
    member: str, good: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = change(good, member, lambda _: pickle.dumps({"a": Runs()}, 2))
    assert "system" in refusal(folder, archive).message
    assert not (tmp_path / "stolen").exists()


def plain_pickles() -> list[bytes]:
    made = []
    for arguments in ({}, {"_use_new_zipfile_serialization": False}):
        held = io.BytesIO()
        torch.save({"weight": torch.ones(2), "runs": Runs()}, held, **arguments)
        made.append(held.getvalue())
    return [*made, pickle.dumps(Runs()), pickle.dumps({"weight": 1}, 2)]


@pytest.mark.parametrize("archive", plain_pickles(), ids=["zip", "legacy", "protocol-4", "protocol-2"])
def test_a_plain_pickle_is_refused_with_how_to_convert_it(archive: bytes, folder: Path) -> None:
    error = refusal(folder, archive)
    assert error.reason_code == "MODEL_IS_PICKLE"
    assert "torch.jit.trace" in error.message
    assert "save_pretrained" in error.message


def entry(name: str, **fields: Any) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    for key, value in fields.items():
        setattr(made, key, value)
    return made


LINK = (stat.S_IFLNK | 0o777) << 16
MEMBERS: list[tuple[Any, bytes, str]] = [
    ("archive/../../etc/cron", b"", "etc/cron"),
    ("/etc/passwd", b"", "/etc/passwd"),
    ("archive/data/..", b"", "data/.."),
    ("archive\\code\\x.py", b"", "code"),
    ("archive/code/x.py\n", b"", "x.py"),
    ("elsewhere/data/0", b"", "one folder"),
    ("top", b"", "top"),
    (entry("archive/data/99", external_attr=LINK), b"/etc/passwd", "link"),
    ("archive/code/x.so", b"", "does not have"),
    ("archive/bytecode.pkl", b"", "does not have"),
    ("archive/data/deep/er", b"", "does not have"),
]


@pytest.mark.parametrize(("member", "content", "said"), MEMBERS, ids=[each[2] for each in MEMBERS])
def test_members_that_do_not_belong_are_refused(
    member: Any, content: bytes, said: str, good: bytes, folder: Path
) -> None:
    members = read_members(good)
    top = next(iter(members)).split("/")[0]
    renamed = [(name.replace(f"{top}/", "archive/", 1), held) for name, held in members.items()]
    error = refusal(folder, write_members([*renamed, (member, content)]))
    assert error.reason_code == "TORCHSCRIPT_UNSAFE"
    assert said in error.message


def test_an_archive_may_have_been_called_anything(good: bytes, folder: Path) -> None:
    members = read_members(good)
    top = next(iter(members)).split("/")[0]
    renamed = {name.replace(f"{top}/", "mod\u00e8le (2)/", 1): held for name, held in members.items()}
    replace_archive(folder, write_members(renamed))
    assert load_package(folder, CONFIG).engine == "torchscript"


def test_torch_reads_a_copy_of_what_was_looked_through(good: bytes, folder: Path) -> None:
    members = read_members(good)
    top = next(iter(members)).split("/")[0]
    replace_archive(folder, write_members(members | {f"{top}/extra/notes.txt": b"secret"}))
    with copied(folder / ARCHIVE) as path, zipfile.ZipFile(path) as made:
        held = {name.partition("/")[2]: made.read(name) for name in made.namelist()}
    inner = {name.partition("/")[2]: content for name, content in members.items()}
    assert held.items() <= inner.items()
    assert set(inner) - set(held) == {
        name for name in inner if name.endswith(".debug_pkl") or name.startswith(("traced_inputs", ".data/serial"))
    }
    assert load_package(folder, CONFIG).engine == "torchscript"


def test_a_member_twice_is_refused(good: bytes, folder: Path) -> None:
    members = list(read_members(good).items())
    with pytest.warns(UserWarning, match="Duplicate"):
        archive = write_members([*members, members[0]])
    assert "twice" in refusal(folder, archive).message


def test_something_before_or_behind_the_archive_is_refused(good: bytes, folder: Path) -> None:
    held = io.BytesIO(b"PK\x03\x04" + b"\0" * 60)
    held.seek(0, io.SEEK_END)
    with zipfile.ZipFile(held, "a") as opened:
        for name, content in read_members(good).items():
            opened.writestr(name, content)
    assert "before" in refusal(folder, held.getvalue()).message
    assert "incomplete" in refusal(folder, good + b"more").message


def test_what_grows_beyond_measure_is_refused(good: bytes, folder: Path) -> None:
    bomb = change(good, f"{CODE}$", lambda code: code + b"\n" * (65 << 20))
    assert len(bomb) < 1 << 20
    assert "code and pickles take" in refusal(folder, bomb).message
    squeezed = io.BytesIO()
    with zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in read_members(good).items():
            opened.writestr(name, content)
        opened.writestr(name.split("/")[0] + "/data/0", bytes(1 << 20))
    assert "compressed" in refusal(folder, squeezed.getvalue()).message


def test_an_encrypted_archive_is_refused(good: bytes, folder: Path) -> None:
    # The bit stands in both headers of each member.
    archive = bytearray(good)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = archive.find(mark)
        while start >= 0:
            archive[start + place] |= 1
            start = archive.find(mark, start + 4)
    assert "encrypted" in refusal(folder, bytes(archive)).message


EDITS: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("unknown operator", lambda code: code.replace(b"torch.index_put(", b"ops.evil.run("), "evil::run"),
    ("other operator", lambda code: code.replace(b"torch.ge(", b"torch.from_file("), "aten::from_file"),
    ("alias", lambda code: code.replace(b"    counts = self.counts", b"    counts = torch"), '"torch"'),
    ("default", lambda code: code.replace(b"position_ids: Tensor)", b"position_ids: Tensor=torch.ones(1))"), "default"),
    (
        "constant",
        lambda code: code.replace(b"  training : bool", b"  training : Final[int] = torch.seed()", 1),
        "constant",
    ),
    ("comment", lambda code: code.replace(b"  training : bool\n", b"  training : bool # x\n", 1), "comment"),
    ("letters", lambda code: code.replace(b"training", "tra\u0131ning".encode(), 1), "letters"),
    ("control", lambda code: code.replace(b"  training", b"\x0c  training", 1), "control"),
    ("continued", lambda code: code.replace(b"  training : bool", b"  training \\\n : bool", 1), "continues"),
    ("string", lambda code: code.replace(b"__parameters__ = []", b"__parameters__ = ['''a''']", 1), "string"),
    ("statement", lambda code: b"import os\n" + code, "outside"),
    ("class", lambda code: code.replace(b"(Module)", b"(Interface)", 1), "not a module"),
    ("hooks", lambda code: code.replace(b"__buffers__ = []", b'__forward_hooks__ = ["forward", ]', 1), "hooks"),
    ("lambda", lambda code: code.replace(b"    counts = self.counts", b"    counts = lambda x: x"), "Lambda"),
    ("name", lambda code: code.replace(b"    counts = self.counts", b"    counts = open"), '"open"'),
    ("call", lambda code: code.replace(b"    counts = self.counts", b'    counts = exec("x")'), '"exec"'),
    ("attribute", lambda code: code.replace(b"self.counts", b"self.__class__"), '"__class__"'),
    ("shadow", lambda code: code.replace(b"position_ids", b"torch"), "another meaning"),
    (
        "shadow by assignment",
        lambda code: code.replace(b"    counts = ", b"    ops = 1\n    counts = ", 1),
        "another meaning",
    ),
    ("syntax", lambda code: code.replace(b"(Module)", b"(Module", 1), "not TorchScript"),
    ("nesting", lambda code: code.replace(b"torch.ge(", b"torch.ge(" + b"-" * 300, 1), "levels"),
    ("itself", lambda code: code.replace(b"(counts).forward(", b"(self).forward("), "calls itself"),
]


@pytest.mark.parametrize(("edit", "said"), [each[1:] for each in EDITS], ids=[each[0] for each in EDITS])
def test_code_that_torch_does_not_write_is_refused(
    edit: Callable[[bytes], bytes], said: str, good: bytes, folder: Path
) -> None:
    error = refusal(folder, change(good, f"{CODE}$", edit))
    assert error.reason_code == "TORCHSCRIPT_UNSAFE"
    assert said in error.message


OTHERS = sorted({each.name for each in torch._C._jit_get_all_schemas()} - ALLOWED - DORMANT)


def test_the_list_names_what_torch_has_and_leaves_out_what_it_should() -> None:
    known = {each.name for each in torch._C._jit_get_all_schemas()}
    # Methods that torch writes as aten::to, which have no schema of their own.
    sugar = {f"aten::{each}" for each in ("bool", "double", "float", "half", "int", "long")}
    assert {each for each in ALLOWED if not each.startswith("prim::")} <= known | sugar
    assert ALLOWED >= CHANCE
    wanted = (
        "aten::manual_seed aten::index_put_ prim::Loop prim::If aten::rand quantized::linear_dynamic aten::embedding"
    )
    assert set(wanted.split()) <= ALLOWED
    unwanted = (
        "save from_file as_strided as_strided_ set_ resize_ empty empty_like new_empty _index_put_impl_ cuda wait"
    )
    assert not {f"aten::{each}" for each in unwanted.split()} & (ALLOWED | DORMANT)


@given(operator=st.sampled_from(OTHERS), method=st.booleans())
def test_no_operator_that_is_not_listed_passes(operator: str, method: bool) -> None:
    space, _, name = operator.partition("::")
    called = f"torch.{name}(x)" if space == "aten" else f"ops.{space}.{name}(x)"
    if method:
        called = f"(x).{name}(1)"
    if not name.isidentifier() or keyword.iskeyword(name):
        called = "torch.save(x)"
    code = f"def f(x: Tensor) -> Tensor:\n  return {called}\n".encode("ascii")
    if method and any(f"{each}::{name}" in ALLOWED | DORMANT for each in ("aten", "prim")):
        return
    with pytest.raises(FailedPreconditionError):
        check_source({"code/__torch__/f.py": code})


def test_calls_that_unfold_without_end_are_refused_before_they_unfold(good: bytes, folder: Path) -> None:
    doubling = "def f0(x: Tensor) -> Tensor:\n  return torch.neg(x)\n"
    for number in range(1, 40):
        called = f"__torch__.more.f{number - 1}"
        doubling += f"def f{number}(x: Tensor) -> Tensor:\n  return {called}({called}(x, ), )\n"

    def edit(code: bytes) -> bytes:
        return code.replace(b"    content = ", b"    again = __torch__.more.f39(_0, )\n    content = ")

    members = read_members(change(good, f"{CODE}$", edit))
    top = next(iter(members)).split("/")[0]
    archive = write_members(members | {f"{top}/code/__torch__/more.py": doubling.encode()})
    assert "1000000 steps" in refusal(folder, archive).message


def test_the_loaded_graph_is_checked_too(good: bytes, folder: Path) -> None:
    # The name of another class's field hides the operator from whoever reads the code.
    other = b"class Other(Module):\n  __parameters__ = []\n  __buffers__ = []\n  as_strided : Tensor\n"
    used = (b"torch.ge(_1, 5)", b"torch.ge((_1).as_strided([14], [1], 99999), 5)")
    archive = change(good, f"{CODE}$", lambda code: code.replace(*used) + other)
    replace_archive(folder, archive)
    with pytest.raises(FailedPreconditionError, match="aten::as_strided"):
        load_package(folder, CONFIG)


class Remembers(Answers):
    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(14)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        self.seen = self.seen + 1.0
        return self.seen


class Counts(Answers):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(14))

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        return self.seen.add_(1.0)  # type: ignore[operator]


@pytest.mark.parametrize(("kind", "said"), [(Remembers, "prim::SetAttr"), (Counts, "another answer each time")])
def test_a_model_that_keeps_something_between_texts_is_refused(
    kind: type[torch.nn.Module], said: str, folder: Path
) -> None:
    replace_archive(folder, save(torch.jit.script(kind())))
    with pytest.raises(FailedPreconditionError, match=said):
        load_package(folder, CONFIG)


class Table(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.arange(14.0).reshape(2, 7))

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        return self.table.reshape(1, 14)


# The elements of a store, a tensor's shape, its stride and its offset, as a pickle writes them down.
SIZES: list[tuple[bytes, bytes, str]] = [
    (b"K\x0et", b"K\x0ft", "longer than what is stored"),
    (b"K\x0et", b"J\xff\xff\xff\x7ft", "longer than what is stored"),
    (b"K\x02K\x07t", b"K\x03K\x07t", "reaches beyond"),
    (b"K\x07K\x01t", b"K\x08K\x01t", "reaches beyond"),
    (b"QK\x00(", b"QK\x01(", "reaches beyond"),
    (b"K\x07K\x01t", b"J\xff\xff\xff\xffK\x01t", "broken"),
]


@pytest.mark.parametrize(("written", "instead", "said"), SIZES)
def test_a_tensor_that_shows_the_memory_behind_it_is_refused(
    written: bytes, instead: bytes, said: str, folder: Path
) -> None:
    archive = save(torch.jit.trace(Table(), (torch.ones(1, 3, dtype=torch.long),) * 4))
    replace_archive(folder, archive)
    load_package(folder, CONFIG)

    def edit(raw: bytes) -> bytes:
        # Without the note that it may refer to the store later, which stands between the parts.
        return re.sub(rb"Qq.K", b"QK", raw).replace(written, instead, 1)

    assert said in refusal(folder, change(archive, r"/data\.pkl$", edit)).message


places = st.floats(0, 1, exclude_max=True)


@given(changes=st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4), end=places | st.just(1.0))
@settings(max_examples=150)
def test_a_damaged_archive_is_refused_or_read(
    changes: list[tuple[float, int]], end: float, good: bytes, scratch: Path
) -> None:
    damaged = bytearray(good)
    for place, byte in changes:
        damaged[int(place * len(good))] = byte
    replace_archive(scratch, bytes(damaged[: int(end * len(good))]))
    with contextlib.suppress(FailedPreconditionError):
        assert inspect_package(scratch, CONFIG).layout == "torchscript"


@given(noise=st.binary(max_size=60), kept=places)
def test_whatever_stands_in_the_pickle_is_refused_or_read(
    noise: bytes, kept: float, good: bytes, scratch: Path
) -> None:
    def edit(raw: bytes) -> bytes:
        return raw[: int(kept * len(raw))] + noise + raw[int(kept * len(raw)) + len(noise) :] + b"."

    replace_archive(scratch, change(good, r"/data\.pkl$", edit))
    with contextlib.suppress(FailedPreconditionError):
        assert inspect_package(scratch, CONFIG).layout == "torchscript"


def test_a_truncated_archive_is_refused(good: bytes, folder: Path) -> None:
    for length in (0, 3, 100, len(good) // 2, len(good) - 1):
        assert refusal(folder, good[:length]).reason_code == "MODEL_UNUSABLE"
