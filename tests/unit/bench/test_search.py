from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import bench_search
import numpy as np
import pytest

import vectors
from peers.base import Lane, PeerMissingError, Truth
from peers.scipy_peer import Scipy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COLLECTION = vectors.synthetic(200, tokens=20, size=300)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    monkeypatch.setattr(vectors, "load", lambda *_, **__: COLLECTION)
    words = ["bench_search", "--documents", "200", "--queries", "5", "--format", "json", *arguments]
    monkeypatch.setattr(sys, "argv", words)
    bench_search.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_rows_come_as_they_are_measured_and_a_peer_that_fails_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(vectors, "CACHE", tmp_path)
    monkeypatch.setattr(bench_search, "prepare", lambda *_: (tmp_path, bench_search.Built(None)))
    seen: list[str] = []

    class Failing(Scipy):
        def lanes(self, *arguments: Any) -> list[Lane]:
            # What was printed before this cell is there already.
            seen.append(capsys.readouterr().out)
            if len(seen) > 2:  # it was asked for lanes of both kinds, at the smaller k, to warm up
                raise RuntimeError("out of memory\nin line 3")
            return super().lanes(*arguments)

    def make(name: str, _: Any) -> Scipy:
        if name == "bmp":
            raise PeerMissingError("bmp is not installed")
        return Failing() if name == "lucene" else Scipy()

    monkeypatch.setattr(bench_search, "make", make)

    run(monkeypatch, capsys, "--engines", "scipy,lucene,bmp", "--k", "3", "7")

    first, *rest = [json.loads(line) for line in "".join(seen).splitlines()]
    assert first["planned"] == {"engines": ["scipy", "lucene", "bmp"], "queries": ["short", "long"], "k": [3, 7]}
    assert {"engine": "bmp", "documents": 200, "skipped": "bmp is not installed"} in rest
    assert {"engine": "lucene", "documents": 200, "skipped": "RuntimeError: out of memory"} in rest
    timed = dict.fromkeys((row["queries"], row["k"]) for row in rest if "p50_ms" in row)
    assert list(timed) == [("short", 3), ("short", 7), ("long", 3)], "the rows of the last cell came after its lanes"


def test_scipy_finds_the_best_documents_in_each_of_its_ways() -> None:
    queries = COLLECTION.of("long")[:6]
    truth = Truth(COLLECTION, queries, [10])
    peer = Scipy()
    peer.open(COLLECTION, None)  # type: ignore[arg-type]
    ways: dict[str, Callable[[Any], Any]] = {}

    for fastest in ("columns", "column by column", "rows"):
        times = {"columns": 1, "column by column": 1, "rows": 1} | {fastest: 0}
        lane = choose(peer, queries, truth, list(times.values()))
        ways[lane.settings] = lane.search
        for number, query in enumerate(lane.prepared):
            truth.check(number, lane.read(lane.search(query)), 10)

    assert len(ways) == 3
    assert peer.memory_bytes() == sum(len(getattr(COLLECTION.columns, name)) * 4 for name in ("data", "indices")) + (
        COLLECTION.columns.indptr.nbytes
    )


def choose(peer: Scipy, queries: list[vectors.Query], truth: Truth, times: list[int]) -> Lane:
    """Give the lane that is chosen where the ways take these times."""
    left = iter(times)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("peers.scipy_peer._median", lambda *_: next(left))
        (lane,) = peer.lanes(queries, 10, truth)
    return lane


def test_a_wrong_answer_of_ours_is_told() -> None:
    queries = COLLECTION.of("short")[:4]
    truth = Truth(COLLECTION, queries, [3])
    wrong: list[str] = []
    answer = (np.array([0, 1, 2], np.int64), np.zeros(3, np.float32))
    lane = Lane("termwise", queries, lambda _: answer, lambda given: given, exact=True)

    (row,) = bench_search.race([lane], truth, 3, wrong)

    assert len(wrong) == 4
    assert wrong[0].startswith("termwise (fresh) is not exact: query 0")
    assert row["calls"] == 4 * bench_search.ROUNDS


def test_an_engine_that_is_not_known_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "--engines", "scipi")

    assert "there is no engine scipi; there are termwise, " in capsys.readouterr().err
