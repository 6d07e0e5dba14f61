from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from termwise.storage.conformance import Conformance, PersistenceConformance
from termwise.storage.tantivy.store import TantivyStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system, not a file of that name


class TestTantivy(Conformance, PersistenceConformance):
    exact_path = True

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Iterator[Path]:
        """Keep the suite's thousands of commits off the disk, where that can be; durability has tests of its own."""
        if not SHARED_MEMORY.is_dir():
            yield tmp_path
            return
        with TemporaryDirectory(dir=SHARED_MEMORY) as folder:
            yield Path(folder)

    @pytest.fixture
    def opened(self) -> Iterator[list[TantivyStore]]:
        stores: list[TantivyStore] = []
        yield stores
        for store in stores:
            store.close()

    @pytest.fixture
    def store(self, folder: Path, opened: list[TantivyStore]) -> TantivyStore:
        opened.append(TantivyStore(folder, exact_path=self.exact_path))
        return opened[-1]

    @pytest.fixture
    def reopen(self, folder: Path, opened: list[TantivyStore]) -> Callable[[], TantivyStore]:
        def reopened() -> TantivyStore:
            opened[-1].close()
            opened.append(TantivyStore(folder, exact_path=self.exact_path))
            return opened[-1]

        return reopened


class TestTantivyWithoutExactPath(TestTantivy):
    exact_path = False
