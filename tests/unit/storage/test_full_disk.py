"""Where the disk is full, nothing of a batch is written, and the index goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.types import FieldKind, FieldSpec, IndexSchema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = IndexSchema({"v": FieldSpec(FieldKind.SPARSE_VECTOR)})

CHILD = """
import json, os, resource, sys
from pathlib import Path
from termwise.storage.errors import StorageFullError
from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.types import Document, Put, sparse_vector

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
index = TantivyStore(folder).open("i")
index.write([Put(Document("first", b"{}", sparse={"v": sparse_vector(["a"], [1])}))])
vector = sparse_vector(["a", "b"], [2, 1])
big = [Put(Document(str(n), os.urandom(20_000), sparse={"v": vector})) for n in range(400)]
huge = [Put(Document(str(n), os.urandom(200_000))) for n in range(500)]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
seen = []
for batch in (big, huge, big):
    try:
        index.write(batch)
        seen.append("written")
    except StorageFullError as error:
        seen.append(str(error))
seen.append(index.reader().statistics().document_count)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
seen.append([outcome.seq_no for outcome in index.write(big[:2])])
print(json.dumps(seen))
"""


def run(folder: Path, limit: int) -> None:
    store = TantivyStore(folder)
    store.create("i", SCHEMA)
    store.close()
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(limit)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    *refusals, count, seq_nos = json.loads(child.stdout)
    assert all("disk is full" in refusal for refusal in refusals)
    assert count == 1
    assert seq_nos == [2, 3]
    store = TantivyStore(folder)
    reader = store.open("i").reader()
    assert [document and document.id for document in reader.get(["first", "0", "1", "2"])] == ["first", "0", "1", None]
    store.close()


def test_a_limit_on_files_leaves_the_index_whole(tmp_path: Path) -> None:
    run(tmp_path, 500_000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; only root may mount one, and not everywhere."""
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)],  # noqa: S607
            capture_output=True,
            check=False,
        ).returncode
    )
    if not mounted:
        pytest.skip("no file system can be mounted here")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)  # noqa: S607


def test_a_full_disk_leaves_the_index_whole(small_disk: Path) -> None:
    run(small_disk, 0)


def test_an_index_that_does_not_fit_is_not_made(small_disk: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from termwise.storage.tantivy.store import TantivyStore;"
        "from termwise.storage.types import IndexSchema; from termwise.storage.errors import StorageFullError\n"
        "folder = Path(sys.argv[1]); store = TantivyStore(folder)\n"
        "(folder / 'ballast').touch(); ballast = (folder / 'ballast').open('r+b', buffering=0)\n"
        "try:\n    while True: ballast.write(bytes(4096))\n"
        "except OSError: pass\n"
        "try: store.create('i', IndexSchema({}))\n"
        "except StorageFullError as error: print(error)\n"
        "(folder / 'ballast').unlink(); ballast.close()\n"
        "assert store.list() == []; store.create('i', IndexSchema({})); assert store.list() == ['i']"
    )
    child = subprocess.run([sys.executable, "-c", code, str(small_disk)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert "disk is full" in child.stdout
