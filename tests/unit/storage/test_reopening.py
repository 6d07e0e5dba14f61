"""What is on the disk and what is in memory stay the same through starts, merges and faults."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from termwise.storage.errors import StorageError
from termwise.storage.memory import MemoryStore
from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.types import (
    Delete,
    Document,
    Everything,
    FieldKind,
    FieldSpec,
    IndexSchema,
    Operation,
    Put,
    Sparse,
    Terms,
    sparse_vector,
)

if TYPE_CHECKING:
    from pathlib import Path

    from termwise.storage.base import IndexReader

SCHEMA = IndexSchema({"k": FieldSpec(FieldKind.KEYWORD), "v": FieldSpec(FieldKind.SPARSE_VECTOR)})
TOKENS = [f"t{number}" for number in range(25)]


def operation(chance: random.Random, *, chunks: bool = False) -> Operation:
    id_ = str(chance.randrange(400))
    if chance.random() < 0.25:
        return Delete(id_)
    tokens = chance.sample(TOKENS, chance.randint(1, 8))
    vector = sparse_vector(tokens, [chance.choice([0.5, 1.0, 2.0]) for _ in tokens])
    columns = {"k": [chance.choice("xyz")]}
    if chunks and chance.random() < 0.5:
        count = chance.choice([2, 3, 40])
        parts = [chance.sample(TOKENS, chance.randint(0, 8)) for _ in range(count)]
        held = [sparse_vector(part, [chance.uniform(0.1, 3) for _ in part]) for part in parts]
        return Put(Document(id_, b"{}", columns=columns, chunks={"v": held}))
    return Put(Document(id_, b"{}", columns=columns, sparse={"v": vector}))


def check(chance: random.Random, found: IndexReader, expected: IndexReader) -> None:
    assert found.match(Everything()).tolist() == expected.match(Everything()).tolist()
    ids = [str(chance.randrange(400)) for _ in range(30)]
    assert found.get(ids) == expected.get(ids)
    tokens = chance.sample(TOKENS, 4)
    leaf = Sparse("v", sparse_vector(tokens, [chance.uniform(0.1, 3) for _ in tokens]))
    for where in (None, Terms("k", ("x",))):
        for count in (None, 5):
            ours, theirs = found.rank(leaf, 10, where, count=count), expected.rank(leaf, 10, where)
            assert (ours.seq_nos.tolist(), ours.scores.tolist()) == (theirs.seq_nos.tolist(), theirs.scores.tolist())
            assert found.score(leaf, theirs.seq_nos).tolist() == theirs.scores.tolist()
            assert ours.total == theirs.total if ours.counted else min(5, theirs.total) <= ours.total <= theirs.total


@pytest.mark.parametrize("seed", range(33, 43))
def test_nothing_comes_back_where_merges_begin_beside_a_new_writers_first_commit(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    store, reference = TantivyStore(tmp_path), MemoryStore()
    store.create("i", SCHEMA)
    reference.create("i", SCHEMA)
    for _ in range(40):
        operations = [operation(chance) for _ in range(chance.choice([1, 5, 40, 150]))]
        store.open("i").write(operations)
        reference.open("i").write(operations)
        check(chance, store.open("i").reader(), reference.open("i").reader())
        how = chance.choice(["go on", "release", "restart"])
        if how == "release":
            store.open("i").release_writer()
        elif how == "restart":
            store.close()
            store = TantivyStore(tmp_path)
            check(chance, store.open("i").reader(), reference.open("i").reader())
    store.close()


@pytest.mark.parametrize("exact_path", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_chunks_score_to_the_last_bit_as_in_memory(tmp_path: Path, seed: int, exact_path: bool) -> None:
    chance = random.Random(seed)
    store, reference = TantivyStore(tmp_path, exact_path=exact_path), MemoryStore()
    store.create("i", SCHEMA)
    reference.create("i", SCHEMA)
    for _ in range(15):
        operations = [operation(chance, chunks=seed > 0) for _ in range(chance.choice([1, 5, 40, 150]))]
        store.open("i").write(operations)
        reference.open("i").write(operations)
        if chance.random() < 0.3:
            store.open("i").upkeep(idle=True)
        check(chance, store.open("i").reader(), reference.open("i").reader())
        if chance.random() < 0.3:
            store.close()
            store = TantivyStore(tmp_path, exact_path=exact_path)
            check(chance, store.open("i").reader(), reference.open("i").reader())
    store.close()


@pytest.mark.parametrize("lost", ["meta.json", "*.idx", ""])
def test_a_failed_write_that_is_on_the_disk_keeps_its_seq_nos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The disk fails when a commit is done but for its last sync, and files of the index cannot be seen for a while."""
    put = Put(Document("1", b"{}", sparse={"v": sparse_vector(["a"], [1])}))
    store, aside = TantivyStore(tmp_path), tmp_path / "#aside"
    store.create("i", SCHEMA)
    index, folder = store.open("i"), tmp_path / "i" / "tantivy"
    index.write([put, put])
    aside.mkdir()

    def fail(_: int) -> None:
        for path in list(folder.glob(lost)) if lost else []:
            path.rename(aside / path.name)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            index.write([Put(Document("2", b"{}", sparse=put.document.sparse))])
    for path in list(aside.iterdir()):
        path.rename(folder / path.name)
    (written,) = index.write([Put(Document("3", b"{}", sparse=put.document.sparse))])
    assert written.seq_no == 4
    for _ in range(2):
        reader = index.reader()
        assert [(document.id, document.seq_no) for document in reader.fetch(reader.match(Everything()))] == [
            ("1", 2),
            ("2", 3),
            ("3", 4),
        ]
        assert reader.rank(Sparse("v", put.document.sparse["v"]), 10).seq_nos.tolist() == [2, 3, 4]
        store.close()
        store = TantivyStore(tmp_path)
        index = store.open("i")
    store.close()
