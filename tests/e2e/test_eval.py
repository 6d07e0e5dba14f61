"""Retrieval quality on public collections: those in `$TERMWISE_BENCH_DATA` or `../shared/data`, where there are any."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLLECTIONS = Path(os.environ.get("TERMWISE_BENCH_DATA", ROOT.parent / "shared" / "data"))

# NDCG@10 by public tools: bm25s (k1 = 1.2, b = 0.75, English stemming), SPLADE-tiny as exact dot product of 512 tokens.
PUBLIC = {"cranfield": (0.3758, 0.3722), "cacm": (0.4994, 0.4131), "med": (0.6986, 0.7485), "adi": (0.4832, 0.3952)}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "adi" else pytest.mark.slow) for name in PUBLIC]
)
def test_retrieval_is_as_good_as_that_of_public_tools(name: str, server: Any) -> None:
    if not (COLLECTIONS / name / "corpus.jsonl").exists():
        pytest.skip(f"there is no collection at {COLLECTIONS / name}")
    command = [sys.executable, "-m", "termwise.cli", "eval", str(COLLECTIONS / name), "--format", "json"]
    command += ["--address", server.address]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    found = {row["system"]: row["ndcg@10"] for row in map(json.loads, done.stdout.splitlines())}
    bm25, sparse = PUBLIC[name]

    assert abs(found["sparse"] - sparse) <= 0.004
    assert found["bm25"] >= bm25 - 0.015
    if name != "adi":
        assert found["linear"] >= max(bm25, sparse) - 0.005
