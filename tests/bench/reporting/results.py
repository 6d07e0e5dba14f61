"""The rows that measurements left, in one file of JSON lines.

A section is what one run of a benchmark gave: a line {"section", "run"} (when, on what, by which version, whether it
failed) and a line {"section", "row"} for each row of the benchmark. A new run of a section replaces the old one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Row = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """One run of a benchmark and its rows."""

    name: str
    run: Row
    rows: list[Row] = field(default_factory=list)

    @property
    def failure(self) -> str:
        """Why the run failed; empty where it did not."""
        return str(self.run.get("failure") or "")


class Results:
    """Sections by name."""

    def __init__(self, sections: Iterable[Section] = ()) -> None:
        self.sections = {section.name: section for section in sections}

    def rows(self, *names: str) -> list[Row]:
        """Give the rows of sections, in order; of all where none is named."""
        return [row for name in names or self.sections for row in self.sections.get(name, Section(name, {})).rows]

    def run(self, name: str) -> Row | None:
        """Give a section's run; None where it was never measured."""
        section = self.sections.get(name)
        return section.run if section else None

    def replaced(self, section: Section) -> Results:
        """Give results with a section put in the place of the one of its name."""
        return Results((self.sections | {section.name: section}).values())


def load(file: Path) -> Results:
    """Read a file; one that is not there holds nothing."""
    if not file.exists():
        return Results()
    found: dict[str, Section] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        kept = json.loads(line)
        if "run" in kept:
            found[kept["section"]] = Section(kept["section"], kept["run"])
        else:
            found[kept["section"]].rows.append(kept["row"])
    return Results(found.values())


def save(results: Results, file: Path) -> None:
    """Write a file, whole or not at all."""
    lines = []
    for name, section in results.sections.items():
        lines += [{"section": name, "run": section.run}, *({"section": name, "row": row} for row in section.rows)]
    made = file.with_suffix(".part")
    made.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")
    made.replace(file)
