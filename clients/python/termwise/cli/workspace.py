"""A model, its deployments, a pipeline and an index that belong together, for `eval` and `demo`."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from termwise.cli.models import download_with_bar
from termwise.client import Client, NotFoundError, TermwiseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODEL = ".splade_tiny"
TEXT_FIELD = "text"
VECTOR_FIELD = "text_expansion"


@dataclass(frozen=True, slots=True)
class Workspace:
    """What documents are written to and searched through.

    Attributes:
        index: The index; its default pipeline expands `TEXT_FIELD` into `VECTOR_FIELD`.
        search_deployment: The deployment that expands queries.
        mine: What was made for it, to be taken down in the end: kinds and ids, oldest first.
    """

    index: str
    search_deployment: str
    mine: list[tuple[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def workspace(client: Client, name: str, fields: Mapping[str, Any] | None = None) -> Iterator[Workspace]:
    """Make a workspace and take down again what was made for it; the model stays.

    `fields` are more properties of the mapping. Deployments `for_ingest` and `for_search` are used where they run the
    model already, and started where they do not.
    """
    unique = f"{name}-{secrets.token_hex(4)}"
    mine: list[tuple[str, str]] = []
    try:
        ensure_model(client)
        ingest = _deployment(client, "for_ingest", unique, mine, allocations=min(4, os.cpu_count() or 1))
        search = _deployment(client, "for_search", unique, mine, allocations=1)
        expansion = {"input_field": TEXT_FIELD, "output_field": VECTOR_FIELD}
        client.pipelines.put(
            unique, {"processors": [{"inference": {"deployment_id": ingest, "input_output": [expansion]}}]}
        )
        mine.append(("pipeline", unique))
        properties = {
            TEXT_FIELD: {"text": {"analyzer": "english"}},
            VECTOR_FIELD: {"sparse_vector": {"model_id": MODEL, "search_deployment_id": search}},
            **(fields or {}),
        }
        client.indices.create(unique, mapping={"properties": properties}, settings={"default_pipeline": unique})
        mine.append(("index", unique))
        yield Workspace(unique, search, mine)
    finally:
        _take_down(client, mine)


def ensure_model(client: Client) -> None:
    """Put the default model where it is not there yet, and wait with a progress bar until it is."""
    try:
        client.models.get(MODEL)
    except NotFoundError:
        client.models.put(MODEL)
    download_with_bar(client, MODEL)


def _deployment(client: Client, wanted: str, unique: str, mine: list[tuple[str, str]], *, allocations: int) -> str:
    """Give the id of a started deployment of the model."""
    running = {each.deployment_id: each for each in client.deployments.list()}
    if wanted in running and running[wanted].model_id == MODEL:
        return wanted
    identifier = f"{unique}-{wanted}" if wanted in running else wanted
    client.deployments.start(MODEL, deployment_id=identifier, number_of_allocations=allocations)
    mine.append(("deployment", identifier))
    return identifier


def _take_down(client: Client, mine: list[tuple[str, str]]) -> None:
    """Remove what was made, newest first. Something that is gone already, server included, stays gone."""
    for kind, identifier in reversed(mine):
        with contextlib.suppress(TermwiseError):
            match kind:
                case "index":
                    client.indices.delete(identifier)
                case "pipeline":
                    client.pipelines.delete(identifier)
                case _:
                    client.deployments.stop(identifier, force=True)
