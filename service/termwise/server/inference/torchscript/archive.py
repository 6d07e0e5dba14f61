"""A TorchScript archive as a zip file: whether its members are what they should be, before anything of them is read.

Nothing here needs torch. The rules go beyond what a zip reader asks, since two readers look at one file, this one and
torch's, and must see the same: no prefix, no comment, no name twice, no overlap, one folder at the top.
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Final

from termwise.server.inference.torchscript.directory import check_directory
from termwise.server.inference.torchscript.refusals import is_pickle, unsafe, unusable

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

_LOCAL_HEADER: Final = b"PK\x03\x04"
_END_RECORD: Final = b"PK\x05\x06"
_END_RECORD_BYTES: Final = 22
_ENCRYPTED: Final = 0x1
_MOST_MEMBERS: Final = 100_000
# Code and pickles of a BERT with 24 layers take 1 MB; tensors are never compressed.
_MOST_TEXT_BYTES: Final = 64 << 20
# What the zip reader raises; a name that is no UTF-8 is a ValueError, a password that is wanted a RuntimeError.
_BROKEN: Final = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError)
_PART_BYTES: Final = 8 << 20
_PICKLES: Final = ("data.pkl", "constants.pkl")
# What a model was traced with; torch reads it for nobody.
_INPUTS: Final = "traced_inputs.pkl"
_STORES: Final = ("data", "constants", "traced_inputs")
_PLAIN: Final = ("version", "byteorder", ".format_version", ".storage_alignment")
# The folder at the top is called as the file was when it was saved.
_NAME: Final = re.compile(r"[^/\\\x00-\x1f]+(/[A-Za-z0-9_.+\-]+)+")
# Of pickles in any protocol from 2 on; older ones begin with a letter, and are no zip either.
_PICKLE_START: Final = b"\x80"


class Archive:
    """The members of a TorchScript archive, by their names without the folder at the top. Use it as a context."""

    def __init__(self, file: Path) -> None:
        """Open a file and check its directory.

        Raises:
            FailedPreconditionError: it is a pickle, is incomplete, or holds what an archive should not hold.

        """
        self._bytes = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(len(_LOCAL_HEADER))
            stream.seek(max(0, self._bytes - _END_RECORD_BYTES))
            end = stream.read()
        if start.startswith(_PICKLE_START):
            raise is_pickle()
        if start != _LOCAL_HEADER:
            raise unusable("its archive is not TorchScript, which is a zip file; export the model by torch.jit.trace")
        if not end.startswith(_END_RECORD):
            raise unusable("its archive is incomplete; download it again")
        try:
            self._zip = zipfile.ZipFile(file)
        except _BROKEN as error:
            raise unusable("its archive is broken; download it again") from error
        try:
            self.members = self._check()
            with file.open("rb") as stream:
                check_directory(stream, self._bytes, self.members.values())
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        """Keep the file open."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self._zip.close()

    def read(self, name: str) -> bytes:
        """Read a member that is code or a pickle.

        Raises:
            FailedPreconditionError: it is broken.

        """
        try:
            return self._zip.read(self.members[name])
        except _BROKEN as error:
            raise unusable(f"{_shown(name)} of its archive is broken; download it again") from error

    def read_store(self, pickle: str, key: str) -> bytearray:
        """Read the store of tensors that a pickle calls by a key.

        Raises:
            FailedPreconditionError: it is broken.

        """
        member = self.members[f"{pickle.removesuffix('.pkl')}/{key}"]
        held = bytearray(member.file_size)
        try:
            with self._zip.open(member) as stream:
                place = 0
                while part := stream.read(_PART_BYTES):
                    held[place : place + len(part)] = part
                    place += len(part)
        except _BROKEN as error:
            raise unusable("the tensors of its archive are broken; download it again") from error
        return held

    @property
    def code(self) -> list[str]:
        """Names of the members that are source."""
        return sorted(name for name in self.members if name.startswith("code/") and name.endswith(".py"))

    @property
    def pickles(self) -> list[str]:
        """Names of the members that torch reads as pickles, what it reads only to name a line of code included."""
        lines = sorted(name for name in self.members if name.startswith("code/") and name.endswith(".debug_pkl"))
        return [name for name in _PICKLES if name in self.members] + lines

    def stored(self, pickle: str, key: str) -> int:
        """Give the bytes of a store of tensors that a pickle refers to; -1 where there is none."""
        member = self.members.get(f"{pickle.removesuffix('.pkl')}/{key}")
        return -1 if member is None else member.file_size

    def _check(self) -> dict[str, zipfile.ZipInfo]:
        members = self._zip.infolist()
        if not members or len(members) > _MOST_MEMBERS:
            raise unsafe(f"its archive has {len(members)} members, which is not between 1 and {_MOST_MEMBERS}")
        names: dict[str, zipfile.ZipInfo] = {}
        # torch looks for a member without regard to small and capital letters.
        small: set[str] = set()
        for member in members:
            name = _inner_name(member)
            if name.lower() in small:
                raise unsafe(f"its archive holds {_shown(name)} twice")
            small.add(name.lower())
            names[name] = member
        if len({member.filename.partition("/")[0] for member in members}) > 1:
            raise unsafe("its archive has more than one folder at the top")
        _check_sizes(names)
        _check_presence(names)
        return names


def _check_sizes(names: dict[str, zipfile.ZipInfo]) -> None:
    """Check that nothing of it grows beyond measure when it is read."""
    text = 0
    for name, member in names.items():
        if _kind(name) == "text":
            text += member.file_size
        elif member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise unsafe(f"{_shown(name)} of its archive is compressed, which tensors never are")
    if text > _MOST_TEXT_BYTES:
        raise unsafe(f"its code and pickles take {text} bytes, over the {_MOST_TEXT_BYTES} that they may")


def _check_presence(names: dict[str, zipfile.ZipInfo]) -> None:
    if "data.pkl" in names and not any(name.startswith("code/") for name in names):
        raise is_pickle()
    for name in ("data.pkl", "constants.pkl", "version"):
        if name not in names and f".data/{name}" not in names:
            raise unusable(f"its archive lacks {name}; it is not TorchScript")


def _inner_name(member: zipfile.ZipInfo) -> str:
    """Give a member's name below the folder at the top, where it is one that torch writes."""
    name = member.filename
    parts = name.split("/")
    # orig_filename is what stands there; filename is cut at a NUL.
    if member.orig_filename != name or not _NAME.fullmatch(name) or any(part.strip(".") == "" for part in parts):
        raise unsafe(f"its archive holds a member called {_shown(member.orig_filename)}")
    if member.flag_bits & _ENCRYPTED:
        raise unsafe("its archive is encrypted")
    mode = member.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
        raise unsafe(f"its archive holds {_shown(name)}, which is a link or no plain file")
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise unsafe(f"{_shown(name)} of its archive is compressed in a way that torch does not use")
    inner = "/".join(parts[1:])
    if not _kind(inner):
        raise unsafe(f"its archive holds {_shown(name)}, which TorchScript does not have")
    return inner


def _kind(name: str) -> str:
    """Tell what a member is: "text" (code, pickles and small files), "tensor", or "" for what does not belong."""
    top, _, rest = name.partition("/")
    if not rest:
        return "text" if top in {*_PICKLES, *_PLAIN, _INPUTS} else ""
    if top in _STORES:
        return "tensor" if "/" not in rest else ""
    if top == "code":
        return "text" if rest.endswith((".py", ".debug_pkl")) else ""
    # Extra files are read by who asks for them by name, which nobody does here.
    return "text" if top in {".data", "extra"} else ""


def _shown(name: str) -> str:
    """Give a name that is not trusted, fit for a message."""
    return ascii(name[:80])
