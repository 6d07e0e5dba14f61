"""Measures everything that docs/performance.md shows, and writes that page.

`make bench` (ARGS="[--only encode,search] [--quick] [--minutes N]"), `make bench-report` (writes the pages from the
rows that are kept, measuring nothing).

Each benchmark runs as a process of its own; its JSON lines go to docs/performance/results.jsonl as they come, so that
a run that is cut off can be taken up again by naming what is missing: `--only storage,ingest`. A benchmark that fails
or is stopped at its limit keeps the rows that it gave and is told on the page; the exit status is then 1. Where no time
is left for a section, its former rows stay. `--quick` is small and goes to build/bench.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

from reporting import machine, results
from reporting.plan import BENCH, Part, plan

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = BENCH.parents[1]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="sections, or beginnings of their names, separated by commas")
    parser.add_argument("--quick", action="store_true", help="small: a trial of the benchmarks, not of the machine")
    parser.add_argument(
        "--minutes", type=float, default=75, help="most minutes in all; what is left over is not measured"
    )
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, help="folder of the pages; docs, or build/bench with --quick")
    arguments = parser.parse_args()
    pages = arguments.out or (ROOT / "build" / "bench" if arguments.quick else ROOT / "docs")
    file = pages / "performance" / "results.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    failed = []
    # Asked to end, it ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    if not arguments.render:
        until = time.monotonic() + arguments.minutes * 60
        for part in chosen(plan(quick=arguments.quick), arguments.only):
            former = results.load(file)
            seconds = min(part.seconds, until - time.monotonic())
            if seconds <= 0:
                print(f"{part.name}: no time is left", file=sys.stderr, flush=True)
                failed.append(part.name)
                continue
            section = measure(
                part,
                seconds,
                quick=arguments.quick,
                keep=lambda so_far, former=former: results.save(former.replaced(so_far), file),
            )
            results.save(former.replaced(section), file)
            if section.failure:
                failed.append(part.name)
    render(file, pages)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def chosen(parts: list[Part], only: str) -> list[Part]:
    """Give the parts that are named, or whose names begin so. Exits where a name fits none."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    whole = {part.name for part in parts}
    for name in names:
        if not any(part.name.startswith(name) for part in parts):
            sys.exit(f"there is no section {name}; there are {', '.join(part.name for part in parts)}")
    return [
        part
        for part in parts
        if not names or part.name in names or any(part.name.startswith(name) for name in names if name not in whole)
    ]


def measure(
    part: Part, seconds: float, *, quick: bool, keep: Callable[[results.Section], None] = lambda _: None
) -> results.Section:
    """Run a part's commands for at most `seconds` in all; give its rows, and why it failed where it did.

    What there is so far goes to `keep` with each row, as of a run that was cut off.
    """
    began = time.monotonic()
    run: dict[str, Any] = {
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "termwise": machine.own_version(),
        "commands": list(part.shown),
        "quick": quick,
        "machine": machine.describe(),
        "versions": machine.versions(),
    }
    rows: list[dict[str, Any]] = []
    failure = "" if part.commands else "what it measures with is not at hand"

    def section(problem: str | None) -> results.Section:
        return results.Section(part.name, run | {"seconds": round(time.monotonic() - began), "failure": problem}, rows)

    def take(row: dict[str, Any]) -> None:
        rows.append(row)
        keep(section("cut off before its end"))

    for command in part.commands:
        left = seconds - (time.monotonic() - began)
        print(f"{part.name}: {' '.join(Path(word).name for word in command)}", file=sys.stderr, flush=True)
        problem = execute(command, left, take)
        only_bars = (
            part.tells_bars and problem.startswith("exit status 1:") and any(row.get("ok") is False for row in rows)
        )
        failure = failure or ("" if only_bars else problem)
    took = time.monotonic() - began
    print(
        f"{part.name}: {len(rows)} rows in {took:.0f} s{f'; {failure}' if failure else ''}", file=sys.stderr, flush=True
    )
    return section(failure or None)


def execute(command: tuple[str, ...], seconds: float, take: Callable[[dict[str, Any]], None]) -> str:
    """Run a benchmark; hand on each JSON object as it is printed, and give a line about its failure, empty where none.

    What it writes to stderr is passed on.
    """
    if seconds <= 0:
        return "no time was left"
    if command[0] != "-m" and not Path(command[0]).exists():
        return f"{Path(command[0]).name} does not exist"
    paths = [str(ROOT / "tests" / "fixtures"), str(BENCH), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        # What a benchmark that is killed leaves behind goes with it.
        tempfile.TemporaryDirectory(prefix="termwise-bench-", ignore_cleanup_errors=True) as scratch,
    ):
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": scratch, "PYTHONUNBUFFERED": "1"},
            # A group of its own: servers that the benchmark started end with it.
            start_new_session=True,
        )
        stopped: list[bool] = []

        def stop() -> None:
            stopped.append(True)
            end(process)

        limit = Timer(seconds, stop)
        limit.start()
        try:
            for line in process.stdout or ():
                row = read_row(line)
                if row is not None:
                    take(row)
            process.wait()
        except BaseException:
            end(process)
            raise
        finally:
            limit.cancel()
            limit.join()
            # Whatever it left running would disturb what comes next.
            _signal(process, signal.SIGKILL)
        errors.seek(0)
        said = errors.read()
    sys.stderr.write(said)
    if stopped:
        return f"stopped after {seconds:.0f} s"
    return "" if process.returncode == 0 else f"exit status {process.returncode}: {last_line(said)}"


def end(process: subprocess.Popen[str]) -> None:
    """End a benchmark and what it started."""
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def read_row(line: str) -> dict[str, Any] | None:
    """Read a line that is a JSON object; None for any other."""
    if not line.startswith("{"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def last_line(text: str) -> str:
    """Give the last line that says something, without folders: they belong to one machine."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"(?:/[^/\s:'\"]+)+/", "", lines[-1])[:200] if lines else "it said nothing"


def render(file: Path, pages: Path) -> None:
    """Write the pages and plots of the rows that are kept."""
    from reporting import figures, page, scaling  # noqa: PLC0415 - a failing import must not cost a measurement

    found = results.load(file)
    (pages / "performance.md").write_text(page.render(found), encoding="utf-8")
    figures.draw(found, file.parent)
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    (pages / "scaling.md").write_text(scaling.fill(text, found), encoding="utf-8")
    print(f"{pages.name}/performance.md and {pages.name}/scaling.md are written", file=sys.stderr)


if __name__ == "__main__":
    main()
