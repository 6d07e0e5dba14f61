"""Compare the packed encoder with sentence-transformers' SparseEncoder: same weights, same texts, one thread each.

Each measures the whole job, texts in and sparse vectors out: ours gives tokens and weights, the peer its default sparse
tensor. The two take turns in one process, so that whatever else the machine does falls on both. A cell's figure is the
median of its rounds.

    python tests/bench/bench_encode.py [--model DIR] [--rounds N] [--format table|json]
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import logging
import os
import pydoc_data.topics
import re
import statistics
import subprocess
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from default_model import fetch_default_model

if TYPE_CHECKING:
    from collections.abc import Callable

# How many times faster ours has to be.
BARS = {
    "bfloat16": {"query-b1": 3, "passages-b32": 7, "doc512-b1": 5},
    "float32": {"query-b1": 2, "passages-b32": 3, "doc512-b1": 3},
}
QUERIES = (
    "squeeze a file so it takes less room",
    "is pluto a planet?",
    "run a function after some delay",
    "compare two texts line by line",
    "how do I stop a loop early?",
    "turn a string of digits into a number",
    "ask an operating system for the current directory",
    "random choice with weights",
)


@dataclass(frozen=True)
class Cell:
    """A kind of work: texts, and the side that reads them."""

    name: str
    texts: list[list[str]]
    query: bool


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of the model; the default model is fetched otherwise")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each cell; queries have three times as many")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    warnings.simplefilter("ignore")
    results = measure(arguments.model or fetch_default_model(), arguments.rounds)
    if arguments.format == "json":
        for result in results:
            print(json.dumps(result), flush=True)
    else:
        show(results)


def measure(model: Path, rounds: int) -> list[dict[str, Any]]:
    """Run every cell in every precision that the processor has."""
    import torch  # noqa: PLC0415 - after the environment is set

    from termwise.server.inference.base import ExpansionConfig, Side  # noqa: PLC0415
    from termwise.server.inference.hardware import has_bfloat16  # noqa: PLC0415
    from termwise.server.inference.loader import load_encoder  # noqa: PLC0415

    torch.set_num_threads(1)
    peer = load_peer(model)
    precisions = ["bfloat16", "float32"] if has_bfloat16() else ["float32"]
    encoders = {precision: load_encoder(model, ExpansionConfig(), precision=precision) for precision in precisions}
    torch.set_num_threads(1)
    results = []
    for cell in make_cells(encoders["float32"]):
        side = Side.QUERY if cell.query else Side.DOCUMENT
        candidates: dict[str, Callable[[list[str]], Any]] = {
            "peer": peer.encode_query if cell.query else peer.encode_document
        }
        for precision, encoder in encoders.items():
            candidates[precision] = partial(expand, encoder, side)
        times = take_turns(candidates, cell.texts, rounds * 3 if cell.query else rounds)
        results += [
            {
                "cell": cell.name,
                "ours_ms": round(times[precision] * 1e3, 3),
                "peer_ms": round(times["peer"] * 1e3, 3),
                "ratio": round(times["peer"] / times[precision], 2),
                "precision": precision,
            }
            for precision in precisions
        ]
    return results


def expand(encoder: Any, side: Any, texts: list[str]) -> Any:
    """Do the whole job with ours: texts in, tokens and weights out."""
    return encoder.encode(encoder.tokenize(texts, side), side)


def take_turns(
    candidates: dict[str, Callable[[list[str]], Any]], inputs: list[list[str]], rounds: int
) -> dict[str, float]:
    """Give each candidate's median seconds a call; they take turns, and a turn is all of the inputs, one by one."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run(inputs[0])
        run(inputs[-1])
    gc.collect()
    for _ in range(rounds):
        for name, run in candidates.items():
            for texts in inputs:
                start = time.perf_counter()
                run(texts)
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def make_cells(encoder: Any) -> list[Cell]:
    """Cut Python's own manual into passages of 60 to 150 tokens and one document of 512 or more."""
    from termwise.server.inference.base import Side  # noqa: PLC0415

    prose = [re.sub(r"\s+", " ", text) for text in pydoc_data.topics.topics.values()]
    prose += [re.sub(r"\s+", " ", inspect.getdoc(each) or "") for each in (argparse, logging, subprocess, tempfile)]
    sentences = [each for text in prose for each in re.split(r"(?<=[.!?]) ", text) if len(each) > 40]
    passages: list[str] = []
    while len(passages) < 32:
        wanted = 60 + 90 * len(passages) // 32
        passage = ""
        while count(encoder, passage) < wanted:
            passage = f"{passage} {sentences.pop(0)}".strip()
        if count(encoder, passage) <= 150:
            passages.append(passage)
    document = ""
    while count(encoder, document) < 512:
        document = f"{document} {sentences.pop(0)}".strip()
    assert encoder.tokenize([document], Side.DOCUMENT)[0].truncated or count(encoder, document) == 512
    return [
        Cell("query-b1", [[query] for query in QUERIES], query=True),
        Cell("passages-b32", [passages], query=False),
        Cell("doc512-b1", [[document]], query=False),
    ]


def count(encoder: Any, text: str) -> int:
    """Count a text's tokens."""
    from termwise.server.inference.base import Side  # noqa: PLC0415

    return len(encoder.tokenize([text], Side.DOCUMENT)[0].ids)


def load_peer(model: Path) -> Any:
    """Load sentence-transformers' encoder, as its manual says for SPLADE."""
    from sentence_transformers import SparseEncoder  # noqa: PLC0415
    from sentence_transformers.sparse_encoder import modules  # noqa: PLC0415

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    body = modules.MLMTransformer(str(model))
    return SparseEncoder(modules=[body, modules.SpladePooling(pooling_strategy="max")], device="cpu")


def show(results: list[dict[str, Any]]) -> None:
    """Print a table."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(title="Text to sparse vector, one thread each: medians, runs interleaved")
    for column in ("cell", "precision", "ours ms", "sentence-transformers ms", "times faster", "bar"):
        table.add_column(column, justify="left" if column in {"cell", "precision"} else "right")
    for row in results:
        bar = BARS[row["precision"]][row["cell"]]
        style = "green" if row["ratio"] >= bar else "red"
        table.add_row(
            row["cell"],
            row["precision"],
            f"{row['ours_ms']:.2f}",
            f"{row['peer_ms']:.2f}",
            f"[{style}]{row['ratio']:.1f}[/]",
            str(bar),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
