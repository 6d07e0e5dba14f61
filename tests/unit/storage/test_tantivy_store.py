from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from termwise.storage.errors import SchemaError, StorageError, StorageFormatError, StorageLockedError
from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.types import Document, Everything, FieldKind, FieldSpec, IndexSchema, Put

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = IndexSchema({"t": FieldSpec(FieldKind.TEXT, "english"), "v": FieldSpec(FieldKind.SPARSE_VECTOR)})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TantivyStore]:
    store = TantivyStore(tmp_path)
    store.create("i", SCHEMA)
    yield store
    store.close()


def test_an_index_open_elsewhere_is_locked(store: TantivyStore, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from termwise.storage.tantivy.store import TantivyStore;"
        "TantivyStore(Path(sys.argv[1])).open('i'); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(StorageLockedError, match="another process"):
            store.open("i")
        child.communicate()
    assert store.open("i").reader().match(Everything()).tolist() == []


def test_a_second_store_of_the_same_process_is_locked_out_until_the_first_closes(
    store: TantivyStore, tmp_path: Path
) -> None:
    store.open("i").write([Put(Document("1", b"{}"))])
    second = TantivyStore(tmp_path)
    with pytest.raises(StorageLockedError):
        second.open("i")
    store.close()
    assert second.open("i").write([Put(Document("2", b"{}"))])[0].id == "2"
    second.close()


def test_a_newer_format_is_refused_by_both_numbers(store: TantivyStore, tmp_path: Path) -> None:
    file = tmp_path / "i" / "format.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(StorageFormatError, match=r"99.* 3;"):
        store.open("i")


def test_an_analyzer_of_a_newer_release_is_refused(store: TantivyStore, tmp_path: Path) -> None:
    file = tmp_path / "i" / "format.json"
    file.write_text(file.read_text().replace("english.1", "english.9"))
    with pytest.raises(StorageFormatError, match=r"english\.9"):
        store.open("i")


@pytest.mark.parametrize("broken", ["format.json", "tantivy/meta.json"])
@pytest.mark.parametrize("content", [None, "", "{}", "nonsense"])
def test_broken_files_are_named(store: TantivyStore, tmp_path: Path, broken: str, content: str | None) -> None:
    file = tmp_path / "i" / broken
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(StorageFormatError, match="broken"):
        store.open("i")


def test_what_a_crash_left_half_made_is_removed(store: TantivyStore, tmp_path: Path) -> None:
    store.close()
    (tmp_path / "#0123").mkdir()
    (tmp_path / "#0123" / "format.json").write_text("{")
    again = TantivyStore(tmp_path)
    assert again.list() == ["i"]
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


@pytest.mark.parametrize("name", ["", ".", "..", "../i", "a/b", "#x", "\0", "x" * 256])
def test_names_that_cannot_be_folders_are_refused(store: TantivyStore, name: str) -> None:
    with pytest.raises(SchemaError, match="name"):
        store.create(name, SCHEMA)


def test_a_closed_index_takes_no_writes(store: TantivyStore) -> None:
    index = store.open("i")
    store.close()
    with pytest.raises(StorageError, match="closed"):
        index.write([Put(Document("1", b"{}"))])


def test_many_indices_share_few_writers(tmp_path: Path) -> None:
    store = TantivyStore(tmp_path)
    for number in range(20):
        store.create(f"i{number}", SCHEMA)
        store.open(f"i{number}").write([Put(Document("1", b"{}"))])
    locks = [store.open(f"i{number}")._writer is not None for number in range(20)]
    assert sum(locks) <= 8
    for number in range(20):
        assert store.open(f"i{number}").write([Put(Document("2", b"{}"))])[0].seq_no == 2
    store.close()


def test_searches_agree_after_many_small_writes_and_merges(store: TantivyStore) -> None:
    index = store.open("i")
    for number in range(60):
        index.write([Put(Document(str(number % 50), b"{}", {"t": [f"salmon n{number}"]}))])
    assert index.reader().statistics().document_count == 50
    assert len(index.reader().match(Everything())) == 50
    assert index.reader().get(["9"])[0].seq_no == 60
