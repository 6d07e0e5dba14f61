"""Collections in BEIR's layout: `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv` in a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from termwise.client import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JUDGEMENT_COLUMNS = 3
"""Query, document and relevance, separated by tabs."""


@dataclass(frozen=True, slots=True)
class Collection:
    """A test collection.

    Attributes:
        name: The folder's name.
        documents: Texts by document id, in the file's order: title, a space, text.
        queries: Texts of the judged queries by id.
        judgements: Relevance by query id and document id, of the queries above.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    judgements: dict[str, dict[str, int]]


def read_collection(folder: Path) -> Collection:
    """Read a collection; queries without judgements are left out.

    Raises NotFoundError for a missing file, InvalidArgumentError for a line that cannot be read, naming file and line.
    """
    judgements = _judgements(folder / "qrels" / "test.tsv")
    queries = {key: _text(row, "text") for key, row in _rows(folder / "queries.jsonl") if key in judgements}
    documents = {
        key: f"{_text(row, 'title')} {_text(row, 'text')}".strip() for key, row in _rows(folder / "corpus.jsonl")
    }
    unknown = judgements.keys() - queries.keys()
    if unknown:
        raise InvalidArgumentError(f'{folder}: query "{min(unknown)}" is judged and is not in queries.jsonl')
    return Collection(folder.resolve().name, documents, queries, judgements)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give id and object of each line."""
    seen: set[str] = set()
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidArgumentError(f"{path}, line {number}: not JSON: {error}") from error
        key = row.get("_id") if isinstance(row, dict) else None
        if not isinstance(key, str) or not key:
            raise InvalidArgumentError(f'{path}, line {number}: expected an object with a string "_id"')
        if key in seen:
            raise InvalidArgumentError(f'{path}, line {number}: "{key}" stands there twice')
        seen.add(key)
        yield key, row


def _judgements(path: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        columns = line.split("\t")
        if number == 1 and columns[-1].strip() == "score":
            continue
        if len(columns) != JUDGEMENT_COLUMNS:
            raise InvalidArgumentError(f"{path}, line {number}: expected three columns, found {len(columns)}")
        query, document, score = columns
        try:
            found.setdefault(query, {})[document] = int(score)
        except ValueError as error:
            raise InvalidArgumentError(f'{path}, line {number}: "{score}" is no whole number') from error
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give numbered lines that are not blank. Only line feeds end a line: texts may hold other separators."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                stripped = line.rstrip("\r\n")
                if stripped.strip():
                    yield number, stripped
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist; a BEIR folder has it") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}: not UTF-8: {error}") from error


def _text(row: dict[str, Any], field: str) -> str:
    value = row.get(field, "")
    return value if isinstance(value, str) else ""
