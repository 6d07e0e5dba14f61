from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.errors import FailedPreconditionError, UnavailableError
from termwise.server.models.packaged import PACKAGED
from termwise.server.models.repositories.file import FileRepository
from termwise.server.models.repositories.packages import RepositoryPackages
from termwise.server.models.repositories.web import Access, Patience
from web_server import WebServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = Patience(attempts=2, first_pause_seconds=0.01)
SAYS: dict[str, Any] = {
    "packaged_model_id": "elser_model_1",
    "description": "Expands.",
    "size": 7,
    "sha256": "AB" * 32,
    "vocabulary_file": "elser_model_1.vocab.json",
    "tags": ["elastic"],
    "prefix_strings": {"ingest": "passage: ", "search": "query: "},
    "inference_config": {"text_expansion": {"tokenization": {"bert": {"max_sequence_length": 256}}}},
    "unknown": 1,
}
PATH = "/models/elser_model_1.metadata.json"


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer({PATH: json.dumps(SAYS).encode()}) as server:
        yield server


def packages(repository: str, folder: Path | None = None, **access: str) -> RepositoryPackages:
    files = FileRepository(folder)
    return RepositoryPackages(repository, PACKAGED, access=Access(repository, **access), files=files, patience=QUICK)


@pytest.mark.parametrize("kind", ["http", "file"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_an_id_is_enough(web: WebServer, tmp_path: Path, kind: str, slash: str) -> None:
    (tmp_path / "elser_model_1.metadata.json").write_text(json.dumps(SAYS))
    base = f"{web.url}/models" if kind == "http" else f"file://{tmp_path}"
    index = packages(base + slash, tmp_path)
    found = index.find(".elser_model_1")
    assert found is not None
    assert (found.source_uri, found.sha256) == (f"{base}/elser_model_1.metadata.json", "ab" * 32)
    assert (found.description, found.tags, found.max_tokens) == ("Expands.", ("elastic",), 256)
    assert found.metadata is not None
    assert (found.metadata.document_prefix, found.metadata.query_prefix) == ("passage: ", "query: ")


@pytest.mark.parametrize("kind", ["http", "file"])
def test_what_the_repository_lacks_may_be_built_in(web: WebServer, tmp_path: Path, kind: str) -> None:
    index = packages(f"{web.url}/models" if kind == "http" else f"file://{tmp_path}", tmp_path)
    assert index.find(".splade_tiny") == PACKAGED[".splade_tiny"]
    assert index.find(".elser_model_3") is None
    for name in (".", "..", "...", ".-"):
        assert index.find(name) is None
    assert index.built_in is PACKAGED


def test_a_repository_that_is_gone_is_named_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{free.getsockname()[1]}/models"
        with pytest.raises(UnavailableError, match=f"The model repository {base}/ cannot be asked") as caught:
            packages(base, username="me", password="hunter2").find(".splade_tiny")  # noqa: S106 - a test's own
        assert "hunter2" not in caught.value.message
    with pytest.raises(UnavailableError, match=r"The model repository file://.*/gone/ cannot be asked"):
        packages(f"file://{tmp_path}/gone", tmp_path).find(".splade_tiny")


@pytest.mark.parametrize("status", [500, 403])
def test_a_repository_that_denies_or_breaks_is_no_empty_one(web: WebServer, status: int) -> None:
    web.statuses[PATH] = [status] * 5
    with pytest.raises(UnavailableError if status == 500 else FailedPreconditionError, match=f"HTTP {status}"):
        packages(f"{web.url}/models").find(".elser_model_1")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"packaged_model_id": "other"}, "says that it is 'other'"),
        ({"size": None}, "size"),
        ({"sha256": "x"}, "sha256"),
    ],
)
def test_a_package_of_no_use_says_why(web: WebServer, change: dict[str, Any], says: str) -> None:
    web.files[PATH] = json.dumps(SAYS | change).encode()
    with pytest.raises(FailedPreconditionError, match=says) as caught:
        packages(f"{web.url}/models").find(".elser_model_1")
    assert caught.value.reason_code == "PACKAGE_UNUSABLE"
