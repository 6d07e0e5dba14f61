"""Models of the Hugging Face Hub: `hf://org/name@revision`, or one of its folders, `hf://org/name@revision/folder`.

huggingface_hub says what there is and how to reach it: the endpoint (HF_ENDPOINT), the token (HF_TOKEN), proxies,
certificates, the local cache (HF_HUB_CACHE, HF_HOME) and whether to stay offline (HF_HUB_OFFLINE) are its own. What
lies in the cache is taken from there; what is fetched goes to the model's folder alone, and is resumable.

A revision is resolved to a commit once and kept in the draft, so that a download that is resumed never mixes two.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from termwise.server.errors import invalid_field
from termwise.server.inference.torchscript.names import ARCHIVE
from termwise.server.models import artifacts
from termwise.server.models.package_files import as_package, holds_package, is_archive
from termwise.server.models.repositories import hub
from termwise.server.models.repositories.attended import Wish, attended
from termwise.server.models.repositories.hub_files import fetch_file
from termwise.server.models.repositories.ranges import Part

if TYPE_CHECKING:
    from pathlib import Path

    from termwise.server.models.repositories.base import Report

_URI: Final = re.compile(
    r"hf://(?P<repo>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)"
    r"(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._+%-]*))?"
    r"(?P<path>(?:/[^/\\?#%\x00-\x1f]+)*)/?"
)
_FORM: Final = (
    "A source on the Hugging Face Hub is hf://org/name, hf://org/name@revision or hf://org/name@revision/folder; write "
    "/ in a revision as %2F."
)
_COMMIT: Final = "commit"
_FILES: Final = "files"


class HuggingFaceRepository:
    """Takes a model's files from the Hub or its local cache.

    `sha256` is that of its `model.safetensors`, or of the archive of a package in ELSER's layout.
    """

    scheme: Final = "hf"

    def __init__(self, streams: int = 5) -> None:
        """Take how many parts of a file come side by side."""
        self._streams = streams

    def check(self, uri: str) -> None:
        """Refuse what is no `hf://org/name@revision/folder`."""
        _parse(uri)

    def fetch(self, uri: str, folder: Path, *, scratch: Path, sha256: str, report: Report) -> None:
        """Fetch the files that are wanted, each checked against the hash that the Hub gives for it."""
        source = _parse(uri)
        wish = Wish()
        snapshot = attended(lambda: _find(source, scratch), wish, lambda: report(0, 0))
        wanted = _wanted(snapshot, source)
        parts = {name: scratch / _FILES / name for name in wanted}
        total = sum(file.size for file in wanted.values())
        with ExitStack() as stack:
            held = {}
            for name, file in wanted.items():
                parts[name].parent.mkdir(parents=True, exist_ok=True)
                held[name] = stack.enter_context(Part(parts[name], file.size, f"{source.repo} {snapshot.commit}"))
            artifacts.check_room(folder, total - sum(part.count for part in held.values()))

            def tick() -> None:
                for part in held.values():
                    part.note()
                report(sum(part.count for part in held.values()), total)

            def fetch_all() -> None:
                for name, file in wanted.items():
                    fetch_file(snapshot, file, held[name], wish, self._streams)

            attended(fetch_all, wish, tick)
        for name, part in (as_package(parts) if holds_package(parts) else parts).items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            artifacts.link(part, target)
        weights = ARCHIVE if (folder / ARCHIVE).is_file() else artifacts.WEIGHTS
        artifacts.check_digest(folder / weights, sha256, weights)


def _parse(uri: str) -> hub.Source:
    match = _URI.fullmatch(uri)
    if match is None:
        raise invalid_field("source_uri", _FORM)
    repo, path = match["repo"], match["path"].strip("/")
    revision = unquote(match["revision"] or "main")
    parts = [*revision.split("/"), *(path.split("/") if path else ())]
    # The Hub's own rules for names of repositories.
    if "--" in repo or ".." in repo or repo.endswith((".", "-", ".git")) or not revision.isprintable():
        raise invalid_field("source_uri", _FORM)
    if any(part in {"", ".", ".."} for part in parts):
        raise invalid_field("source_uri", _FORM)
    return hub.Source(repo, revision, path)


def _find(source: hub.Source, scratch: Path) -> hub.Snapshot:
    """Give the source at the commit that an earlier attempt began with, or else at the one of today."""
    note = scratch / _COMMIT
    if note.is_file():
        return hub.find(source, note.read_text("ascii"))
    snapshot = hub.find(source, "")
    draft = scratch / f"{_COMMIT}.new"
    draft.write_text(snapshot.commit, "ascii")
    draft.replace(note)
    return snapshot


def _wanted(snapshot: hub.Snapshot, source: hub.Source) -> dict[str, hub.HubFile]:
    """Give the files that a model needs, by their names relative to its folder."""
    found: dict[str, hub.HubFile] = {}
    for file in snapshot.files:
        name = PurePosixPath(file.name)
        if name.is_relative_to(source.path):
            found[str(name.relative_to(source.path))] = file
    if holds_package(found):  # under its own names; those that it has here it gets once its metadata are there
        return {name: file for name, file in sorted(found.items()) if _may_be_package(PurePosixPath(name))}
    artifacts.check_names(found, str(source))
    return {name: file for name, file in sorted(found.items()) if artifacts.is_wanted(PurePosixPath(name))}


def _may_be_package(name: PurePosixPath) -> bool:
    return is_archive(name) or (len(name.parts) == 1 and name.suffix == ".json")
