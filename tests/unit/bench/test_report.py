from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import report
from reporting import bars, figures, machine, page, scaling, searches, text
from reporting.plan import BENCH, Part, plan
from reporting.results import Results, Section, load, save

DOCS = BENCH.parents[1] / "docs"
RUN = {
    "at": "2026-01-02 03:04",
    "termwise": "0.1.0",
    "commands": ["make bench-encode"],
    "quick": False,
    "seconds": 5,
    "failure": None,
    "machine": {
        "processor": "A processor",
        "family": "",
        "instructions": ["avx2"],
        "cores": 2,
        "cache_l3": "",
        "memory_gib": 8.0,
        "system": "A system",
        "kernel": "6.1",
        "virtual": False,
        "python": "3.11.0",
    },
    "versions": {"torch": "2.13.0"},
}


def encoded(model: str, cell: str, engine: str, precision: str, p50: float, ratio: float) -> dict[str, Any]:
    return {
        "bench": "encode",
        "model": model,
        "cell": cell,
        "engine": engine,
        "precision": precision,
        "threads": 1,
        "p50_ms": p50,
        "p25_ms": p50 * 0.9,
        "p75_ms": p50 * 1.1,
        "ratio": ratio,
        "random_weights": model != "default",
        "cosine": 0.9999,
    }


def searched(engine: str, documents: int, p50: float, **more: Any) -> dict[str, Any]:
    row = {"engine": engine, "documents": documents, "queries": "short", "k": 10, "p50_ms": p50, "p95_ms": p50 * 2}
    return row | {"recall": 1.0, "vectors": "wiki-100k", "state": "fresh"} | more


def results(**sections: list[dict[str, Any]]) -> Results:
    return Results(Section(name.replace("_", "-"), RUN, rows) for name, rows in sections.items())


def bar(found: Results, words: str) -> bars.Bar:
    (only,) = [each for each in bars.all_bars(found) if words in each.what]
    return only


def test_every_bar_of_the_encoder_is_there_even_where_nothing_was_measured() -> None:
    found = bars.all_bars(Results())

    assert sum("sentence-transformers" in each.what for each in found) == 9
    assert sum("OpenVINO" in each.what for each in found) == 3
    assert {each.met for each in found} == {None}


@pytest.mark.parametrize(("ratio", "met"), [(4.0, True), (3.99, False)])
def test_an_encoder_bar_is_met_from_its_figure_on(ratio: float, met: bool) -> None:
    found = results(encode=[encoded("default", "query-b1", "termwise", "bfloat16", 1.0, ratio)])

    assert bar(found, "encode a query, default model: times sentence").met is met


def test_a_peer_in_a_cell_of_the_default_model_makes_a_bar_and_a_loss() -> None:
    rows = [
        encoded("default", "query-b1", "termwise", "bfloat16", 1.2, 5),
        encoded("default", "query-b1", "termwise", "float32", 2.0, 3),
        encoded("default", "query-b1", "openvino", "bfloat16", 1.0, 6),
        encoded("default", "query-b1", "openvino", "float32", 1.5, 4),
    ]
    found = results(encode=rows)

    assert bar(found, "encode a query, default model: time over OpenVINO").met is False
    (loss,) = bars.losses(found)
    assert "openvino bfloat16" in loss
    assert "float32" not in loss, "ours is compared at its best"


def test_search_bars_take_the_fastest_setting_of_enough_recall() -> None:
    rows = [
        searched("termwise", 100_000, 0.3),
        searched("termwise grpc", 100_000, 0.1),
        searched("scipy", 100_000, 1.0),
        searched("seismic a", 100_000, 0.1, recall=0.9),
        searched("seismic b", 100_000, 0.5, recall=0.98),
        searched("seismic c", 100_000, 0.7, recall=0.99),
        searched("termwise", 100_000, 0.4, state="updated"),
    ]
    found = results(search_100000=rows)

    assert (bar(found, "over scipy's").measured, bar(found, "over scipy's").met) == ("0.300", True)
    assert (bar(found, "over seismic's").measured, bar(found, "over seismic's").met) == ("0.600", True)
    assert (bar(found, "updated").measured, bar(found, "updated").met) == ("1.33", False)
    assert ["seismic a" in loss for loss in bars.losses(found)] == [True]


def test_a_benchmark_states_bars_of_its_own() -> None:
    storage = [
        {"metric": "durable writes", "documents": 9, "write_documents_per_s": 9000, "bar": ">= 8,000", "ok": True},
        {"metric": "restart", "documents": 9, "write_documents_per_s": 1, "restart_after_kill_s": 6.0}
        | {"bar": "< 5 s", "ok": False},
    ]
    overhead = [
        {"cell": "health", "p50_ms": 1.0, "p99_ms": 30.0, "bar": 20.0, "ok": False},
        {"cell": "16-callers", "per_s": 9, "ratio": 1.8, "bar": 1.7, "ok": True},
        {"cell": "infer", "p50_ms": 1.0, "bar": None, "ok": None},
    ]
    found = list(bars.stated(results(storage=storage, overhead=overhead)))

    assert [(each.what, each.promised, each.measured, each.met) for each in found] == [
        ("storage: durable writes", ">= 8,000", "9,000", True),
        ("storage: restart", "< 5 s", "6.00 s", False),
        ("overhead: health", "≤ 20.0 ms", "30.0 ms", False),
        ("overhead: 16-callers", "≥ 1.70", "1.80", True),
    ]


def test_the_worst_loss_of_each_precision_is_a_bar() -> None:
    rows = [
        {"precision": "bfloat16", "collection": "a", "loss": 0.001},
        {"precision": "bfloat16", "collection": "b", "loss": -0.002},
        {"precision": "int8", "collection": "a", "loss": 0.0031},
    ]
    found = results(drift=rows)

    assert bar(found, "collections, bfloat16").met is True
    assert bar(found, "collections, int8").met is False


def test_the_page_shows_every_row_and_says_what_is_missing() -> None:
    rows = [encoded("bert-base", "doc512-b1", "openvino", "int8", 123.4, 5.67)]
    search = [searched("lucene", 1_000_000, 9.87, vectors="resampled"), searched("bmp", 1_000_000, 6.54, recall=0.912)]
    failed = Section("ingest", RUN | {"failure": "exit status 1: no room"}, [])
    found = results(encode=rows, search_1000000=search).replaced(failed)

    shown = page.render(found)

    for words in ("123 (111 to 136), 5.67x", "random weights", "9.87 (19.7), 1", "6.54 (13.1), 0.912", "resampled"):
        assert words in shown
    assert "`ingest` failed (exit status 1: no room)" in shown
    assert "## Storage\n\n*Missing: not measured yet.*" in shown
    for figure in figures.plan(found):
        assert f"![{figure.alt}](performance/{figure.file})" in shown


@given(st.lists(st.sampled_from(["encode", "drift", "search-10000", "storage", "ingest", "overhead"]), unique=True))
def test_a_page_is_written_whatever_failed(names: list[str]) -> None:
    found = Results(Section(name, RUN | {"failure": "it took more than 5 s"}, []) for name in names)

    shown = page.render(found)

    assert shown.count("it took more than 5 s") == len(names)
    assert [line for line in shown.splitlines() if line.startswith("## ")][3:-1] == [
        f"## {title}" for title, _, _ in page.SECTIONS
    ]


def test_rows_are_kept_as_they_were(tmp_path: Path) -> None:
    found = results(encode=[{"a": 1, "section": "x", "run": {}}], drift=[])
    save(found, tmp_path / "results.jsonl")

    kept = load(tmp_path / "results.jsonl")

    assert {name: (each.run, each.rows) for name, each in kept.sections.items()} == {
        name: (each.run, each.rows) for name, each in found.sections.items()
    }
    again = kept.replaced(Section("encode", RUN, [{"b": 2}]))
    assert again.rows("encode") == [{"b": 2}]
    assert list(again.sections) == ["encode", "drift"]


def test_a_search_that_was_stopped_says_what_is_missing_and_keeps_its_rows() -> None:
    planned = {"engines": ["termwise", "scipy", "bmp", "lucene"], "queries": ["short", "long"], "k": [10]}
    rows = [
        {"bench": "search", "documents": 100_000, "planned": planned},
        {"engine": "bmp", "documents": 100_000, "skipped": "not installed"},
        searched("termwise", 100_000, 1.23),
        searched("termwise grpc", 100_000, 2.34),
        searched("scipy", 100_000, 3.45),
    ]
    stopped = Section("search-100000", RUN | {"failure": "stopped after 660 s"}, rows)

    shown = page.render(Results([stopped]))

    assert (
        "*`search-100000` was stopped after 660 s; engines missing: lucene; not timed: long queries with k = 10; "
        "the rows that it gave before are shown.*"
    ) in shown
    assert "3.45" in shown
    assert searches.missing(rows[1:]) == ""
    assert searches.missing([*rows, searched("lucene", 100_000, 1), searched("scipy", 1, 1, queries="long")]) == ""


def program(code: str) -> tuple[str, ...]:
    return ("-m", "timeit", "-n", "1", "-r", "1", code)


def test_a_benchmark_that_fails_keeps_its_rows_and_tells_no_folders() -> None:
    code = "print('{\"a\": 1}', flush=True); raise OSError('/somewhere/secret/file.txt is not there')"

    rows: list[dict[str, Any]] = []
    problem = report.execute(program(code), 60, rows.append)

    assert rows == [{"a": 1}]
    assert problem == "exit status 1: OSError: file.txt is not there"


@pytest.mark.slow
def test_a_benchmark_that_takes_too_long_is_ended_with_what_it_started() -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('{\"child\": %d}' % child.pid, flush=True)\n"
        "time.sleep(600)"
    )

    rows: list[dict[str, Any]] = []
    problem = report.execute(program(code), 8, rows.append)

    assert problem == "stopped after 8 s"
    assert not is_running(rows[0]["child"])


@pytest.mark.slow
def test_rows_are_kept_as_they_come_and_scratch_files_go() -> None:
    code = (
        "import json, tempfile, time\n"
        "for number in range(3): print(json.dumps({'a': number, 'at': tempfile.mkdtemp()}), flush=True)\n"
        "time.sleep(600)"
    )
    part = Part("search-10000", (program(code),), 8, ("make bench-search",))
    kept: list[tuple[int, str]] = []

    section = report.measure(part, 8, quick=True, keep=lambda so_far: kept.append((len(so_far.rows), so_far.failure)))

    assert kept == [(count, "cut off before its end") for count in (1, 2, 3)]
    assert (len(section.rows), section.failure) == (3, "stopped after 8 s")
    assert not Path(section.rows[0]["at"]).exists()


def test_rows_of_before_stay_where_no_time_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "performance" / "results.jsonl"
    file.parent.mkdir()
    save(results(drift=[{"precision": "bfloat16", "collection": "a", "loss": 0.001}]), file)
    monkeypatch.setattr("sys.argv", ["report", "--only", "drift", "--minutes", "0", "--out", str(tmp_path)])
    monkeypatch.setattr(report.signal, "signal", lambda *_: None)

    with pytest.raises(SystemExit, match="failed: drift"):
        report.main()

    assert load(file).rows("drift") == [{"precision": "bfloat16", "collection": "a", "loss": 0.001}]


def is_running(process: int) -> bool:
    try:
        found = psutil.Process(process)
        found.wait(60)
    except psutil.NoSuchProcess:
        return False
    except psutil.TimeoutExpired:
        # Ended, and nobody asks for its status.
        return bool(found.status() != psutil.STATUS_ZOMBIE)
    return False


def test_a_missed_bar_is_no_failure_where_the_exit_status_tells_bars() -> None:
    code = "print('{\"ok\": false}', flush=True); raise SystemExit(1)"
    part = Part("overhead", (program(code),), 60, ("",), tells_bars=True)

    assert report.measure(part, 60, quick=True).failure == ""
    assert report.measure(replace(part, tells_bars=False), 60, quick=True).failure.startswith("exit status 1")


def test_a_benchmark_that_is_not_there_is_named() -> None:
    rows: list[dict[str, Any]] = []
    assert report.execute((str(BENCH / "bench_nothing.py"),), 5, rows.append) == "bench_nothing.py does not exist"
    part = Part("quality", (), 5, ("termwise eval",))
    assert report.measure(part, 5, quick=True).failure == "what it measures with is not at hand"


def test_sections_are_chosen_by_the_beginning_of_their_names() -> None:
    parts = plan(quick=False)

    names = [part.name for part in report.chosen(parts, "search-1,dri")]
    assert names == ["drift", "search-10000", "search-100000", "search-1000000"]
    assert [part.name for part in report.chosen(parts, "search-100000")] == ["search-100000"]
    assert report.chosen(parts, "") == parts
    with pytest.raises(SystemExit, match="there is no section serch"):
        report.chosen(parts, "serch")


def test_the_plan_is_short_enough_and_shows_no_folders() -> None:
    assert sum(part.seconds for part in plan(quick=False)) <= 75 * 60
    for quick in (True, False):
        for part in plan(quick=quick):
            assert all("/" not in words for words in part.shown)


def test_a_machine_is_described_without_its_name() -> None:
    told = json.dumps([machine.describe(), machine.versions(), machine.own_version()])

    assert socket.gethostname() not in told
    assert machine.describe()["cores"] >= 1
    assert "numpy" in machine.versions()


@given(st.floats(0.0005, 1e9))
def test_figures_keep_three_digits(value: float) -> None:
    shown = float(text.number(value).replace(",", ""))

    assert shown == pytest.approx(value, rel=0.006, abs=0.0006)


@given(st.floats(0, 100), st.floats(1e-6, 1), st.lists(st.integers(1, 10**7), min_size=2, max_size=5, unique=True))
def test_a_straight_line_is_found_again(constant: float, slope: float, documents: list[int]) -> None:
    fit = scaling.straight(documents, [constant + slope * each for each in documents])

    assert fit.residual < 1e-3
    assert fit(documents[0]) == pytest.approx(constant + slope * documents[0], rel=1e-3)
    assert fit.constant >= 0
    assert fit.slope >= 0


@given(st.floats(0.1, 1.2), st.floats(1e-4, 10), st.lists(st.integers(1, 10**7), min_size=2, max_size=5, unique=True))
def test_a_power_law_is_found_again(exponent: float, slope: float, documents: list[int]) -> None:
    fit = scaling.power_law(documents, [slope * each**exponent for each in documents])

    assert fit.exponent == pytest.approx(exponent, abs=1e-4)
    assert fit.inverse(fit(12345)) == pytest.approx(12345, rel=1e-3)


@given(st.floats(0.1, 100), st.floats(1, 5), st.integers(1, 10_000))
def test_the_slowest_of_many_is_slower(median: float, times: float, shards: int) -> None:
    one = scaling.tail(median, median * times, 1, 0.5)
    many = scaling.tail(median, median * times, shards, 0.5)

    assert one == pytest.approx(median, rel=1e-6)
    assert many >= one * (1 - 1e-9)
    assert scaling.tail(median, median * times, 1, 0.95) == pytest.approx(median * max(times, 1.0001), rel=1e-3)


def test_scaling_blocks_are_filled_and_filled_again() -> None:
    rows = [searched("termwise", size, 0.001 * size**0.5) for size in (10_000, 100_000, 1_000_000)]
    each = {"engine": "termwise", "memory_bytes_per_posting": 7.0, "disk_bytes_per_posting": 9.0}
    rows += [
        each | {"documents": size, "index_s": size / 8000, "tokens_per_document": 188}
        for size in (10_000, 100_000, 1_000_000)
    ]
    found = results(search_10000=rows)
    template = (DOCS / "scaling.md").read_text(encoding="utf-8")

    filled = scaling.fill(template, found)

    assert scaling.fill(filled, found) == filled
    assert scaling.NOTHING not in filled
    assert "N^0.50" in filled
    assert "1,250 s" not in template
    assert "125 s" in filled
    assert scaling.fill(filled, Results()).count(scaling.NOTHING) == 4


def test_the_committed_pages_are_what_the_committed_rows_render_to() -> None:
    file = DOCS / "performance" / "results.jsonl"
    if not file.exists():
        pytest.skip("nothing has been measured yet")
    found = load(file)

    assert (DOCS / "performance.md").read_text(encoding="utf-8") == page.render(found)
    template = (DOCS / "scaling.md").read_text(encoding="utf-8")
    assert template == scaling.fill(template, found)
    for figure in figures.plan(found):
        assert (DOCS / "performance" / figure.file).exists()


def test_plots_are_drawn_for_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    search = [
        searched(engine, size, 0.5, queries=queries, recall=0.99)
        for engine in ("termwise", "termwise grpc", "lucene", "seismic a")
        for size in (10_000, 100_000)
        for queries in ("short", "long")
    ]
    search.append({"engine": "lucene", "documents": 100_000, "index_s": 3.0, "disk_bytes_per_posting": 2.0})
    found = results(
        encode=[encoded("default", "query-b1", engine, "float32", 1.0, 2.0) for engine in ("termwise", "openvino")],
        search_10000=search,
        ingest=[{"bench": "ingest", "cell": "bulk", "documents_per_s": 100.0}],
    )
    (tmp_path / "old.svg").write_text("<svg/>")

    figures.draw(found, tmp_path)
    first = {file.name: file.read_text() for file in tmp_path.iterdir()}
    figures.draw(found, tmp_path)

    assert set(first) == {"encoder.svg", "latency.svg", "recall.svg", "bytes.svg", "ingest.svg"}
    assert first == {file.name: file.read_text() for file in tmp_path.iterdir()}, "the same rows, the same file"
    assert re.search(r">seismic<", first["latency.svg"])


def test_only_our_own_engine_is_ours() -> None:
    rows = [searched("termwise grpc", 1, 1.0), searched("termwise", 1, 2.0)]

    assert searches.ours(rows) == rows[1]
    assert searches.ours(rows[:1]) is None
