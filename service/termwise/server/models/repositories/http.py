"""Models from a web server: a package in ELSER's layout, or a folder as transformers or SparseEncoder save it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from termwise.server.errors import invalid_field
from termwise.server.inference.torchscript.metadata import read_metadata
from termwise.server.inference.torchscript.names import ARCHIVE, METADATA, VOCABULARY, VOCABULARY_LIMIT_BYTES
from termwise.server.models import artifacts
from termwise.server.models.repositories import listing
from termwise.server.models.repositories.answers import shown, too_long
from termwise.server.models.repositories.locations import archive_name, below, check_web, folder_of, is_package
from termwise.server.models.repositories.transfer import take
from termwise.server.models.repositories.web import Meter, Patience, Session

if TYPE_CHECKING:
    from pathlib import Path

    from termwise.server.models.repositories.base import Report
    from termwise.server.models.repositories.web import Access

METADATA_LIMIT_BYTES: Final = 1_000_000
"""Most bytes of a package's metadata file."""


class HttpRepository:
    """Fetches a package (`sha256` is that of its archive) or a folder (that of its `model.safetensors`)."""

    def __init__(self, scheme: str, access: Access, patience: Patience | None = None) -> None:
        """Take "http" or "https", and how to reach servers."""
        self._scheme = scheme
        self._access = access
        self._patience = patience or Patience()

    @property
    def scheme(self) -> str:
        """Scheme of its URIs."""
        return self._scheme

    def check(self, uri: str) -> None:
        """Refuse what is no URL of a folder or of a package's metadata file."""
        if not uri.startswith(f"{self._scheme}://"):
            raise invalid_field("source_uri", f"It is no {self._scheme}:// URL.")
        check_web(uri)

    def fetch(self, uri: str, folder: Path, *, scratch: Path, sha256: str, report: Report) -> None:
        """Fetch what is not in `scratch` already, several parts of a file at a time."""
        self.check(uri)
        meter = Meter(report)
        with Session(self._access, self._patience) as session:
            if is_package(uri):
                files = _fetch_package(session, uri, scratch, sha256, meter)
            else:
                files = _fetch_folder(session, uri, scratch, meter)
        for name, part in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            artifacts.link(part, target)
        if not is_package(uri):
            artifacts.check_digest(folder / artifacts.WEIGHTS, sha256, artifacts.WEIGHTS)


def _fetch_package(session: Session, uri: str, scratch: Path, sha256: str, meter: Meter) -> dict[str, Path]:
    """Fetch a package's three files; give them by their names in a model's folder."""
    raw = session.run(lambda: read_raw(session, uri), meter.tick)
    metadata = read_metadata(raw, packaged=True)
    if sha256 and metadata.sha256 != sha256:
        raise artifacts.wrong_digest(f"The archive of {shown(uri)}", metadata.sha256, sha256)
    base = folder_of(uri)
    archive, vocabulary = below(base, archive_name(metadata.packaged_model_id)), below(base, metadata.vocabulary_file)
    found = session.run(lambda: session.probe(vocabulary), meter.tick)
    if (found.size or 0) > VOCABULARY_LIMIT_BYTES:
        raise too_long(f"The vocabulary {shown(vocabulary)}", found.size or 0, VOCABULARY_LIMIT_BYTES)
    meter.total = metadata.size_bytes
    files = {METADATA: scratch / METADATA, ARCHIVE: scratch / ARCHIVE, VOCABULARY: scratch / VOCABULARY}
    take(session, archive, files[ARCHIVE], meter, size=metadata.size_bytes, sha256=metadata.sha256)
    what = f"The vocabulary {shown(vocabulary)}"
    words = session.run(lambda: session.read(vocabulary, VOCABULARY_LIMIT_BYTES, what), meter.tick)
    files[VOCABULARY].write_bytes(words)
    files[METADATA].write_bytes(raw)
    return files


def read_raw(session: Session, uri: str) -> bytes:
    """Read a package's metadata file, in a thread of the session."""
    return session.read(uri, METADATA_LIMIT_BYTES, f"The metadata file {shown(uri)}")


def _fetch_folder(session: Session, uri: str, scratch: Path, meter: Meter) -> dict[str, Path]:
    """Fetch the files of a folder that a model may have, as far as they are there; give them by name."""
    base = folder_of(uri)
    sizes = session.run(lambda: listing.find(session, base), meter.tick)
    artifacts.check_names(sizes, shown(base))
    meter.total = sum(size or 0 for size in sizes.values())
    files = {name: scratch / f"{place}.part" for place, name in enumerate(sorted(sizes))}
    held = sum(part.stat().st_blocks * 512 for part in files.values() if part.exists())
    artifacts.check_room(scratch, max(meter.total - held, 0))
    for name, part in files.items():
        take(session, below(base, name), part, meter, size=sizes[name] or 0)
    return files
