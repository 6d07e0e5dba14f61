"""Compare encoders: ours, sentence-transformers' SparseEncoder, ONNX Runtime and OpenVINO; same weights, one thread.

Each does the whole job, texts in and sparse vectors out. All of them take turns in one process, so that whatever else
the machine does falls on all; a turn begins with a call that is not timed. A figure is the median of a cell's rounds,
with its quartiles, and `ratio` is how many times faster than sentence-transformers it is. Every engine's vectors are
compared with the reference's before it is timed: `cosine` is the smallest.

    make bench-encode ARGS="[--models default,minilm,bert-base] [--seconds N] [--quick] [--check] [--format json]"

One object a line: {"bench": "encode", "model", "cell", "engine", "precision", "threads", "p50_ms", "p25_ms", "p75_ms",
"ratio", "rounds", "random_weights", "cosine"}. `minilm` and `bert-base` are shapes with random weights. `--check` exits
with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import logging
import math
import os
import pydoc_data.topics
import re
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from default_model import fetch_default_model
from reporting.bars import ENCODER, MODELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from encode_peers import Peer

REFERENCE = "sentence-transformers"
# How many times faster than sentence-transformers our bfloat16 has to be, by cell and model.
BARS = {cell: dict(zip(MODELS, bars, strict=True)) for cell, bars in ENCODER.items()}
# Rounds of a cell: no fewer, and no more even where there is time.
LEAST_ROUNDS, MOST_ROUNDS = 3, 40
# Vectors that differ more than this from the reference's are not the same job; by precision.
LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.99, "int8": 0.9}
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
    parser.add_argument("--models", default=",".join(MODELS), help="of default, minilm, bert-base")
    parser.add_argument("--model", type=Path, help="folder of the default model; it is fetched otherwise")
    parser.add_argument("--seconds", type=float, default=25, help="time of a cell, beside the least number of rounds")
    parser.add_argument("--quick", action="store_true", help="the default model alone, five seconds a cell")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    warnings.simplefilter("ignore")
    names = ["default"] if arguments.quick else arguments.models.split(",")
    rows: list[dict[str, Any]] = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            for row in measure(name, arguments.model, Path(scratch), 5 if arguments.quick else arguments.seconds):
                rows.append(row)
                if arguments.format == "json":
                    print(json.dumps(row), flush=True)
    problems = check(rows)
    if arguments.format == "table":
        show(rows)
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems and arguments.check else 0)


def measure(name: str, model: Path | None, scratch: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Run every cell of a model; give a row an engine and precision."""
    import torch  # noqa: PLC0415 - after the environment is set

    from encode_peers import load_peers  # noqa: PLC0415 - imports torch

    torch.set_num_threads(1)
    quiet_libraries()
    base = model or fetch_default_model()
    folder = base if name == "default" else make_shape(name, base, scratch)
    engines = [*ours(folder), *load_peers(folder, scratch)]
    torch.set_num_threads(1)
    for cell in make_cells(base):
        candidates = {(each.engine, each.precision): each.query if cell.query else each.document for each in engines}
        cosines = compare(candidates, cell.texts[0])
        times = take_turns(candidates, cell.texts, seconds)
        reference = float(np.median(times[REFERENCE, "float32"]))
        for (engine, precision), taken in times.items():
            quartiles = np.quantile(taken, (0.25, 0.5, 0.75)) * 1e3
            yield {
                "bench": "encode",
                "model": name,
                "cell": cell.name,
                "engine": engine,
                "precision": precision,
                "threads": 1,
                "p50_ms": round(quartiles[1], 3),
                "p25_ms": round(quartiles[0], 3),
                "p75_ms": round(quartiles[2], 3),
                "ratio": round(reference * 1e3 / quartiles[1], 2),
                "rounds": len(taken) // len(cell.texts),
                "random_weights": name != "default",
                "cosine": round(cosines[engine, precision], 5),
            }


def ours(folder: Path) -> Iterator[Peer]:
    """Load our encoder in each precision that the processor and the model's check allow."""
    from encode_peers import Peer  # noqa: PLC0415 - imports torch
    from termwise.server.errors import FailedPreconditionError  # noqa: PLC0415
    from termwise.server.inference.base import ExpansionConfig, Side  # noqa: PLC0415
    from termwise.server.inference.computing import PRECISIONS  # noqa: PLC0415
    from termwise.server.inference.hardware import has_bfloat16  # noqa: PLC0415
    from termwise.server.inference.loader import load_encoder  # noqa: PLC0415

    for precision in ("bfloat16", "float32", "int8"):
        if precision not in PRECISIONS or (precision == "bfloat16" and not has_bfloat16()):
            continue
        try:
            encoder = load_encoder(folder, ExpansionConfig(), precision=precision)
        except FailedPreconditionError as error:
            print(f"{precision} is left out: {error}", file=sys.stderr)
            continue
        if encoder.precision == precision:
            yield Peer(
                "termwise", precision, partial(expand, encoder, Side.QUERY), partial(expand, encoder, Side.DOCUMENT)
            )


def expand(encoder: Any, side: Any, texts: list[str]) -> Any:
    """Do the whole job with ours: texts in, tokens and weights out."""
    return encoder.encode(encoder.tokenize(texts, side), side)


def take_turns(
    candidates: dict[Any, Callable[[list[str]], Any]], inputs: list[list[str]], seconds: float
) -> dict[Any, list[float]]:
    """Give each candidate's seconds a call; they take turns, and a turn is all of the inputs, one by one.

    A turn begins with a call that does not count, so that no engine pays for what the others did to caches and memory.
    In a virtual machine whose host takes free pages away, sentence-transformers, which allocates anew for each call,
    took three times as long without it; with it, it takes as long as alone.
    """
    times: dict[Any, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        for texts in inputs[1:]:
            run(texts)
    gc.collect()
    gc.disable()
    until = time.perf_counter() + seconds
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() > until:
            break
        for name, run in candidates.items():
            run(inputs[0])
            for texts in inputs:
                start = time.perf_counter()
                run(texts)
                times[name].append(time.perf_counter() - start)
    gc.enable()
    return times


def compare(candidates: dict[Any, Callable[[list[str]], Any]], texts: list[str]) -> dict[Any, float]:
    """Give each candidate's smallest cosine with the reference. Says so where one does another job."""
    answers = {name: vectors(run(texts)) for name, run in candidates.items()}
    expected = answers[REFERENCE, "float32"]
    found = {}
    for name, given in answers.items():
        found[name] = min(cosine(a, b) for a, b in zip(given, expected, strict=True))
        if found[name] < LEAST_COSINE[name[1]]:
            print(f"{name[0]} {name[1]} answers otherwise: cosine {found[name]:.4f}", file=sys.stderr)
    return found


def vectors(answer: Any) -> list[dict[int, float]]:
    """Give an engine's vectors as weights by token number: ours, a runtime's pairs, or the reference's tensor."""
    if not isinstance(answer, list):
        dense = answer.to_dense().numpy()
        pairs = [(found := np.flatnonzero(row), row[found]) for row in dense]
    else:
        pairs = [each if isinstance(each, tuple) else (each.token_ids, each.weights) for each in answer]
    return [dict(zip(ids.tolist(), weights.tolist(), strict=True)) for ids, weights in pairs]


def cosine(left: dict[int, float], right: dict[int, float]) -> float:
    """Compare two vectors."""
    product = sum(weight * right.get(token, 0.0) for token, weight in left.items())
    lengths = [math.sqrt(sum(weight**2 for weight in each.values())) for each in (left, right)]
    return product / max(lengths[0] * lengths[1], 1e-30)


def make_shape(name: str, base: Path, scratch: Path) -> Path:
    """Make a model of a shape with random weights, with the words of the default model."""
    from termwise.cli.stand_in import SHAPES, make_stand_in  # noqa: PLC0415

    words = json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]
    return make_stand_in(scratch / "model", SHAPES[name], sorted(words, key=words.get))


def make_cells(base: Path) -> list[Cell]:
    """Cut Python's own manual into passages of 60 to 150 tokens and one document of 512 or more."""
    from encode_peers import load_tokenizer  # noqa: PLC0415 - imports torch

    tokenizer = load_tokenizer(base)

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    prose = [re.sub(r"\s+", " ", text) for text in pydoc_data.topics.topics.values()]
    prose += [re.sub(r"\s+", " ", inspect.getdoc(each) or "") for each in (argparse, logging, subprocess, tempfile)]
    sentences = [each for text in prose for each in re.split(r"(?<=[.!?]) ", text) if len(each) > 40]
    passages: list[str] = []
    while len(passages) < 32:
        wanted = 60 + 90 * len(passages) // 32
        passage = ""
        while count(passage) < wanted:
            passage = f"{passage} {sentences.pop(0)}".strip()
        if count(passage) <= 150:
            passages.append(passage)
    document = ""
    while count(document) < 512:
        document = f"{document} {sentences.pop(0)}".strip()
    return [
        Cell("query-b1", [[query] for query in QUERIES], query=True),
        Cell("passages-b32", [passages], query=False),
        Cell("doc512-b1", [[document]], query=False),
    ]


def check(rows: list[dict[str, Any]]) -> list[str]:
    """Give the bars that are missed, as sentences; none where there is no bfloat16."""
    found = {(row["model"], row["cell"], row["engine"], row["precision"]): row for row in rows}
    problems = []
    for (model, cell, engine, precision), row in found.items():
        if engine != "termwise" or precision != "bfloat16":
            continue
        if row["ratio"] < BARS[cell][model]:
            problems.append(
                f"{model}, {cell}: {row['ratio']} times sentence-transformers; the bar is {BARS[cell][model]}"
            )
        rival = found.get((model, cell, "openvino", "bfloat16"))
        if model == "default" and rival and rival["p50_ms"] < row["p50_ms"]:
            problems.append(f"{model}, {cell}: {row['p50_ms']} ms, behind OpenVINO's {rival['p50_ms']} ms")
    return problems


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(title="Text to sparse vector, one thread each: medians and quartiles, runs interleaved")
    for column in ("model", "cell", "engine", "precision", "ms", "quartiles", "times faster", "bar"):
        table.add_column(column, justify="left" if column in {"model", "cell", "engine", "precision"} else "right")
    for row in rows:
        barred = row["engine"] == "termwise" and row["precision"] == "bfloat16"
        bar = BARS[row["cell"]][row["model"]] if barred else None
        style = "default" if bar is None else "green" if row["ratio"] >= bar else "red"
        table.add_row(
            row["model"],
            row["cell"],
            row["engine"],
            row["precision"],
            f"{row['p50_ms']:.2f}",
            f"{row['p25_ms']:.2f} to {row['p75_ms']:.2f}",
            f"[{style}]{row['ratio']:.1f}[/]",
            "" if bar is None else str(bar),
        )
    Console(width=140).print(table)


def quiet_libraries() -> None:
    """Keep notes of libraries out of what is printed."""
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("onnxscript", "onnx_ir", "torch.onnx", "openvino"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger().setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
