"""Tile files are a cache: whatever happens to them, an index answers after a restart as it did before."""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import weakref
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from termwise.storage.tantivy import accelerator, tiles, upkeep
from termwise.storage.tantivy import index as index_module
from termwise.storage.tantivy import store as store_module
from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.tantivy.tile_files import TILE_FORMAT, TileFile, checksum
from termwise.storage.types import (
    Delete,
    Document,
    Everything,
    FieldKind,
    FieldSpec,
    IndexSchema,
    Put,
    Sparse,
    sparse_vector,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from termwise.storage.base import IndexReader
    from termwise.storage.types import Operation

SCHEMA = IndexSchema({"v": FieldSpec(FieldKind.SPARSE_VECTOR), "w": FieldSpec(FieldKind.SPARSE_VECTOR)})
SMALL = 64


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tiles of 64 documents, so that an index of hundreds has many."""
    for module in (accelerator, tiles, upkeep):
        monkeypatch.setattr(module, "TILE", SMALL)
    monkeypatch.setattr(upkeep, "_WORTH_SEALING", 20)
    monkeypatch.setattr(accelerator, "_WORTH_A_FILE", 10)
    monkeypatch.setattr(accelerator, "_SPAN", 50)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = TantivyStore(tmp_path)
    store.create("i", SCHEMA)
    store.close()
    return tmp_path


def put(number: int, chance: random.Random) -> Put:
    tokens = chance.sample([f"t{n}" for n in range(40)] + ["odd\n", "a b", "é"], chance.randint(0, 12))
    vectors = {"v": sparse_vector(tokens, [chance.uniform(0.1, 3) for _ in tokens])}
    chunks = {}
    if number % 3 == 0:
        chunks["w"] = [
            sparse_vector(["x", f"t{number % (7 + n)}"], [1 + number % (5 + n), 2]) for n in range(number % 4)
        ]
    return Put(Document(str(number), b"{}", sparse=vectors if number % 11 else {}, chunks=chunks))


def batches(seed: int, rounds: int) -> Iterator[list[Operation]]:
    """Make batches of new documents, updates and deletions of many sizes."""
    chance = random.Random(seed)
    for _ in range(rounds):
        count, ids = chance.choice([1, 3, 30, 70, 150]), chance.choice([100, 400])
        yield [
            Delete(str(number)) if chance.random() < 0.2 else put(number, chance)
            for number in (chance.randrange(ids) for _ in range(count))
        ]


def answers(reader: IndexReader) -> list[Any]:
    """Give what an index says to some queries of both fields, and what it holds."""
    result: list[Any] = [reader.match(Everything()).tolist(), reader.statistics().last_seq_no]
    for field in ("v", "w"):
        for tokens in (["t1"], ["t3", "t1", "x"], ["odd\n", "a b"], [f"t{n}" for n in range(40)]):
            vector = sparse_vector(tokens, list(range(1, len(tokens) + 1)))
            for depth in (3, 1000):
                ranking = reader.rank(Sparse(field, vector), depth)
                result.append((ranking.seq_nos.tolist(), ranking.scores.tolist(), ranking.total))
    return result


def settle(store: TantivyStore) -> None:
    """Wait until the store's upkeep has nothing more to do."""
    while store.open("i").upkeep(idle=True):
        pass


def restarted(folder: Path) -> list[Any]:
    store = TantivyStore(folder)
    try:
        return answers(store.open("i").reader())
    finally:
        store.close()


def files(folder: Path) -> list[Path]:
    return sorted((folder / "i" / "tiles").glob("*.tile"))


def fill(folder: Path, *, seed: int = 1, rounds: int = 12) -> list[Any]:
    store = TantivyStore(folder)
    index = store.open("i")
    for batch in batches(seed, rounds):
        index.write(batch)
    settle(store)
    given = answers(index.reader())
    store.close()
    return given


@pytest.mark.parametrize("seed", range(6))
def test_a_restart_changes_no_answer(folder: Path, seed: int) -> None:
    reads: list[int] = []
    given = None
    for part in range(4):
        store = TantivyStore(folder)
        index = store.open("i")
        if given is not None:
            assert answers(index.reader()) == given
        for batch in batches(10 * seed + part, 6):
            before = answers(index.reader())
            reader = index.reader()
            index.write(batch)
            assert answers(reader) == before
        given = answers(index.reader())
        if part % 2:
            settle(store)
            assert answers(index.reader()) == given
        store.close()
        reads.append(len(files(folder)))
    assert max(reads) > 2
    for path in files(folder):
        path.unlink()
    assert restarted(folder) == given


def test_upkeep_beside_writes_and_searches_changes_no_answer(folder: Path) -> None:
    (folder / ".plain").mkdir()
    store, plain = TantivyStore(folder), TantivyStore(folder / ".plain")
    plain.create("i", SCHEMA)
    index, done = store.open("i"), threading.Event()

    def search() -> None:
        while not done.is_set():
            answers(index.reader())

    searching = threading.Thread(target=search)
    searching.start()
    try:
        for batch in batches(3, 60):
            plain.open("i").write(batch)
            index.write(batch)
    finally:
        done.set()
        searching.join()
    assert answers(index.reader()) == answers(plain.open("i").reader())
    settle(store)
    assert answers(index.reader()) == answers(plain.open("i").reader())
    plain.close()
    store.close()


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def of_version(path: Path, version: int) -> None:
    """Write a header of another version whose checksum is right."""
    content = path.read_bytes()
    old, new = (f'"format_version": {number},'.encode() for number in (TILE_FORMAT, version))
    assert content.count(old) == 1
    end = 12 + int.from_bytes(content[8:12], "little")
    start = content[:end].replace(old, new)
    path.write_bytes(start + zlib.crc32(start).to_bytes(4, "little") + content[end + 4 :])


def foreign(path: Path) -> None:
    """Take a whole file of another index."""
    found = re.search(rb'"index": "([0-9a-f]{32})"', path.read_bytes())
    assert found is not None
    content = path.read_bytes()
    end = 12 + int.from_bytes(content[8:12], "little")
    start = content[:end].replace(found[1], b"0" * 32)
    path.write_bytes(start + zlib.crc32(start).to_bytes(4, "little") + content[end + 4 :])


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "magic": lambda path: flip(path, 0),
    "length": lambda path: flip(path, 11),
    "header": lambda path: flip(path, 30),
    "array": lambda path: flip(path, path.stat().st_size - 1),
    "arrays": lambda path: flip(path, path.stat().st_size // 2),
    "version": lambda path: of_version(path, TILE_FORMAT + 1),
    "older version": lambda path: of_version(path, TILE_FORMAT - 1),
    "foreign": foreign,
    "renamed": lambda path: path.rename(path.with_name(re.sub(r"\d+(?=\.)", lambda m: str(int(m[0]) - 1), path.name))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_not_as_it_was_written_is_built_anew(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = fill(folder)
    assert len(files(folder)) > 2
    DAMAGE[damage](files(folder)[1])
    with caplog.at_level(logging.WARNING, "termwise.storage"):
        store = TantivyStore(folder)
        assert answers(store.open("i").reader()) == given
    assert "built anew" in caplog.text
    settle(store)
    store.close()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "termwise.storage"):
        assert restarted(folder) == given
    assert "built anew" not in caplog.text


def test_a_file_that_lacks_documents_is_built_anew(folder: Path) -> None:
    given = fill(folder)
    path = files(folder)[0]
    content = path.read_bytes()
    later = fill(folder, seed=2)
    settle_folder(folder)
    path.write_bytes(content)
    assert restarted(folder) == later
    assert given != later


def settle_folder(folder: Path) -> None:
    store = TantivyStore(folder)
    store.open("i")
    settle(store)
    store.close()


def test_files_are_read_instead_of_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = fill(folder)

    def read(_: bytes) -> Sequence[Any]:
        pytest.fail("a document was read")

    monkeypatch.setattr(accelerator, "read_vectors", read)
    assert restarted(folder) == given


def test_leftovers_are_removed(folder: Path) -> None:
    given = fill(folder)
    left = folder / "i" / "tiles" / "0-1-9.new"
    left.write_bytes(b"half")
    assert restarted(folder) == given
    assert not left.exists()


def test_a_disk_that_is_full_stops_no_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(accelerator, "write_tile", full)
    with caplog.at_level(logging.WARNING, "termwise.storage"):
        given = fill(folder)
    assert "No space left" in caplog.text
    assert files(folder) == []
    monkeypatch.undo()
    assert restarted(folder) == given


def test_cold_tiles_answer_as_before(folder: Path) -> None:
    given = fill(folder)
    store = TantivyStore(folder, memory_bytes=1, mapped_bytes=1 << 30)
    index = store.open("i")
    assert list(store._budget.cold()) == [index]
    index.cool()
    assert answers(index.reader()) == given
    store.close()


def test_beyond_the_limit_tantivy_answers(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = fill(folder)
    with caplog.at_level(logging.WARNING, "termwise.storage"):
        store = TantivyStore(folder, mapped_bytes=1)
        index = store.open("i")
    assert "without the exact path" in caplog.text
    assert index.reader().tiles is None
    assert answers(index.reader()) == given
    index.write([put(1, random.Random(0))])
    later = answers(index.reader())
    store.close()
    assert restarted(folder) == later


def test_an_index_that_grows_beyond_the_limit_goes_without(folder: Path) -> None:
    store, plain = TantivyStore(folder, mapped_bytes=3_000), TantivyStore(folder, exact_path=False)
    index = store.open("i")
    modes = []
    for batch in batches(7, 10):
        index.write(batch)
        modes.append(index.reader().tiles is not None)
    assert not modes[-1]
    given = answers(index.reader())
    store.close()
    assert answers(plain.open("i").reader()) == given
    plain.close()


CHILD = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import test_tile_files as tests
from termwise.storage.tantivy import tiles, upkeep
tiles.TILE = upkeep.TILE = tests.SMALL
upkeep._WORTH_SEALING = 20
store = tests.TantivyStore(Path(sys.argv[1]))
index = store.open("i")
for batch in tests.batches(int(sys.argv[2]), 1000):
    index.write(batch)
    os.write(1, b"%d\\n" % index.reader().last_seq_no)
"""


def test_kill_9_amid_upkeep_changes_no_answer(folder: Path) -> None:
    chance = random.Random(4)
    kept = 0
    for seed in range(5):
        command = [sys.executable, "-c", CHILD, str(folder), str(seed), str(Path(__file__).parent)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        acknowledged = 0
        for _ in range(chance.randint(5, 40)):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait()
        kept = max(kept, len(files(folder)))
        store = TantivyStore(folder)
        given = answers(store.open("i").reader())
        assert given[1] >= acknowledged
        store._upkeep.close()
        for path in files(folder):
            path.unlink()
        store.open("i").close(dropped=True)
        store.close()
        assert restarted(folder) == given
    assert kept > 2


@contextmanager
def one_more_file() -> Iterator[None]:
    """Let the process open no more than one file at a time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_files_that_cannot_be_read_now_are_left(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = fill(folder)
    before = files(folder)
    store = TantivyStore(folder)
    index = store.open("i")
    store._upkeep.close()
    reader, reading = index.reader(), index._accelerator
    assert reading is not None
    with one_more_file(), caplog.at_level(logging.WARNING, "termwise.storage"):
        fields = reading.load(reader.searcher, index._index.schema, reader.last_seq_no)
    assert caplog.text.count(os.strerror(errno.EMFILE)) == len(before) > 2
    assert files(folder) == before
    index._show(fields, reader.last_seq_no, reader.searcher)
    assert answers(index.reader()) == given
    store.close()
    assert restarted(folder) == given


def replaced_by_file(tiles_folder: Path) -> None:
    tiles_folder.rename(tiles_folder.with_name("other"))
    tiles_folder.write_bytes(b"")


STRANGERS: dict[str, Callable[[Path], Any]] = {
    "folder": lambda path: (path / ".snapshot").mkdir(),
    "unfinished folder": lambda path: (path / "x.new").mkdir(),
    "folder with a tile's name": lambda path: (path / "0-1-9.tile").mkdir(),
    "link to nothing": lambda path: (path / "0-1-9.tile").symlink_to("nothing"),
    "link to itself": lambda path: (path / "0-1-9.tile").symlink_to("0-1-9.tile"),
    "file in place of all": replaced_by_file,
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_is_no_file_keeps_no_index_from_opening(folder: Path, stranger: str) -> None:
    given = fill(folder)
    STRANGERS[stranger](folder / "i" / "tiles")
    store = TantivyStore(folder)
    assert answers(store.open("i").reader()) == given
    settle(store)
    assert answers(store.open("i").reader()) == given
    store.close()
    assert restarted(folder) == given


def test_a_file_that_vanishes_or_stays_keeps_no_index_from_opening(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = fill(folder)

    def vanishing(path: Path) -> list[TileFile]:
        found = listed(path)
        os.unlink(found[1].path)  # noqa: PTH108 - the other one is refused
        found[0].path.write_bytes(b"")
        return found

    def refused(path: Path, **_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    listed = accelerator.list_tiles
    store = TantivyStore(folder)
    with monkeypatch.context() as patch:
        patch.setattr(accelerator, "list_tiles", vanishing)
        patch.setattr(Path, "unlink", refused)
        index = store.open("i")
        store._upkeep.close()
        assert answers(index.reader()) == given
    store.close()
    assert restarted(folder) == given


def plain(count: int, *, first: int = 0) -> list[Operation]:
    return [Put(Document(str(n), b"{}", sparse={"v": sparse_vector(["a"], [1])})) for n in range(first, first + count)]


@contextmanager
def busy_index(store: TantivyStore) -> Iterator[None]:
    """Write to an index all the time that always has tiles worth sealing once it rests."""
    store.create("busy", SCHEMA)
    index, done = store.open("busy"), threading.Event()
    index.write(plain(50))

    def write() -> None:
        while not done.is_set():
            index.write(plain(2))

    writing = threading.Thread(target=write)
    writing.start()
    try:
        yield
    finally:
        done.set()
        writing.join()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let upkeep be less patient than people."""
    monkeypatch.setattr(store_module, "_PATIENCE", 0.3)
    monkeypatch.setattr(store_module, "_RETRY", 0.05)
    monkeypatch.setattr(index_module, "_KEEP_AGAIN", 0.01)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Tell when a tile of index "i" was written."""
    write, event = accelerator.write_tile, threading.Event()

    def written(path: Path, *rest: Any) -> TileFile:
        file = write(path, *rest)
        if path.parent.name == "i":
            event.set()
        return file

    monkeypatch.setattr(accelerator, "write_tile", written)
    return event


@pytest.mark.usefixtures("quick")
def test_an_index_that_rests_is_sealed_beside_a_busy_one(folder: Path, kept: threading.Event) -> None:
    store = TantivyStore(folder)
    with busy_index(store):
        store.open("i").write(plain(40))
        assert kept.wait(20)
    store.close()


def test_a_dropped_index_is_let_go_beside_a_busy_one(folder: Path) -> None:
    store, gone = TantivyStore(folder), threading.Event()
    with busy_index(store):
        index = store.open("i")
        index.write(plain(40))
        weakref.finalize(index, gone.set)
        del index
        store.drop("i")
        assert any(gone.wait(0.1) or gc.collect() < 0 for _ in range(100))
    store.close()


@pytest.mark.usefixtures("quick")
def test_a_tile_that_could_not_be_written_is_written_when_it_can(
    folder: Path, kept: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    store, failed = TantivyStore(folder), threading.Event()
    (folder / "i" / "tiles").write_bytes(b"in the way of the folder")
    caplog.handler.addFilter(lambda record: failed.set() or True if "not kept" in record.msg % record.args else True)
    index = store.open("i")
    index.write(plain(200))
    assert failed.wait(20)
    assert not kept.is_set()
    (folder / "i" / "tiles").unlink()
    assert kept.wait(20)
    store.close()


def test_a_tile_that_could_not_be_written_is_written_at_close(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_KEEP_AGAIN", 0.0)
    store = TantivyStore(folder)
    store._upkeep.close()
    (folder / "i" / "tiles").write_bytes(b"in the way of the folder")
    index = store.open("i")
    for batch in batches(1, 12):
        index.write(batch)
    settle(store)
    index.write([Delete("1"), Delete("3")])
    given = answers(index.reader())
    assert index.unkept
    (folder / "i" / "tiles").unlink()
    store.close()
    assert len(files(folder)) > 2
    monkeypatch.setattr(accelerator, "read_vectors", lambda _: pytest.fail("a document was read"))
    assert restarted(folder) == given


def test_tiles_that_could_not_be_sealed_are_joined_by_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(_: Any) -> None:
        raise MemoryError

    store = TantivyStore(folder)
    store._upkeep.close()
    index = store.open("i")
    index.write(plain(40))
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "seal", lacking)
        with pytest.raises(MemoryError):
            index.upkeep(idle=True)
    index.write(plain(20, first=40))
    assert not any(tile.sealed for tile in index.reader().tiles["v"].tiles)
    store.close()


def test_a_failed_opening_takes_nothing_of_the_budget(folder: Path) -> None:
    fill(folder)
    files(folder)[0].unlink()
    for path in (folder / "i").rglob("*.store"):
        path.write_bytes(b"\xff" * 40 + path.read_bytes()[40:])
    store = TantivyStore(folder)
    with pytest.raises(ValueError, match=r"."):
        store.open("i")
    assert not store._budget._sizes
    store.close()


def test_reading_anew_leaves_a_file_in_the_making(folder: Path) -> None:
    fill(folder)
    store = TantivyStore(folder)
    index = store.open("i")
    making = folder / "i" / "tiles" / "0-1-9.new"
    making.write_bytes(b"half")
    with index._writing:
        index._load()
    assert making.exists()
    store.close()


def test_a_checksum_sees_words_that_changed_places() -> None:
    data = np.random.default_rng(1).integers(0, 1 << 32, 400_000, dtype=np.uint32)
    sums = {checksum(data)}
    for one, other in ((0, 2), (0, 1024), (6, 300_000), (512, 1023)):
        moved = data.copy()
        moved[[one, other]] = moved[[other, one]]
        sums.add(checksum(moved))
    pages = data.copy()
    pages[:2048] = np.concatenate([data[1024:2048], data[:1024]])
    sectors = data.copy()
    sectors[:256] = np.concatenate([data[128:256], data[:128]])
    assert len(sums | {checksum(pages), checksum(sectors)}) == 7


def test_an_index_that_closes_holds_up_no_other(folder: Path) -> None:
    store = TantivyStore(folder)
    index = store.open("i")
    dropping = threading.Thread(target=store.drop, args=["i"])

    def use_another() -> None:
        store.create("j", SCHEMA)
        store.open("j").write(plain(1))

    another = threading.Thread(target=use_another, daemon=True)
    with index._keeping:  # as when upkeep makes a tile
        dropping.start()
        while not index.closed:
            pass
        another.start()
        another.join(20)
        held_up = another.is_alive()
    dropping.join()
    assert not held_up
    assert store.list() == ["j"]
    store.create("i", SCHEMA)
    assert store.open("i").write(plain(1))
    store.close()


def test_a_close_that_is_out_of_time_leaves_tiles_to_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_CLOSING", 0.0)
    store = TantivyStore(folder)
    store._upkeep.close()
    index = store.open("i")
    index.write(plain(40))
    given = answers(index.reader())
    store.close()
    assert files(folder) == []
    assert restarted(folder) == given
