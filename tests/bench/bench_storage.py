"""Measures the tantivy backend alone: durable writes, restarts to the first exact answer, disk and memory.

    make bench-storage ARGS="[--documents 10000 100000 1000000] [--quick] [--format json]"

Documents are written as a bulk client makes them, a thousand at a time; a batch counts when it is committed, synced and
visible. Each restart is a process of its own: after a kill -9, when what no tile file holds is read from tantivy, and
after a clean stop. The time is that from opening the folder to the first answer; imports, which load the compiled
loops, are left out. Memory is what the process's resident set grew by, after a hundred searches; mapped files count.

The first row of each size is of real or resampled vectors (see `vectors`); the bar on writes is measured on synthetic
ones of 140 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import vectors
from termwise.storage.tantivy.store import TantivyStore
from termwise.storage.types import Document, FieldKind, FieldSpec, IndexSchema, Put, Sparse, SparseVector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from termwise.storage.base import IndexReader

BATCH = 1_000
SIZES = [10_000, 100_000]
QUICK = [10_000]
SCHEMA = IndexSchema({"vec": FieldSpec(FieldKind.SPARSE_VECTOR), "part": FieldSpec(FieldKind.INTEGER)})
WRITE_BAR = 8_000
RESTART_BAR = 5.0
MILLION = 1_000_000


def main() -> None:
    """Run the benchmark, or one of its parts in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="*", help=f"sizes; {SIZES} by default")
    parser.add_argument("--quick", action="store_true", help="10,000 documents only")
    parser.add_argument("--folder", type=Path, help="where indices go; a temporary folder by default")
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--part", choices=["write", "restart"], help=argparse.SUPPRESS)
    parser.add_argument("--synthetic", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part = write if options.part == "write" else restart
        print(json.dumps(part(options.folder, options.documents[0], real=not options.synthetic)), flush=True)
        os._exit(0)  # as by kill -9: nothing is closed
    sizes = options.documents or (QUICK if options.quick else SIZES)
    for size, real in [(min(sizes[0], 30_000), False), *((size, True) for size in sizes)]:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            for line in measured(folder, size, real=real):
                print(json.dumps(line) if options.format == "json" else as_text(line), flush=True)
        finally:
            shutil.rmtree(folder)


def measured(folder: Path, size: int, *, real: bool) -> Iterator[dict[str, Any]]:
    """Measure one size; give its row, and rows for the bars."""
    written = run("write", folder, size, real=real)
    killed = run("restart", folder, size, real=real)
    stopped = run("restart", folder, size, real=real)
    postings = written.pop("postings")
    speed = written["write_documents_per_s"]
    row = {
        "bench": "storage",
        "engine": "termwise",
        "documents": size,
        **written,
        "disk_bytes_per_posting": round(stopped["disk_bytes"] / postings, 2),
        "tile_file_bytes_per_posting": round(stopped["tile_bytes"] / postings, 2),
        "memory_bytes_per_posting": round(stopped["memory_bytes"] / postings, 2),
        "restart_s": stopped["restart_s"],
        "restart_after_kill_s": killed["restart_s"],
    }
    if not real:
        metric = f"durable writes of {written['tokens_per_document']:.0f} tokens, {written['vectors']} vectors"
        row |= {"metric": metric, "bar": f">= {WRITE_BAR:,} documents/s", "ok": speed >= WRITE_BAR}
    elif size == MILLION:
        row |= {"metric": "restart to the first exact answer", "bar": f"< {RESTART_BAR:.0f} s"}
        row["ok"] = max(row["restart_s"], row["restart_after_kill_s"]) < RESTART_BAR
    yield row


def run(part: str, folder: Path, size: int, *, real: bool) -> dict[str, Any]:
    """Run a part in a new process."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder), "--documents", str(size)]
    given = subprocess.run(
        command + ([] if real else ["--synthetic"]), stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    result: dict[str, Any] = json.loads(given.splitlines()[-1])
    return result


def write(folder: Path, size: int, *, real: bool) -> dict[str, Any]:
    """Write all documents, time the writes alone, and leave upkeep to what it has managed by then."""
    collection = vectors.load(size, real=real)
    documents = collection.documents
    words = np.array(collection.vocabulary, dtype=object)
    store = TantivyStore(folder)
    store.create("bench", SCHEMA)
    index = store.open("bench")
    took = longest = 0.0
    for first in range(0, size, BATCH):
        batch = [Put(document(n, documents, words)) for n in range(first, min(first + BATCH, size))]
        start = time.perf_counter()
        index.write(batch)
        ended = time.perf_counter() - start
        took, longest = took + ended, max(longest, ended)
    return {
        "vectors": collection.label,
        "tokens_per_document": round(documents.nnz / size, 1),
        "postings": int(documents.nnz),
        "write_documents_per_s": round(size / took),
        "longest_batch_ms": round(1000 * longest),
    }


def document(n: int, documents: Any, words: np.ndarray[Any, Any]) -> Document:
    """Make the n-th document."""
    tokens, weights = vectors.row(documents, n)
    weights.flags.writeable = False
    sparse = SparseVector(tuple(words[tokens].tolist()), weights)
    return Document(str(n), b'{"n": 1}', columns={"part": [n % 10]}, sparse={"vec": sparse})


def restart(folder: Path, size: int, *, real: bool) -> dict[str, Any]:
    """Open the index, answer, search on, let upkeep end, and stop cleanly."""
    collection = vectors.load(min(size, vectors.REAL), real=real)
    words = np.array(collection.vocabulary, dtype=object)
    pairs = collection.of("short")[:100]
    leaves = [Sparse("vec", SparseVector(tuple(words[tokens].tolist()), weights)) for tokens, weights in pairs]
    del collection, words
    before = resident()
    start = time.perf_counter()
    store = TantivyStore(folder)
    index = store.open("bench")
    first(index.reader(), leaves[0], size)
    took = time.perf_counter() - start
    while index.upkeep(idle=True):  # type: ignore[attr-defined]
        pass
    for leaf in leaves:
        index.reader().rank(leaf, 10, count=100)
    memory = resident() - before
    store.close()
    disk, tiles = (size_of(folder / "bench" / part) for part in (".", "tiles"))
    return {"restart_s": round(took, 2), "disk_bytes": disk, "tile_bytes": tiles, "memory_bytes": memory}


def first(reader: IndexReader, leaf: Sparse, size: int) -> None:
    """Search once, and see that nothing is missing."""
    assert reader.statistics().document_count == size
    assert reader.rank(leaf, 10).max_error == 0


def resident() -> int:
    """Measure this process's resident set in bytes; mapped files count."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def size_of(folder: Path) -> int:
    """Sum up a folder's files in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def as_text(line: dict[str, Any]) -> str:
    """Write a row for people."""
    return "\n".join([f"{line['documents']:,} documents", *(f"  {key}: {value}" for key, value in line.items())])


if __name__ == "__main__":
    main()
