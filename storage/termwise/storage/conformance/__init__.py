"""The suite that every storage backend passes; it needs pytest and hypothesis.

A backend's tests are a class and one fixture::

    class TestMine(Conformance):
        @pytest.fixture
        def store(self, tmp_path):
            with closing(MyStore(tmp_path)) as store:
                yield store

A backend whose indices outlive the process also inherits `PersistenceConformance`, which needs a fixture `reopen`.
"""

from __future__ import annotations

from termwise.storage.conformance.chunks import ChunksConformance
from termwise.storage.conformance.concurrency import ConcurrencyConformance
from termwise.storage.conformance.matching import MatchingConformance
from termwise.storage.conformance.persistence import PersistenceConformance
from termwise.storage.conformance.ranking import LexicalConformance, SparseConformance
from termwise.storage.conformance.writing import StoreConformance, WritingConformance

__all__ = ["Conformance", "PersistenceConformance"]


class Conformance(
    StoreConformance,
    WritingConformance,
    MatchingConformance,
    LexicalConformance,
    SparseConformance,
    ChunksConformance,
    ConcurrencyConformance,
):
    """Everything that each backend must do."""
