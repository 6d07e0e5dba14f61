"""A copy of an archive that holds what was looked through and nothing else.

torch reads the copy, never the file: whatever a file shows another reader than ours, torch does not get to see it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
from typing import TYPE_CHECKING, Final

from termwise.server.inference.torchscript.archive import Archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

# What torch loads a model from. Lines of code for its errors, inputs of the trace and extra files stay behind.
_STORES: Final = ("data/", "constants/")
_PICKLES: Final = ("data.pkl", "constants.pkl")
_PLAIN: Final = ("version", "byteorder", ".data/version")


@contextlib.contextmanager
def copied(file: Path) -> Iterator[str]:
    """Make a copy of an archive in memory (on disk where the system has no files in memory), and give its path.

    Raises:
        FailedPreconditionError: the archive is broken.

    """
    with _scratch() as (stream, path):
        with Archive(file) as archive, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as made:
            for name in archive.members:
                if name.startswith(_STORES):
                    pickle, _, key = name.partition("/")
                    made.writestr(f"archive/{name}", archive.read_store(f"{pickle}.pkl", key))
                elif name in _PICKLES + _PLAIN or (name.startswith("code/") and name.endswith(".py")):
                    made.writestr(f"archive/{name}", archive.read(name))
        stream.flush()
        yield path


@contextlib.contextmanager
def _scratch() -> Iterator[tuple[IO[bytes], str]]:
    """Make a file that is gone when nobody has it open any more."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("archive"), "w+b") as stream:  # noqa: PTH123 - not a path
            yield stream, f"/proc/self/fd/{stream.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as wrapped:
            yield wrapped.file, wrapped.name
