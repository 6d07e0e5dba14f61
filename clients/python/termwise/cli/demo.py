"""`termwise demo`: the whole path on this machine, from nothing to answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from termwise.cli.connect import connected
from termwise.cli.indices import bulk_with_bar
from termwise.cli.local_server import local_server
from termwise.cli.output import stdout
from termwise.cli.stdlib_docs import Entry, entries
from termwise.cli.workspace import TEXT_FIELD, VECTOR_FIELD, Workspace, workspace
from termwise.client import Client, Document, FailedPreconditionError, SearchResult

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAST_DOCUMENTS = 4_000
"""Fewer documented things than this are no standard library."""
SHOWN_HITS = 3
SHOWN_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the names of entries that answer it (`*` for any characters)."""

    text: str
    expected: tuple[str, ...]

    def is_answered_by(self, name: str) -> bool:
        """Whether an entry answers it."""
        return any(fnmatchcase(name, pattern) for pattern in self.expected)


QUESTIONS = (
    Question(
        "squeeze a file so it takes less room",
        ("gzip", "gzip.compress", "bz2", "bz2.compress", "lzma", "lzma.compress", "zlib", "zlib.compress"),
    ),
    Question("wait a moment before going on", ("time.sleep", "asyncio.tasks.sleep")),
    Question("pick a winner by chance", ("random.Random.choice", "random.Random.choices", "random.Random.sample")),
    Question("throw a folder away with everything in it", ("shutil.rmtree",)),
    Question("how alike are two pieces of writing", ("difflib", "difflib.SequenceMatcher*", "difflib.Differ*")),
    Question(
        "remember answers instead of working them out again",
        ("functools.lru_cache", "functools.cache", "functools.cached_property"),
    ),
    Question("ask somebody at the keyboard for a secret", ("getpass", "getpass.*")),
    Question("typical value of a bunch of figures", ("statistics", "statistics.*mean", "statistics.median*")),
)
"""Written down, answers included, before anything was indexed for the first time; not changed since."""


def demo() -> None:
    """Index the documentation of Python's standard library and ask it eight questions, on a server of its own."""
    console = stdout()
    console.print("Starting a server on a free loopback port, with its data in a temporary folder ...")
    with local_server() as address, connected(address) as client:
        console.print(f"It listens on {address}. Next: the model, two deployments, a pipeline and an index.")
        with workspace(client, "stdlib", {"name": {"keyword": {}}, "kind": {"keyword": {}}}) as place:
            count = index_library(client, place)
            found = [_ask(client, place, question) for question in QUESTIONS]
    lexical, semantic, fused = (sum(column) for column in zip(*found, strict=True))
    console.print(
        f"Expected entries among the first {SHOWN_HITS}: lexical {lexical}, semantic {semantic}, fused {fused} "
        f"of {len(QUESTIONS)} questions."
    )
    console.print(f"demo: {count} documents indexed, {len(QUESTIONS)} questions answered")


def index_library(client: Client, place: Workspace) -> int:
    """Index the library's documentation and give the number of documents. Raises FailedPreconditionError."""
    library = list(entries())
    if len(library) < LEAST_DOCUMENTS:
        raise FailedPreconditionError(
            f"only {len(library)} documented things were found; is the standard library's source installed?"
        )
    started = time.perf_counter()
    report = bulk_with_bar(client, place.index, _documents(library), len(library))
    elapsed = time.perf_counter() - started
    if report.failures:
        first = report.failures[0]
        raise FailedPreconditionError(
            f'{len(report.failures)} documents failed; the first, "{first.id}": {first.error.message}'
        )
    count = client.indices.stats(place.index).document_count
    stdout().print(f"{count:,} documents in {elapsed:.1f} s: {count / elapsed:,.0f} documents per second.\n")
    return count


def _documents(library: list[Entry]) -> Iterator[Document]:
    for entry in library:
        yield Document({"name": entry.name, "kind": entry.kind, TEXT_FIELD: entry.text}, entry.id)


def _ask(client: Client, place: Workspace, question: Question) -> tuple[bool, bool, bool]:
    """Print a question's answers side by side, and say for each column whether an expected entry is among them."""
    answers = (
        client.search(place.index, query={"match": {"field": TEXT_FIELD, "text": question.text}}, size=SHOWN_HITS),
        client.search(
            place.index, query={"text_expansion": {"field": VECTOR_FIELD, "text": question.text}}, size=SHOWN_HITS
        ),
        client.search(place.index, question.text, fields=[TEXT_FIELD, VECTOR_FIELD], size=SHOWN_HITS),
    )
    table = Table(title=question.text, title_justify="left", title_style="bold", show_lines=False)
    for heading in ("lexical", "semantic", "fused"):
        table.add_column(heading, width=36, no_wrap=True)
    for rank in range(SHOWN_HITS):
        table.add_row(*(_cell(question, answer, rank) for answer in answers))
    hit = tuple(any(question.is_answered_by(_name(each.id)) for each in answer) for answer in answers)
    table.add_section()
    table.add_row(*(Text("found" if yes else "miss", style="green" if yes else "red") for yes in hit))
    console = stdout()
    console.print(table)
    vector = client.expand(place.search_deployment, question.text).top(SHOWN_TOKENS)
    pairs = zip(vector.tokens, vector.weights, strict=True)
    console.print(Text("  ".join(f"{token} {weight:.2f}" for token, weight in pairs), style="dim"))
    console.print(Text(f"expected: {', '.join(question.expected)}\n", style="dim"))
    lexical, semantic, fused = hit
    return lexical, semantic, fused


def _cell(question: Question, answer: SearchResult, rank: int) -> Text:
    if rank >= len(answer):
        return Text("-")
    name = _name(answer.hits[rank].id)
    return Text(f"✓ {name}", style="green") if question.is_answered_by(name) else Text(f"  {name}")


def _name(identifier: str) -> str:
    return identifier.rpartition("#")[0]
