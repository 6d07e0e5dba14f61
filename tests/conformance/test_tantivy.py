from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from termwise.storage.conformance import Conformance, PersistenceConformance
from termwise.storage.tantivy.store import TantivyStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class TestTantivy(Conformance, PersistenceConformance):
    exact_path = True

    @pytest.fixture
    def opened(self) -> Iterator[list[TantivyStore]]:
        stores: list[TantivyStore] = []
        yield stores
        for store in stores:
            store.close()

    @pytest.fixture
    def store(self, tmp_path: Path, opened: list[TantivyStore]) -> TantivyStore:
        opened.append(TantivyStore(tmp_path, exact_path=self.exact_path))
        return opened[-1]

    @pytest.fixture
    def reopen(self, tmp_path: Path, opened: list[TantivyStore]) -> Callable[[], TantivyStore]:
        def reopened() -> TantivyStore:
            opened[-1].close()
            opened.append(TantivyStore(tmp_path, exact_path=self.exact_path))
            return opened[-1]

        return reopened


class TestTantivyWithoutExactPath(TestTantivy):
    exact_path = False
