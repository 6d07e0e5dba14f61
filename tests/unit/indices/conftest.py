"""Indices over the memory store and a metadata file of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from termwise.server.indices.catalog import Indices
from termwise.server.metadata.store import MetadataStore
from termwise.storage.errors import BackendMissingError
from termwise.storage.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def metadata(tmp_path: Path) -> Iterator[MetadataStore]:
    """Give an empty metadata store."""
    store = MetadataStore(tmp_path / "metadata.sqlite")
    yield store
    store.close()


@pytest.fixture
def stores() -> dict[str, MemoryStore]:
    """Give two backends: "main" and "other"."""
    return {"main": MemoryStore(), "other": MemoryStore()}


@pytest.fixture
def make_indices(metadata: MetadataStore, stores: dict[str, MemoryStore]) -> Callable[[], Indices]:
    """Make a catalogue anew, as a restart does; "other" forgets at a restart."""

    def find(backend: str) -> MemoryStore:
        if backend not in stores:
            raise BackendMissingError(f'Storage backend "{backend}" is not known.')
        return stores[backend]

    return lambda: Indices(metadata, find, default_backend="main", volatile_backends=("other",))


@pytest.fixture
def indices(make_indices: Callable[[], Indices]) -> Indices:
    """Give an empty catalogue."""
    return make_indices()
