"""A catalogue and deployments over a temporary data folder, with sources and encoders that tests hold in hand."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import resource
import threading
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from small_model import make_small_model
from termwise.server.context import RequestContext
from termwise.server.inference.base import ExpansionConfig
from termwise.server.inference.fake import FakeEncoder
from termwise.server.inference.loader import ModelFacts
from termwise.server.metadata.store import MetadataStore
from termwise.server.models.catalog import ModelCatalog
from termwise.server.models.deployments import Deployments
from termwise.server.models.packaged import PACKAGED, BuiltInPackages
from termwise.server.models.repositories.file import FileRepository
from termwise.server.models.repositories.pypi import PyPIRepository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from termwise.server.models.repositories.base import Report

FILES: Final = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}
"""Names that make a model's folder complete; their contents matter to nothing here."""


def facts(folder: Path, config: ExpansionConfig) -> ModelFacts:
    """Inspect a folder without asking that it be a model."""
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes() + repr(config).encode()).hexdigest()
    return ModelFacts(f"sha256:{digest}", f"sha256:{digest}", size, "BertForMaskedLM", 7)


class HeldRepository:
    """Gives a model's files half by half: `half` is set once the first is there, the second waits for `go`."""

    scheme = "held"

    def __init__(self) -> None:
        self.half = threading.Event()
        self.go = threading.Event()
        self.failures: list[Exception] = []
        self.fetches = 0

    def check(self, uri: str) -> None:
        del uri

    def fetch(self, uri: str, folder: Path, *, scratch: Path, sha256: str, report: Report) -> None:
        del uri, scratch, sha256
        self.fetches += 1
        report(50, 100)
        (folder / "config.json").write_bytes(FILES["config.json"])
        self.half.set()
        while not self.go.wait(0.01):
            report(50, 100)
        if self.failures:
            raise self.failures.pop()
        for name, data in FILES.items():
            (folder / name).write_bytes(data)
        report(100, 100)


@dataclasses.dataclass
class Life:
    """One life of a server over the data folder."""

    catalog: ModelCatalog
    deployments: Deployments
    repository: HeldRepository
    health: list[tuple[str, bool]]
    encoders: list[FakeEncoder]
    load: Callable[[], Any]
    users: dict[str, list[str]]
    precisions: list[str]

    async def restore(self) -> None:
        await self.catalog.restore()
        await self.deployments.restore()

    async def end(self) -> None:
        await self.deployments.close()
        await self.catalog.close()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MetadataStore]:
    opened = MetadataStore(tmp_path / "metadata.sqlite")
    yield opened
    opened.close()


@pytest.fixture
async def live(store: MetadataStore, models: Path) -> AsyncIterator[Callable[..., Life]]:
    """Begin a server's life: `life = live()`. `load` makes each encoder; `limits` are arguments of `Deployments`.

    All lives end with the test.
    """
    lives: list[Life] = []

    def begin(
        load: Callable[[], Any] = FakeEncoder, packaged: Any = PACKAGED, precision: str = "auto", **limits: Any
    ) -> Life:
        repository = HeldRepository()
        users: dict[str, list[str]] = {}

        async def references(deployment_id: str) -> list[str]:
            return users.get(deployment_id, [])

        catalog = ModelCatalog(
            store,
            models,
            repositories=[PyPIRepository(), FileRepository(Path("/")), repository],
            inspect=facts,
            packages=BuiltInPackages(packaged),
            references=references,
        )
        health: list[tuple[str, bool]] = []
        encoders: list[FakeEncoder] = []
        precisions: list[str] = []

        def make(folder: Path, config: ExpansionConfig, threads: int, precision: str) -> FakeEncoder:
            assert (folder / "model.safetensors").is_file()
            assert isinstance(config, ExpansionConfig)
            assert threads >= 1
            precisions.append(precision)
            encoders.append(life.load())
            return encoders[-1]

        deployments = Deployments(
            store,
            catalog,
            load=make,
            references=references,
            on_change=lambda *change: health.append(change),
            precision=precision,
            **limits,
        )
        life = Life(catalog, deployments, repository, health, encoders, load, users, precisions)
        lives.append(life)
        return life

    yield begin
    for life in lives:
        life.repository.go.set()
        await life.end()


@pytest.fixture
def life(live: Callable[..., Life]) -> Life:
    return live()


@pytest.fixture
def context() -> RequestContext:
    return RequestContext("test")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give a folder that is a model by its names."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def make_wheel(tmp_path: Path) -> Callable[..., Path]:
    """Write a wheel: `make_wheel({"pkg/model/config.json": b"{}"}, name="pkg", version="1.0")`."""

    def write(
        members: dict[str, bytes] | list[tuple[zipfile.ZipInfo | str, bytes]],
        *,
        name: str = "pkg",
        version: str = "1.0",
        folder: Path | None = None,
    ) -> Path:
        where = folder or tmp_path / "wheels"
        where.mkdir(exist_ok=True)
        path = where / f"{name}-{version}-py3-none-any.whl"
        info = f"{name}-{version}.dist-info"
        listed = list(members.items()) if isinstance(members, dict) else members
        listed = [
            *listed,
            (f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()),
            (f"{info}/WHEEL", b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        ]
        record = "".join(
            f"{member if isinstance(member, str) else member.filename},sha256={_digest(data)},{len(data)}\n"
            for member, data in listed
        )
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in [*listed, (f"{info}/RECORD", f"{record}{info}/RECORD,,\n".encode())]:
                archive.writestr(member, data, zipfile.ZIP_DEFLATED)
        return path

    return write


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


@pytest.fixture
def small_disk() -> Callable[[int], Any]:
    """Make files over some bytes fail to grow, in this process and its children: `with small_disk(65_536): ...`."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Give all files below a folder by relative name."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    return read


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    return make_small_model(tmp_path / "tiny")
