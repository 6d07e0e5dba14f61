"""Index folders of earlier formats open, search and take writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from termwise.storage.errors import InvalidDocumentError
from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.types import Delete, Document, Lexical, Put, Sparse, SparseVector

if TYPE_CHECKING:
    from termwise.storage.base import IndexReader

FOLDERS = sorted((Path(__file__).resolve().parents[2] / "fixtures" / "formats").iterdir())


def sparse(weights: dict[str, float]) -> SparseVector:
    return SparseVector(tuple(weights), np.array(list(weights.values()), np.float32))


def ids(reader: IndexReader, leaf: Sparse | Lexical) -> dict[str, float]:
    found = reader.rank(leaf, 10)
    documents = reader.fetch(found.seq_nos)
    return {each.id: score for each, score in zip(documents, found.scores.tolist(), strict=True)}


def vector(weights: dict[str, float]) -> Sparse:
    return Sparse("vec", sparse(weights))


@pytest.mark.parametrize("exact_path", [True, False])
@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_an_index_of_an_earlier_format_answers_and_goes_on(folder: Path, exact_path: bool, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for _ in range(2):
        store = TantivyStore(tmp_path, exact_path=exact_path)
        index = store.open("docs")
        reader = index.reader()
        assert reader.statistics().document_count == 3
        assert ids(reader, vector({"salmon": 1.0, "gone": 5.0})) == {"fish": 2.0}
        assert ids(reader, vector({"pluto": 1.0, "planet": 2.0, "file": 1.0})) == {"pluto": 7.5, "zip": 1.5}
        assert ids(reader, vector({"white space": 2.0})) == {"zip": 1.0}
        assert list(ids(reader, Lexical("text", "trout"))) == ["fish"]
        (stored,) = reader.get(["zip"])
        assert stored is not None
        assert stored.source == b'{"text":"squeeze a file"}'
        store.close()

    store = TantivyStore(tmp_path, exact_path=exact_path)
    index = store.open("docs")
    index.write(
        [Put(Document("new", b"{}", sparse={"vec": sparse({"white space": 1.0, "pluto": 4.0})})), Delete("zip")]
    )
    assert ids(index.reader(), vector({"white space": 2.0, "pluto": 1.0})) == {"new": 6.0, "pluto": 3.0}
    one = sparse({"pluto": 4.0})
    with pytest.raises(InvalidDocumentError, match=f"version {folder.name} keeps one"):
        index.write([Put(Document("long", b"{}", chunks={"vec": [one, one]}))])
    index.write([Put(Document("short", b"{}", chunks={"vec": [sparse({"chunk": 4.0})]}))])
    assert ids(index.reader(), vector({"chunk": 1.0})) == {"short": 4.0}
    assert index.reader().token_statistics("vec", ["pluto", "chunk"]).frequencies.tolist()[1] == 1
    store.close()
    store = TantivyStore(tmp_path, exact_path=exact_path)
    reader = store.open("docs").reader()
    assert ids(reader, vector({"white space": 2.0, "pluto": 1.0})) == {"new": 6.0, "pluto": 3.0}
    assert min(seq_no for seq_no in [each.seq_no for each in reader.get(["new"]) if each]) > 6
    store.close()
