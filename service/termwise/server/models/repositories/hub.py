"""What the Hugging Face Hub, or its local cache, has of a model: which files there are at a commit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import structlog

from termwise.server.errors import FailedPreconditionError, TermwiseError, UnavailableError
from termwise.server.inference.torchscript.names import ARCHIVE
from termwise.server.models import artifacts

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_SECONDS: Final = 20.0
"""How long the Hub may be silent."""
_FIRST: Final = ("config.json", "modules.json", ARCHIVE)
"""One of these is in any model's folder."""
_BUSY: Final = frozenset({408, 429})
_SERVER_ERRORS: Final = 500
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
SHA1: Final = re.compile(r"[0-9a-f]{40}")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A folder of a repository on the Hub; `path` is "" for the whole of it."""

    repo: str
    revision: str
    path: str

    def __str__(self) -> str:
        """Give its URI."""
        return f"hf://{self.repo}@{self.revision}{f'/{self.path}' if self.path else ''}"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository. `sha256` and `git_sha1` are in hex, "" where unknown; `cached`: where it lies already."""

    name: str
    size: int
    sha256: str = ""
    git_sha1: str = ""
    cached: Path | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at a commit."""

    source: Source
    commit: str
    files: tuple[HubFile, ...]


def find(source: Source, commit: str) -> Snapshot:
    """Give a source's files at a commit ("": that of its revision).

    They are the local cache's where the server stays offline, or where the Hub cannot be reached and they lie there.

    Raises:
        UnavailableError: the Hub cannot be reached.
        FailedPreconditionError: there is no such repository or revision, it is closed to this server, or the server
            stays offline and the cache lacks it.

    """
    import httpx2  # noqa: PLC0415 - slow to import
    from huggingface_hub import HfApi, constants  # noqa: PLC0415 - slow to import

    if constants.HF_HUB_OFFLINE:
        if (cached := _cached(source, commit or source.revision)) is None:
            raise FailedPreconditionError(
                f"{source} is not in the local cache of the Hugging Face Hub, and HF_HUB_OFFLINE keeps the server from "
                "fetching it.",
                reason="SOURCE_NOT_CACHED",
            )
        return cached
    try:
        info = HfApi().model_info(
            source.repo, revision=commit or source.revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    except (httpx2.HTTPError, OSError) as error:
        explained = explain(error, source)
        if isinstance(explained, UnavailableError) and (cached := _cached(source, commit or source.revision)):
            _log.warning("hub_out_of_reach_cache_used", source=str(source), commit=cached.commit)
            return cached
        raise explained from None
    if info.sha is None:
        raise artifacts.unusable(f"The Hub does not say which commit {source} is")
    return Snapshot(source, info.sha, tuple(_files(source, info)))


def _files(source: Source, info: Any) -> Iterator[HubFile]:
    for each in info.siblings or ():
        size = each.lfs.size if each.lfs else each.size
        if size is None:
            raise artifacts.unusable(f"The Hub does not say how large {each.rfilename} of {source} is")
        sha256 = each.lfs.sha256 if each.lfs else ""
        yield HubFile(each.rfilename, size, sha256, "" if each.lfs else each.blob_id or "")


def _cached(source: Source, revision: str) -> Snapshot | None:
    """Give a source as far as it lies in the local cache; None where it does not."""
    for first in _FIRST:
        name = f"{source.path}/{first}" if source.path else first
        if (found := cached_file(source.repo, name, revision, resolve=False)) is not None:
            root = found.parents[name.count("/")]
            names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
            return Snapshot(source, root.name, tuple(_cached_files(source, root, names)))
    return None


def _cached_files(source: Source, root: Path, names: list[str]) -> Iterator[HubFile]:
    for name in names:
        if (cached := cached_file(source.repo, name, root.name)) is not None:
            # The cache calls a file by its hash: the SHA-256 of a large one, git's SHA-1 of others.
            sha256 = cached.name if _SHA256.fullmatch(cached.name) else ""
            git_sha1 = cached.name if SHA1.fullmatch(cached.name) else ""
            yield HubFile(name, cached.stat().st_size, sha256, git_sha1, cached)


def cached_file(repo: str, name: str, revision: str, *, resolve: bool = True) -> Path | None:
    """Give a file of the local cache, its links followed; None where it is not there, or leads out of the cache."""
    from huggingface_hub import constants, try_to_load_from_cache  # noqa: PLC0415

    found = try_to_load_from_cache(repo, name, cache_dir=constants.HF_HUB_CACHE, revision=revision)
    if not isinstance(found, str):
        return None
    real = Path(found).resolve()
    if not real.is_file() or not real.is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):
        return None
    return real if resolve else Path(found)


def explain(error: Exception, source: Source) -> TermwiseError:
    """Reduce what huggingface_hub and its connections raise to one sentence; what is not theirs is raised again.

    No address is repeated: those of the Hub's storage hold signatures.
    """
    import httpx2  # noqa: PLC0415
    from huggingface_hub import constants, errors  # noqa: PLC0415

    hub = f"the Hugging Face Hub ({urlsplit(constants.ENDPOINT).hostname})"
    for kind, sentence in (
        (errors.GatedRepoError, f"{source} is gated: accept its terms on the Hub, and set HF_TOKEN to that account's"),
        (errors.RevisionNotFoundError, f'"{source.repo}" on {hub} has no revision "{source.revision}"'),
        (
            errors.RepositoryNotFoundError,
            f'There is no "{source.repo}" on {hub}, or it is private and HF_TOKEN may not read it',
        ),
        (errors.EntryNotFoundError, f"A file of {source} is gone from {hub}"),
    ):
        if isinstance(error, kind):
            reason = "SOURCE_FORBIDDEN" if kind is errors.GatedRepoError else "SOURCE_NOT_FOUND"
            return FailedPreconditionError(f"{sentence}.", reason=reason)
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in _BUSY or status >= _SERVER_ERRORS:
            return UnavailableError(f"{source} cannot be had now: {hub} answers with {status}.", reason="SOURCE_BROKEN")
        return FailedPreconditionError(
            f"{source} cannot be fetched: {hub} answers with {status}.", reason="SOURCE_FORBIDDEN"
        )
    if isinstance(error, (httpx2.TransportError, ConnectionError, TimeoutError)):
        return UnavailableError(
            f"{source} cannot be fetched: {hub} cannot be reached ({type(error).__name__.lstrip('_')}); check the "
            "network, HF_ENDPOINT and the proxy, or put the files in the local cache and set HF_HUB_OFFLINE=1.",
            reason="SOURCE_UNREACHABLE",
        )
    raise error
