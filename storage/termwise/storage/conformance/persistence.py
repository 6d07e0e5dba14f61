# ruff: noqa: D101, D102, S101, PLR2004 - a test's name says what it shows; assertions and figures are the purpose
"""Indices outlive the process: for backends with a fixture `reopen`, which closes the store and opens it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from termwise.storage.conformance.reference import SCHEMA, Model, check_ranking, chunked, put, vector, written
from termwise.storage.errors import IndexMissingError
from termwise.storage.types import Delete, Everything, Lexical, Sparse

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.storage.base import IndexStore


class PersistenceConformance:
    def test_everything_is_there_after_reopening(self, store: IndexStore, reopen: Callable[[], IndexStore]) -> None:
        store.create("a", SCHEMA)
        model = Model()
        index = store.open("a")
        model.write(index, [put(str(n), title=f"salmon {n}", vec={"a": 1 + n, f"t{n}": 2}, year=n) for n in range(30)])
        model.write(index, [Delete("3"), put("4", vec={"a": 99})])
        model.write(index, [chunked(str(n), {"a": 1 + n}, {"t7": n}, {"a": n, "t7": 0.5}) for n in range(8, 20)])
        before = index.reader()
        index = reopen().open("a")
        after = index.reader()
        assert index.schema == SCHEMA
        assert after.get(["4", "3", "5", "9"]) == before.get(["4", "3", "5", "9"])
        assert after.match(Everything()).tolist() == sorted(model.alive())
        query = vector({"a": 1, "t7": 3})
        check_ranking(after.rank(Sparse("vec", query), 5), model.dot_products("vec", query), 5, 2e-6)
        assert after.rank(Lexical("title", "salmon"), 50).total == 16
        old, new = before.statistics(), after.statistics()
        assert (new.document_count, new.last_seq_no) == (old.document_count, old.last_seq_no)
        assert new.size_bytes > 0

    @pytest.mark.parametrize("deletes", [[], ["2"], ["2", "1"]])
    def test_seq_nos_go_on_after_reopening(
        self, store: IndexStore, reopen: Callable[[], IndexStore], deletes: list[str]
    ) -> None:
        store.create("a", SCHEMA)
        used = written(store.open("a"), put("1"), put("2"), *(Delete(id_) for id_ in deletes))
        index = reopen().open("a")
        assert index.reader().statistics().last_seq_no == used[-1]
        used += written(index, put("3"))
        assert used == sorted(set(used))

    def test_dropped_indices_stay_away(self, store: IndexStore, reopen: Callable[[], IndexStore]) -> None:
        store.create("a", SCHEMA)
        store.create("b", SCHEMA)
        written(store.open("a"), put("1"))
        store.drop("a")
        store = reopen()
        assert store.list() == ["b"]
        with pytest.raises(IndexMissingError):
            store.open("a")
