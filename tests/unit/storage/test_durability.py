"""What `write` has acknowledged survives kill -9, and lies on the disk before it is acknowledged."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.types import Everything, FieldKind, FieldSpec, IndexSchema, Sparse, sparse_vector

SCHEMA = IndexSchema({"t": FieldSpec(FieldKind.TEXT), "v": FieldSpec(FieldKind.SPARSE_VECTOR)})

CHILD = """
import json, os, random, sys
from pathlib import Path
from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.types import Delete, Document, Put, sparse_vector

folder, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
index = TantivyStore(folder).open("i")
chance = random.Random(seed)
for _ in range(rounds):
    batch = []
    for _ in range(chance.randint(1, 6)):
        id_ = str(chance.randrange(40))
        if chance.random() < 0.3:
            batch.append(Delete(id_))
        else:
            texts, vector = {"t": ["salmon " + id_]}, sparse_vector(["a", id_], [chance.random() + 0.1, 1])
            batch.append(Put(Document(id_, b"{}", texts, sparse={"v": vector})))
    outcomes = index.write(batch)
    done = [outcome for outcome in outcomes if hasattr(outcome, "seq_no")]
    acknowledged = [[outcome.id, outcome.seq_no, outcome.result.name] for outcome in done]
    os.write(1, json.dumps(acknowledged).encode() + b"\\n")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = TantivyStore(tmp_path)
    store.create("i", SCHEMA)
    store.close()
    return tmp_path


def test_acknowledged_writes_survive_kill_9(folder: Path) -> None:
    chance = random.Random(5)
    expected: dict[str, int] = {}
    newest = 0
    for seed in range(6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(seed), "1000"], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(chance.randint(1, 12)):
            newest = _follow(json.loads(child.stdout.readline()), expected, newest)
        child.send_signal(signal.SIGKILL)
        for line in child.stdout.read().splitlines():  # what it acknowledged before it died
            newest = _follow(json.loads(line), expected, newest)
        child.wait()
        store = TantivyStore(folder)
        reader = store.open("i").reader()
        found = {document.id: document.seq_no for document in reader.fetch(reader.match(Everything()))}
        # The batch that was running may be there as well, as a whole; its seq_nos are newer than all others.
        for id_, seq_no in expected.items():
            assert found.get(id_, newest + 1) == seq_no or found.get(id_, newest + 1) > newest
        assert all(seq_no in expected.values() or seq_no > newest for seq_no in found.values())
        assert reader.rank(Sparse("v", sparse_vector(["a"], [1])), 100).total == len(found)
        assert reader.statistics().last_seq_no >= newest
        expected, newest = found, max(newest, reader.statistics().last_seq_no)
        store.close()


def _follow(acknowledged: list[tuple[str, int, str]], expected: dict[str, int], newest: int) -> int:
    for id_, seq_no, result in acknowledged:
        assert seq_no > newest
        newest = seq_no
        expected[id_] = seq_no
        if result == "DELETED":
            del expected[id_]
    return newest


class Disk:
    """Follows a trace and knows which files and folders hold changes that a power cut would lose."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.unsynced: set[str] = set()
        self.known: set[str] = set()
        self.commits = 0

    def see(self, call: str) -> None:
        name = call.partition("(")[0]
        paths = [path for path in re.findall(r'[<"](/[^>"]+)[>"]', call) if path.startswith(self.folder)]
        paths = [path for path in paths if not path.endswith("lock")]
        if not paths or " = -1" in call:
            return
        if name == "openat" and "O_CREAT" in call and paths[0] not in self.known:
            self.known.add(paths[0])
            self.unsynced |= {paths[0], str(Path(paths[0]).parent)}
        elif name in {"write", "pwrite64", "writev", "ftruncate"}:
            self.unsynced.add(paths[0])
        elif name in {"fsync", "fdatasync"}:
            self.unsynced.discard(paths[0])
        elif name.startswith("rename"):
            source, target = paths[-2:]
            self.commits += target.endswith("meta.json")
            self.unsynced.add(str(Path(target).parent))
            if source in self.unsynced:
                self.unsynced.add(target)
            self.unsynced.discard(source)
        elif name.startswith("unlink"):
            self.unsynced.discard(paths[0])


def calls(trace: str) -> list[str]:
    """List system calls as they end, each in one piece."""
    begun: dict[str, str] = {}
    whole = []
    for line in trace.splitlines():
        thread, _, call = line.partition(" ")
        if call.endswith("<unfinished ...>"):
            begun[thread] = call.removesuffix("<unfinished ...>")
        elif resumed := re.match(r"\s*<\.\.\. \w+ resumed>(.*)", call):
            whole.append(begun.pop(thread, "") + resumed[1])
        else:
            whole.append(call.strip())
    return whole


def test_everything_is_synced_before_a_write_is_acknowledged(folder: Path, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    output = tmp_path / "trace"
    traced = "trace=openat,write,pwrite64,writev,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat"
    command = [strace, "-f", "-y", "-s", "8", "-e", traced, "-o", str(output)]
    ended = subprocess.run(
        [*command, sys.executable, "-c", CHILD, str(folder), "1", "6"], capture_output=True, text=True, check=False
    )
    if "ptrace" in ended.stderr:
        pytest.skip("strace may not trace here")
    assert ended.returncode == 0, ended.stderr
    disk = Disk(folder / "i")
    acknowledged = 0
    for call in calls(output.read_text(errors="replace")):
        if call.startswith("write(1<"):
            assert disk.unsynced == set()
            acknowledged += 1
        disk.see(call)
    assert acknowledged == 6
    assert disk.commits >= 6


def test_a_new_index_is_synced_before_create_returns(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    output, store = tmp_path / "trace", tmp_path / "store"
    store.mkdir()
    code = (
        "import os, sys; from pathlib import Path; from termwise.storage.types import IndexSchema;"
        "from termwise.storage.tantivy.store import TantivyStore;"
        f"TantivyStore(Path({str(store)!r})).create('i', IndexSchema({{}})); os.write(1, b'done')"
    )
    traced = "trace=openat,write,fsync,fdatasync,rename,renameat,renameat2,unlink"
    command = [strace, "-f", "-y", "-s", "8", "-e", traced, "-o", str(output), sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ptrace" in ended.stderr:
        pytest.skip("strace may not trace here")
    assert ended.returncode == 0, ended.stderr
    disk = Disk(store)
    for call in calls(output.read_text(errors="replace")):
        if call.startswith("write(1<"):
            assert disk.unsynced == set()
            return
        disk.see(call)
    pytest.fail("create did not return")
