from __future__ import annotations

import pytest

from termwise.storage.conformance import Conformance
from termwise.storage.memory import MemoryStore


class TestMemory(Conformance):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()
