from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.cli.beir import read_collection
from termwise.cli.evaluate import _measures
from termwise.client import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

# Ids stand in a table whose columns are separated by tabs.
IDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Z"]), min_size=1, max_size=6)
TEXTS = st.text(max_size=20)


def _write(folder: Path, corpus: list[Any], queries: list[Any], judgements: list[tuple[str, str, int]]) -> None:
    (folder / "qrels").mkdir(exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="")
    table = "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{s}\n" for q, d, s in judgements)
    (folder / "qrels" / "test.tsv").write_text(table, encoding="utf-8", newline="")


@given(
    documents=st.dictionaries(IDS, st.tuples(TEXTS, TEXTS), max_size=6),
    queries=st.dictionaries(IDS, TEXTS, min_size=1, max_size=6),
    scores=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    data=st.data(),
)
def test_a_collection_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    documents: dict[str, tuple[str, str]],
    queries: dict[str, str],
    scores: list[int],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("collection")
    pairs = st.tuples(st.sampled_from(sorted(queries)), IDS)
    judged = {pair: score for score in scores for pair in [data.draw(pairs)]}
    _write(
        folder,
        [{"_id": key, "title": title, "text": text, "metadata": {}} for key, (title, text) in documents.items()],
        [{"_id": key, "text": text} for key, text in queries.items()],
        [(query, document, score) for (query, document), score in judged.items()],
    )

    found = read_collection(folder)

    assert found.name == folder.name
    assert found.documents == {key: f"{title} {text}".strip() for key, (title, text) in documents.items()}
    assert list(found.documents) == list(documents), "in the file's order"
    assert {(q, d): s for q, row in found.judgements.items() for d, s in row.items()} == judged
    assert found.queries == {key: text for key, text in queries.items() if key in found.judgements}


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("corpus.jsonl", '{"_id": "1"}\n{"_id": \n', "line 2: not JSON"),
        ("corpus.jsonl", '{"_id": 1}\n', 'line 1: expected an object with a string "_id"'),
        ("corpus.jsonl", '{"_id": "1"}\n\n{"_id": "1"}\n', 'line 3: "1" stands there twice'),
        ("queries.jsonl", "[1]\n", "line 1: expected an object"),
        ("queries.jsonl", '{"_id": "other", "text": "x"}\n', 'query "q" is judged and is not in queries.jsonl'),
        ("qrels/test.tsv", "q\td\n", "line 1: expected three columns, found 2"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq\td\thigh\n", 'line 2: "high" is no whole number'),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, file: str, text: str, says: str) -> None:
    _write(tmp_path, [{"_id": "d", "text": "x"}], [{"_id": "q", "text": "x"}], [("q", "d", 1)])
    (tmp_path / file).write_text(text)

    with pytest.raises(InvalidArgumentError, match=says.replace("(", r"\(")):
        read_collection(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"qrels.test\.tsv does not exist"):
        read_collection(tmp_path)


def test_a_table_without_a_header_is_read_from_its_first_line(tmp_path: Path) -> None:
    _write(tmp_path, [{"_id": "d"}], [{"_id": "q", "text": "x"}], [])
    (tmp_path / "qrels" / "test.tsv").write_text("q\td\t2\r\n")

    assert read_collection(tmp_path).judgements == {"q": {"d": 2}}


def test_measures_follow_their_definitions_and_the_order_of_the_answer(tmp_path: Path) -> None:
    judgements = [("a", "x", 1), ("a", "y", 1), ("b", "x", 1), ("c", "x", 1), ("c", "z", 0)]
    _write(tmp_path, [], [{"_id": each, "text": each} for each in "abc"], judgements)
    collection = read_collection(tmp_path)

    # a: x first, y third; b: nothing; c: second, behind a document judged irrelevant.
    found = _measures()(collection, {"a": ["x", "n", "y"], "b": [], "c": ["z", "x"]})

    ideal = 1 + 1 / 1.5849625
    assert found["ndcg@10"] == pytest.approx(((1 + 0.5) / ideal + 0 + 1 / 1.5849625) / 3, abs=1e-6)
    assert found["recall@100"] == pytest.approx((1 + 0 + 1) / 3, abs=1e-6)
    assert found["mrr@10"] == pytest.approx((1 + 0 + 0.5) / 3, abs=1e-6)
