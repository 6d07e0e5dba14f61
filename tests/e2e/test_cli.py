"""The command against a real server, and the servers that it starts itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from typer.testing import CliRunner

from elser_package import tiny_package
from termwise.cli.commands import app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BULK = [
    {"_id": "zip", "text": "Compress a file with gzip so that it takes less space on disk.", "year": 2001},
    {"_id": "fish", "text": "Salmon are raised in floating net pens off the coast of Norway.", "year": 2002},
    {"_id": "planets", "text": "Pluto is a dwarf planet in the Kuiper belt.", "year": 2003},
]
MAPPING = {
    "properties": {
        "text": {"text": {"analyzer": "english"}},
        "year": {"integer": {}},
        "text_expansion": {"sparse_vector": {"search_deployment_id": "for_search"}},
    }
}


@pytest.fixture(scope="module")
def termwise(server: Any) -> Callable[..., Any]:
    """Run the command with `--format json`: gives exit status, JSON objects, and standard error."""

    def run(*arguments: str, status: int = 0) -> list[dict[str, Any]]:
        environment = {"TERMWISE_ADDRESS": server.address, "COLUMNS": "200"}
        done = CliRunner().invoke(app, [*arguments, "--format", "json"], env=environment)
        assert done.exit_code == status, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.fixture(scope="module")
def filled(termwise: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("bulk") / "documents.jsonl"
    file.write_text("\n".join(map(json.dumps, BULK)))
    termwise(
        "indices", "create", "cli", "--mapping", json.dumps(MAPPING), "--settings", '{"default_pipeline": "expand"}'
    )
    (report,) = termwise("indices", "bulk", "cli", str(file))
    assert (report["created"], report["failed"]) == (3, 0)
    return termwise


def test_models_and_deployments(termwise: Any) -> None:
    (model,) = termwise("models", "list")
    assert (model["model_id"], model["state"]) == (".splade_tiny", "STATE_READY")
    assert termwise("models", "get", ".splade_tiny") == [model]
    assert termwise("models", "download", ".splade_tiny") == [model]

    (started,) = termwise("deployments", "start", ".splade_tiny", "--deployment-id", "third", "--queue-capacity", "5")
    assert (started["state"], started["queue_capacity"]) == ("STATE_STARTED", 5)
    assert "third" in [each["deployment_id"] for each in termwise("deployments", "list")]
    assert termwise("deployments", "stop", "third") == [{"deployment_id": "third", "stopped": True}]
    termwise("deployments", "get", "third", status=1)


def test_a_model_of_ones_own_from_upload_to_statistics(termwise: Any, tmp_path: Path) -> None:
    (model,) = termwise("models", "upload", "own", str(tiny_package(tmp_path / "package")))
    assert (model["state"], model["layout"]) == ("STATE_READY", "LAYOUT_TORCHSCRIPT")
    assert termwise("models", "alias", "best", "own") == [{"alias": "best", "model_id": "own"}]
    assert [each["model_id"] for each in termwise("models", "list", "be*")] == ["own"]
    start = ("deployments", "start", "best", "--deployment-id", "of_own")
    (dry,) = termwise(*start, "--dry-run")
    assert int(dry["memory"]["total_bytes"]) > 0
    (started,) = termwise(*start, "--min-allocations", "1", "--max-allocations", "2")
    assert started["adaptive_allocations"] == {"min_number_of_allocations": 1, "max_number_of_allocations": 2}
    (updated,) = termwise("deployments", "update", "of_own", "--number-of-allocations", "2")
    assert updated["target_allocation_count"] == 2
    for _ in range(2):
        (expansion,) = termwise("expand", "salmon farm", "--deployment", "of_own")
        assert sorted(expansion["tokens"]) == ["farm", "salmon"]
    assert termwise("deployments", "clear-cache", "of_own") == [{"deployment_id": "of_own", "cleared": True}]
    (stats,) = termwise("deployments", "stats", "of_own")
    assert (stats["inference_count"], stats["cache_hit_count"]) == ("2", "1")
    (stats,) = termwise("models", "stats", "best")
    assert stats["inference_stats"]["inference_count"] == "2"
    assert termwise("models", "unalias", "best") == [{"alias": "best", "deleted": True}]
    termwise("models", "delete", "own", status=1)
    assert termwise("models", "delete", "own", "--force") == [{"model_id": "own", "deleted": True}]
    termwise("models", "cancel", "own", status=1)


def test_pipelines(termwise: Any, tmp_path: Path) -> None:
    body = tmp_path / "pipeline.json"
    body.write_text('{"processors": [{"lowercase": {"field": "a"}}, {"set": {"field": "b", "value": 1}}]}')

    (put,) = termwise("pipelines", "put", "lower", f"@{body}")
    assert put["pipeline_id"] == "lower"
    assert [each["pipeline_id"] for each in termwise("pipelines", "list")] == ["expand", "lower"]
    (result,) = termwise("pipelines", "simulate", "lower", '{"a": "X"}', "--verbose")
    assert result["document"]["source"] == {"a": "x", "b": 1}
    assert [step["processor_type"] for step in result["steps"]] == ["lowercase", "set"]
    assert [step["status"] for step in result["steps"]] == ["success", "success"]
    (failed,) = termwise("pipelines", "simulate", "lower", "{}")
    assert failed["error"]["processor_type"] == "lowercase"
    assert termwise("pipelines", "simulate", f"@{body}", '{"a": "X"}')[0]["document"] == result["document"]
    assert termwise("pipelines", "delete", "lower") == [{"pipeline_id": "lower", "deleted": True}]


def test_documents(filled: Any) -> None:
    (put,) = filled("indices", "put-document", "cli", '{"text": "Bread.", "year": 9007199254740993}', "--id", "bread")
    (got,) = filled("indices", "get-document", "cli", "bread", "--sparse-vector", "*")
    assert got["source"] == {"text": "Bread.", "year": 9007199254740993}
    assert got["version"] == put["version"]
    assert got["sparse_vectors"]["text_expansion"]["tokens"]

    filled("indices", "put-document", "cli", "{}", "--id", "bread", "--create", status=1)
    filled("indices", "put-document", "cli", "{}", "--id", "bread", "--if-version", "0", status=1)
    (deleted,) = filled("indices", "delete-document", "cli", "bread")
    assert deleted["result"] == "deleted"
    (stats,) = filled("indices", "stats", "cli")
    assert stats["document_count"] == "3"


def test_search_and_expand(filled: Any) -> None:
    (hybrid,) = filled("search", "cli", "squeeze a file so it takes less room")
    (lexical,) = filled("search", "cli", "--query", '{"match": {"field": "text", "text": "salmon"}}', "--size", "1")
    (fused,) = filled("search", "cli", "--retriever", '{"rrf": {"text": "planet"}}', "--source-include", "year")
    (expansion,) = filled("expand", "is pluto a planet?", "--top", "5")

    assert hybrid["hits"][0]["id"] == "zip"
    assert [hit["id"] for hit in lexical["hits"]] == ["fish"]
    assert fused["hits"][0]["source"] == {"year": 2003}
    assert len(expansion["tokens"]) == 5
    assert "pluto" in expansion["tokens"]
    assert expansion["weights"] == sorted(expansion["weights"], reverse=True)


def test_an_index_that_is_misspelt_gets_the_servers_hint(filled: Any, server: Any) -> None:
    filled("indices", "get", "cli")
    done = CliRunner().invoke(app, ["search", "cly", "x"], env={"TERMWISE_ADDRESS": server.address})

    assert done.exit_code == 1
    assert done.stderr.startswith('error: Index "cly" does not exist; did you mean "cli"?')
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small collection in BEIR's layout whose answers are known."""
    folder = tmp_path_factory.mktemp("collections") / "tiny"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": row["_id"], "title": "", "text": row["text"]} for row in BULK] + [{"_id": "empty", "text": ""}]
    queries = {"1": "gzip file", "2": "salmon in norway", "3": "is pluto a planet", "unjudged": "bread"}
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": k, "text": v}) for k, v in queries.items()))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\tzip\t1\n2\tfish\t1\n3\tplanets\t1\n")
    return folder


def test_eval_measures_four_systems_and_takes_down_what_it_made(termwise: Any, collection: Path, server: Any) -> None:
    def standing() -> list[list[Any]]:
        lists = [termwise(kind, "list") for kind in ("indices", "pipelines", "deployments")]
        return [[{k: v for k, v in each.items() if not k.startswith("cache_")} for each in rows] for rows in lists]

    before = standing()

    rows = termwise("eval", str(collection), "--address", server.address)

    assert [row["system"] for row in rows] == ["bm25", "sparse", "rrf", "linear"]
    for row in rows:
        assert (row["collection"], row["queries"], row["documents"]) == ("tiny", 3, 4)
        assert row["ndcg@10"] == row["recall@100"] == row["mrr@10"] == 1.0
    assert standing() == before


def _run(*arguments: str, scratch: Path) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TERMWISE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "termwise.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"TMPDIR": str(scratch)},
    )


def _servers(scratch: Path) -> list[psutil.Process]:
    """Find servers whose data is under a folder."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(scratch) in word for word in process.info["cmdline"] or ())
    ]


def test_eval_starts_a_server_of_its_own_and_leaves_nothing(collection: Path, tmp_path: Path) -> None:
    process = _run("eval", str(collection), "--format", "json", scratch=tmp_path)
    out, err = process.communicate(timeout=240)

    assert process.returncode == 0, err
    assert [json.loads(line)["system"] for line in out.splitlines()] == ["bm25", "sparse", "rrf", "linear"]
    assert not _servers(tmp_path)
    assert not list(tmp_path.glob("termwise-*"))


def test_a_demo_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    scratch = {number: tmp_path / number.name for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for folder in scratch.values():
        folder.mkdir()
    demos = {number: _run("demo", scratch=folder) for number, folder in scratch.items()}
    for number, process in demos.items():
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("It listens on"):
                break
        assert _servers(scratch[number])
        process.send_signal(number)
    for number, process in demos.items():
        process.communicate(timeout=60)

        assert process.returncode not in {0, -number}
        assert not _servers(scratch[number])
        assert not list(scratch[number].glob("termwise-*"))


@pytest.mark.slow
def test_the_demo_ends_with_its_line_in_under_four_minutes(tmp_path: Path) -> None:
    started = time.monotonic()
    process = _run("demo", scratch=tmp_path)
    out, err = process.communicate(timeout=600)

    assert process.returncode == 0, err
    last = out.rstrip("\n").splitlines()[-1]
    assert re.fullmatch(r"demo: \d+ documents indexed, 8 questions answered", last)
    assert int(last.split()[1]) >= 4000
    assert out.count("expected: ") == 8
    assert time.monotonic() - started < 240
    assert not _servers(tmp_path)


def test_health_is_an_exit_status(termwise: Callable[..., Any], server: Any) -> None:
    assert termwise("health", "liveness") == [{"service": "liveness", "status": "SERVING"}]
    for service, address in (("deployment/absent", server.address), ("liveness", "127.0.0.1:1")):
        done = CliRunner().invoke(app, ["health", service, "--address", address])
        assert done.exit_code == 1
        assert done.stderr.startswith("error: ")
