"""Which benchmarks make up the page, and how each is run."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TERMWISE_BENCH_DATA", BENCH.parents[2] / "shared" / "data"))
COLLECTIONS = ("adi", "cacm", "cranfield", "med")
"""Public collections of `termwise eval`, where they are at hand."""


@dataclass(frozen=True)
class Part:
    """A section of the page: commands whose JSON lines are its rows, and the seconds that they may take in all."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    seconds: float
    shown: tuple[str, ...]
    tells_bars: bool = False
    """Whether an exit status of 1 may say no more than that a bar was missed."""


def plan(*, quick: bool) -> list[Part]:
    """Give all sections in the page's order."""
    sizes = (10_000,) if quick else (10_000, 100_000, 1_000_000)
    found = [
        _script("encode", 900, "encode", "--seconds", "4", quick=quick),
        _script("drift", 240, "drift", quick=quick),
    ]
    for size, seconds, build in zip(sizes, (180, 540, 720), ("60", "150", "240"), strict=False):
        arguments = ("--documents", str(size), "--build-seconds", build)
        found.append(_script(f"search-{size}", seconds, "search", *arguments, quick=quick))
    found += [
        _script("storage", 480, "storage", "--documents", "10000", "100000", "1000000", quick=quick),
        replace(_script("ingest", 300, "ingest", quick=quick), tells_bars=True),
        replace(_script("overhead", 270, "overhead", quick=quick), tells_bars=True),
        replace(_script("start", 150, "start", quick=quick), tells_bars=True),
        _quality(quick=quick),
        _hardware(quick=quick),
    ]
    return found


def _script(section: str, seconds: float, bench: str, *arguments: str, quick: bool) -> Part:
    more = ("--quick",) if quick else arguments
    tail = (*more, "--format", "json")
    shown = f'make bench-{bench} ARGS="{" ".join(tail)}"'
    return Part(section, ((str(BENCH / f"bench_{bench}.py"), *tail),), seconds, (shown,))


def _quality(*, quick: bool) -> Part:
    names = [name for name in COLLECTIONS[: 1 if quick else None] if (DATA / name / "corpus.jsonl").exists()]
    folders = [str(DATA / name) for name in names]
    command = ("-m", "termwise.cli", "eval", *folders, "--format", "json")
    commands = (command,) if folders else ()
    return Part("quality", commands, 210, (f"termwise eval {' '.join(names)} --markdown",))


def _hardware(*, quick: bool) -> Part:
    seconds = "0.5" if quick else "5"
    models = (".splade_tiny",) if quick else (".splade_tiny", "bert-base")
    words = [("bench", "hardware", model, "--seconds", seconds) for model in models]
    commands = tuple(("-m", "termwise.cli", *each, "--format", "json") for each in words)
    return Part("hardware", commands, 210, tuple(f"termwise {' '.join(each)}" for each in words))
