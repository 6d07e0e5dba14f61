from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = [
    ["models", "put"],
    ["models", "get"],
    ["models", "list"],
    ["models", "delete"],
    ["models", "download"],
    ["models", "cancel"],
    ["models", "upload"],
    ["models", "alias"],
    ["models", "unalias"],
    ["models", "stats"],
    ["deployments", "start"],
    ["deployments", "get"],
    ["deployments", "list"],
    ["deployments", "stop"],
    ["deployments", "update"],
    ["deployments", "clear-cache"],
    ["deployments", "stats"],
    ["pipelines", "put"],
    ["pipelines", "get"],
    ["pipelines", "list"],
    ["pipelines", "delete"],
    ["pipelines", "simulate"],
    ["indices", "create"],
    ["indices", "get"],
    ["indices", "list"],
    ["indices", "delete"],
    ["indices", "stats"],
    ["indices", "put-document"],
    ["indices", "get-document"],
    ["indices", "delete-document"],
    ["indices", "bulk"],
    ["search"],
    ["expand"],
    ["eval"],
    ["bench", "hardware"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_and_prints_json(termwise: Any, command: list[str]) -> None:
    result = termwise(*command, "--help")

    assert result.exit_code == 0
    assert "--address" in result.stdout
    assert "--format" in result.stdout
    assert "TERMWISE_ADDRESS" in result.stdout


def test_no_command_is_left_out(termwise: Any) -> None:
    for group in ("models", "deployments", "pipelines", "indices", "bench"):
        shown = termwise(group, "--help").stdout
        listed = [line.split()[1] for line in shown.partition("Commands")[2].splitlines() if line.startswith("│ ")]
        assert sorted(listed) == sorted(words[1] for words in COMMANDS if words[0] == group)


def test_a_list_is_one_json_object_a_line(termwise: Any) -> None:
    result = termwise("models", "list", "--format", "json")

    models = [json.loads(line) for line in result.stdout.splitlines()]
    assert [model["model_id"] for model in models] == [".splade_tiny", "mine"]
    assert models[0]["size_bytes"] == "17671552", "proto3 JSON writes 64-bit integers as strings"


def test_a_list_is_a_table(termwise: Any) -> None:
    header, first, second = termwise("models", "list").stdout.splitlines()

    assert header.split() == ["MODEL", "STATE", "ARCHITECTURE", "BYTES", "ALIASES", "SOURCE", "ERROR"]
    assert first.split() == [".splade_tiny", "ready", "17,671,552"]
    assert second.split() == ["mine", "failed", "no", "tokenizer"]


def test_expand_shows_tokens_with_bars_in_proportion(termwise: Any) -> None:
    result = termwise("expand", "is pluto a planet?", "--top", "3")

    _, *rows, total = result.stdout.splitlines()
    assert [row.split()[:2] for row in rows] == [["pluto", "3.000"], ["planet", "1.500"], ["[moon]", "0.250"]]
    assert [row.count("█") for row in rows] == [40, 20, 3]
    assert total == "3 of 3 tokens"


def test_expand_in_json_names_the_deployment_that_it_chose(termwise: Any) -> None:
    result = termwise("expand", "is pluto a planet?", "--top", "1", "--format", "json")

    assert json.loads(result.stdout) == {
        "text": "is pluto a planet?",
        "deployment_id": "for_search",
        "input_type": "query",
        "token_count": 3,
        "tokens": ["pluto"],
        "weights": [3.0],
    }


def test_search_prints_hits(termwise: Any) -> None:
    table = termwise("search", "docs", "salmon").stdout
    answer = json.loads(termwise("search", "docs", "salmon", "--format", "json").stdout)

    assert table.splitlines()[1].split() == ["1", "1.5000", "1", "Salmon", "[farming]"]
    assert "1 found, exact" in table
    assert answer["hits"][0]["source"] == {"title": "Salmon [farming]"}


def test_bulk_reads_lines_and_reports_failures(termwise: Any, tmp_path: Path) -> None:
    file = tmp_path / "documents.jsonl"
    file.write_text('{"_id": "1", "n": 1}\n\n{"_id": 2, "n": "bad"}\n{"n": 3}\n')

    plain = termwise("indices", "bulk", "docs", str(file))
    machine = termwise("indices", "bulk", "docs", "-", "--format", "json", stdin=file.read_text())

    assert plain.exit_code == machine.exit_code == 1
    assert 'error: document 2 ("2"): year: no integer' in plain.stderr
    report = json.loads(machine.stdout)
    assert (report["created"], report["failed"]) == (2, 1)
    assert report["failures"] == [{"position": 1, "id": "2", "error": "year: no integer"}]


def test_a_line_that_is_no_json_is_named(termwise: Any, tmp_path: Path) -> None:
    file = tmp_path / "documents.jsonl"
    file.write_text('{"n": 1}\n{"n": \n')

    result = termwise("indices", "bulk", "docs", str(file))

    assert result.exit_code == 1
    assert f"error: {file}, line 2: not JSON" in result.stderr


def test_an_error_of_the_server_is_one_line(termwise: Any) -> None:
    result = termwise("expand", "x", "--deployment", "nope")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == 'error: Deployment "nope" does not exist.\n'


def test_no_server_is_one_line_that_says_what_to_do(termwise: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{taken.getsockname()[1]}"

        result = termwise("models", "list", "--address", nowhere)

    assert result.exit_code == 1
    assert result.stderr == (
        f"error: no server answers at {nowhere}; start one with `termwise serve`, or give --address\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["models"],
        ["models", "get"],
        ["models", "list", "--format", "xml"],
        ["deployments", "start", "m", "--number-of-allocations", "two"],
        ["pipelines", "put", "p", "{not json"],
        ["pipelines", "put", "p", "[1]"],
        ["pipelines", "put", "p", "@/does/not/exist.json"],
        ["search", "docs", "text", "--query", "{}"],
        ["search", "docs", "--field", "title"],
        ["expand", "x", "--top", "0"],
        ["bench"],
        ["bench", "hardware", "--combination", "2by1"],
        ["bench", "hardware", "--seconds", "0"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_misuse_exits_with_2(termwise: Any, arguments: list[str]) -> None:
    assert termwise(*arguments).exit_code == 2


def test_a_missing_file_is_one_line(termwise: Any) -> None:
    result = termwise("indices", "bulk", "docs", "/does/not/exist.jsonl")

    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def _without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an interpreter that cannot import `module`."""
    program = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = {['termwise', *arguments]!r}\n"
        "from termwise.cli.main import app; app()"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("typer", ["models", "list"], "termwise[cli]"),
        ("structlog", ["serve"], "termwise[server]"),
        ("ir_measures", ["eval", "somewhere"], "termwise[eval]"),
        ("matplotlib", ["eval", "somewhere", "--plot", "plot.svg"], "termwise[plot]"),
        ("torch", ["bench", "hardware"], "termwise[server]"),
    ],
)
def test_what_is_not_installed_gets_a_hint(module: str, arguments: list[str], extra: str) -> None:
    result = _without(module, *arguments)

    assert result.returncode == 1
    assert f"pip install '{extra}'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_client_needs_neither_the_server_nor_the_command() -> None:
    program = (
        "import sys, termwise.client\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in "
        "{'torch', 'numpy', 'rich', 'typer', 'tantivy', 'transformers', 'structlog'} or name == 'termwise.server'))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert result.stdout == "[]\n"
