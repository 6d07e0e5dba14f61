"""`termwise bench hardware` and `termwise eval` with a plot, against a real server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from small_model import make_small_model
from termwise.cli.commands import app
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def termwise(server: Any) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, "--address", server.address], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        return str(done.stdout)

    return run


def test_hardware_gives_a_row_a_combination_and_leaves_nothing_behind(
    server: Any, termwise: Callable[..., str], tmp_path: Path
) -> None:
    folder = make_small_model(tmp_path / "mine")
    more = ["--combination", "1x1", "--combination", "2 x 1", "--seconds", "0.1", "--precision", "float32"]

    rows = [
        json.loads(line) for line in termwise("bench", "hardware", str(folder), *more, "--format", "json").splitlines()
    ]

    assert [(row["allocations"], row["threads"]) for row in rows] == [(1, 1), (2, 1)]
    for row in rows:
        assert (row["model"], row["precision"], row["random_weights"]) == ("mine", "float32", False)
        assert row["call_tokens"] == 32, "what the model reads at most"
        assert row["documents_per_s"] > 0
        for name in ("call", "short_query", "long_query"):
            assert 0 < row[f"{name}_p25_ms"] <= row[f"{name}_p50_ms"] <= row[f"{name}_p75_ms"]
            assert row[f"{name}_calls"] >= 5
    models = server.models.ListTrainedModels(pb.ListTrainedModelsRequest()).trained_models
    assert [model.model_id for model in models] == [".splade_tiny"]
    deployments = server.models.ListDeployments(pb.ListDeploymentsRequest()).deployments
    assert {each.deployment_id for each in deployments} == {"for_search", "for_ingest"}


@pytest.mark.slow
def test_hardware_prints_a_table_and_markdown(termwise: Callable[..., str]) -> None:
    arguments = ("bench", "hardware", ".splade_tiny", "--combination", "1x1", "--seconds", "0.1")

    title, headings, row = termwise(*arguments).splitlines()
    assert title.startswith(".splade_tiny, ")
    assert "DOCUMENTS/S" in headings
    assert row.split()[:3] == ["1", "x", "1"]
    lines = termwise(*arguments, "--markdown").splitlines()
    assert len(lines) == 3
    assert {line.count("|") for line in lines} == {6}


def test_eval_gives_one_table_of_several_collections_and_a_plot(termwise: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("fish", "space"):
        (tmp_path / name / "qrels").mkdir(parents=True)
        corpus = [{"_id": "1", "text": "Salmon are raised in sea cages."}, {"_id": "2", "text": "Pluto was a planet."}]
        (tmp_path / name / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
        (tmp_path / name / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "salmon cages"}))
        (tmp_path / name / "qrels" / "test.tsv").write_text("q\t1\t1\n")
    plot = tmp_path / "quality.svg"

    lines = termwise(
        "eval", str(tmp_path / "fish"), str(tmp_path / "space"), "--markdown", "--plot", str(plot)
    ).splitlines()

    assert lines[0] == "| NDCG@10 | bm25 | sparse | rrf | linear |"
    assert [line.split(" ")[1] for line in lines[2:]] == ["fish", "space", "mean"]
    assert lines[2].endswith("| **1.000** | **1.000** | **1.000** | **1.000** |")
    assert ">space<" in plot.read_text()
