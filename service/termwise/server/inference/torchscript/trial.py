"""An archive's first run, in a process of its own.

What the checks before cannot tell is whether code that uses nothing but what it may ends, and in how much memory; and
whether torch's reader survives what they let pass. Where it does not, the process is gone and the server is not. The
verdict is kept, so that a model pays for it once.

Run as a module, this is that process: it reads what to try as JSON from its input, and writes what is wrong.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.findings import is_known, remember
from termwise.server.inference.torchscript.copying import copied
from termwise.server.inference.torchscript.metadata import read_metadata
from termwise.server.inference.torchscript.names import ARCHIVE, METADATA
from termwise.server.inference.torchscript.refusals import unusable

# Two texts of the largest length and two short ones take a model of 24 layers some 20 s on one processor.
_SECONDS: Final = 180
_MEMORY_BYTES: Final = 6 << 30
_COPIES: Final = 4
_REFUSED: Final = 3
# What Python and torch need to be found; nothing else of the server's environment, which may hold secrets.
_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


def try_out(
    folder: Path, vocabulary_size: int, max_tokens: int, fingerprint: str, cache: Path, *, seconds: float = _SECONDS
) -> None:
    """Run a package's archive once elsewhere, unless a kept verdict says that it was done.

    Raises:
        FailedPreconditionError: it does not run, or takes too much time or memory.

    """
    if is_known(cache, "archive-runs", fingerprint):
        return
    _run({"folder": str(folder), "vocabulary": vocabulary_size, "longest": max_tokens}, seconds)
    remember(cache, "archive-runs", fingerprint)


def _run(task: dict[str, Any], seconds: float) -> None:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # -P: nothing is imported from the folder that the server was started in.
    command = [sys.executable, "-P", "-W", "ignore", "-m", __name__]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(task).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, "OMP_NUM_THREADS": "1"},
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise unusable(f"it does not answer a text of {task['longest']} tokens within {seconds:.0f} s") from error
    except OSError as error:
        raise FailedPreconditionError(
            f"The model cannot be tried in a process of its own: {error.strerror}; free some memory and try again.",
            reason="MODEL_DOES_NOT_RUN",
        ) from error
    if ended.returncode == _REFUSED:
        said = json.loads(ended.stdout)
        raise FailedPreconditionError(said["message"], reason=said["reason"])
    if ended.returncode:
        raise unusable("it ended the process in which it was tried; it takes too much memory or time, or is broken")


def main() -> int:
    """Try what the input names; gives the exit status."""
    task = json.load(sys.stdin)
    import torch  # noqa: PLC0415 - before the limits, which its own libraries would not fit in

    from termwise.server.inference.torchscript.program import Program  # noqa: PLC0415 - imports torch

    torch.set_num_threads(1)
    folder = Path(task["folder"])
    try:
        package = read_metadata((folder / METADATA).read_bytes())
        with copied(folder / ARCHIVE) as copy:
            _limit((folder / ARCHIVE).stat().st_size)
            Program(copy, package, task["vocabulary"], task["longest"])
    except FailedPreconditionError as error:
        json.dump({"message": error.message, "reason": error.reason_code}, sys.stdout)
        return _REFUSED
    return 0


def _limit(archive_bytes: int) -> None:
    """Limit memory, processor time, and what is written, from here on."""
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    most = held + _MEMORY_BYTES + _COPIES * archive_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
