"""The client through what happens to servers."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from elser_package import tiny_package
from termwise.client import (
    AsyncClient,
    BulkProgress,
    Client,
    Document,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    RetryPolicy,
    UnavailableError,
    UploadProgress,
)
from termwise.client.bulk import WINDOW

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROPERTIES = {"text": {"text": {}}, "v": {"sparse_vector": {}}}
COUNT = 4 * WINDOW


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _documents() -> Iterator[Document]:
    for n in range(COUNT):
        yield Document({"text": f"number {n}"}, str(n), {"v": {f"token{n % 97}": 1.0 + n % 7}})


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_a_bulk_write_outlasts_a_server_that_is_killed(launch: Any, tmp_path: Path, kind: str) -> None:
    flags = ("--port", str(_free_port()))
    servers = [launch(tmp_path / "data", *flags)]
    with Client(servers[0].address) as client:
        client.indices.create("many", mapping={"properties": PROPERTIES})
    killed = threading.Event()

    def restart() -> None:
        killed.wait()
        servers.append(launch(tmp_path / "data", *flags))

    def watch(progress: BulkProgress) -> None:
        # More is to come than may be under way.
        if progress.acknowledged >= WINDOW and not killed.is_set():
            servers[0].kill()
            killed.set()

    starter = threading.Thread(target=restart, daemon=True)
    starter.start()
    patient = RetryPolicy(attempts=600, max_delay=0.4)
    if kind == "sync":
        with Client(servers[0].address, retry=patient) as client:
            report = client.indices.bulk("many", _documents(), on_progress=watch)
    else:

        async def run() -> Any:
            async with AsyncClient(servers[0].address, retry=patient) as client:
                return await client.indices.bulk("many", _documents(), on_progress=watch)

        report = asyncio.run(run())
    starter.join(60)

    assert killed.is_set()
    assert report.succeeded == COUNT
    assert report.failures == ()
    with Client(servers[1].address) as client:
        assert client.indices.stats("many").document_count == COUNT
    assert servers[1].stop() == 0


def test_errors_of_the_server_come_with_their_fields(server: Any) -> None:
    with Client(server.address) as client:
        with pytest.raises(NotFoundError) as missing:
            client.search("nowhere", "x")
        client.indices.create("errors", mapping={"properties": PROPERTIES})
        with pytest.raises(InvalidArgumentError) as wrong:
            client.search("errors", query={"match": {"field": "v", "text": "x"}})
        with pytest.raises(InvalidArgumentError) as nan:
            client.indices.put_document("errors", {}, sparse_vectors={"v": {"a": float("nan")}})

    assert missing.value.reason == "INDEX_NOT_FOUND"
    assert missing.value.field_violations[0].field == "indices[0]"
    assert missing.value.resource is not None
    assert wrong.value.field_violations[0].field == "query.match.field"
    assert nan.value.field_violations[0].field == 'document.sparse_vectors["v"]'


def test_the_whole_path_in_asyncio(server: Any) -> None:
    async def run() -> list[str]:
        async with AsyncClient(server.address) as client:
            properties = {
                "text": {"text": {}},
                "text_expansion": {"sparse_vector": {"search_deployment_id": "for_search"}},
            }
            await client.indices.create(
                "aio", mapping={"properties": properties}, settings={"default_pipeline": "expand"}
            )
            texts = ["Salmon are raised in sea cages.", "Pluto was a planet until 2006.", "Bread is baked from flour."]
            await client.indices.bulk("aio", [Document({"text": text}, str(n)) for n, text in enumerate(texts)])
            questions = ["aquaculture of fish", "astronomy", "what do bakers make"]
            answers = await asyncio.gather(*(client.search("aio", each, size=1) for each in questions))
            return [answer.hits[0].id for answer in answers]

    assert asyncio.run(run()) == ["0", "1", "2"]


def test_an_upload_in_asyncio(server: Any, tmp_path: Path) -> None:
    steps: list[UploadProgress] = []
    folder = tiny_package(tmp_path / "package")

    async def run() -> Any:
        async with AsyncClient(server.address) as client:
            await client.models.put("uploaded")
            model = await client.models.upload("uploaded", folder, on_progress=steps.append)
            with pytest.raises(FailedPreconditionError):
                await client.models.upload("uploaded", folder)
            await client.models.delete("uploaded")
            return model

    model = asyncio.run(run())
    assert model.vocabulary_size == 14
    assert steps[-1].bytes_done == steps[-1].bytes_total == sum(file.stat().st_size for file in folder.iterdir())


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with (
        Client(f"127.0.0.1:{_free_port()}", retry=RetryPolicy(attempts=2, initial_delay=0.01)) as client,
        pytest.raises(UnavailableError),
    ):
        client.models.list()
