"""docs/performance.md out of the rows: a pure function, so that the page never says what was not measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reporting import bars, figures, searches
from reporting.text import MISSING, name, number, plain_table, size, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reporting.results import Results, Row, Section

HEAD = """# Performance

Written by `make bench` from the rows in [performance/results.jsonl](performance/results.jsonl); `make bench-report`
writes it again without measuring. Every comparison is one run in which ours and its peers take turns, or answer the
same queries one after the other, on the same machine. Figures are medians; beside them stand quartiles or the 95th
percentile. Vectors are real unless the text calls them resampled or synthetic; models with random weights are called
so. [scaling.md](scaling.md) says what larger collections take."""

PEERS = (
    (
        "sentence-transformers",
        "`SparseEncoder` of MLMTransformer and SpladePooling, float32, its default sparse tensors; the reference",
    ),
    (
        "ONNX Runtime",
        "the same weights by `torch.onnx.export`, pooling inside the graph; float32, and its own dynamic int8 weights",
    ),
    (
        "OpenVINO",
        "the same model converted from torch, pooling inside; hint LATENCY, one stream; precision hint f32 or bf16",
    ),
    ("scipy", "exact scores in float32, by whichever of three products is fastest here, then a partial sort"),
    (
        "Lucene",
        "FeatureField (weights keep 9 bits), a BooleanQuery, hits counted no further than 1, a heap that holds it all",
    ),
    ("seismic", f"`pyseismic-lsr`, several settings; a bar takes its fastest of recall {searches.RECALL} or more"),
    ("bmp", "block-max pruning, an exact setting and approximate ones"),
    ("splade-index", "numba, as its manual says"),
    ("Milvus Lite", "SPARSE_INVERTED_INDEX with inner product, through its client"),
)
PEERS_TAIL = """Sparse engines answer one query at a time on one thread, queries in the form of each, indices warm.
The settings in full stand at the head of each file of [tests/bench/peers](../tests/bench/peers) and of
[encode_peers.py](../tests/bench/encode_peers.py)."""


def render(results: Results) -> str:
    """Give the whole page."""
    parts = [HEAD, *_machines(results), *_bars(results), *_losses(results)]
    for title, names, write in SECTIONS:
        parts += _section(results, title, names, write)
    parts += ["## Peers", table(["Peer", "How it is run"], PEERS).replace("---:", "---"), PEERS_TAIL]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _machines(results: Results) -> Iterator[str]:
    """Give each machine that something was measured on, and the versions of what was compared."""
    runs = [section.run for section in results.sections.values()]
    seen: list[Any] = []
    for run in runs:
        if run["machine"] not in seen:
            seen.append(run["machine"])
    yield "## Machine"
    if not runs:
        yield "*Nothing has been measured yet.*"
        return
    for machine in seen:
        here = [section.name for section in results.sections.values() if section.run["machine"] == machine]
        kind = "virtual machine" if machine.get("virtual") else "machine"
        family = f" (family {machine['family']})" if machine.get("family") else ""
        cache = f", {machine['cache_l3']} L3" if machine.get("cache_l3") else ""
        yield (
            f"{machine['processor']}{family}: {machine['cores']} cores of a {kind}{cache}, "
            f"{number(machine['memory_gib'])} GiB of memory. Instructions that matter here: "
            f"{', '.join(machine['instructions']) or 'none'}. {machine['system']}, kernel {machine['kernel']}, "
            f"Python {machine['python']}." + (f" Sections: {', '.join(here)}." if len(seen) > 1 else "")
        )
    versions: dict[str, list[str]] = {}
    for run in runs:
        for package, version in run["versions"].items():
            if version not in versions.setdefault(package, []):
                versions[package].append(version)
    named = (f"{package} {' and '.join(found)}" for package, found in versions.items())
    yield f"Versions: Termwise {' and '.join(dict.fromkeys(run['termwise'] for run in runs))}; {', '.join(named)}."


def _bars(results: Results) -> Iterator[str]:
    found = bars.all_bars(results)
    met = sum(bar.met is True for bar in found)
    missed = sum(bar.met is False for bar in found)
    open_ = len(found) - met - missed
    words = {True: "met", False: "**missed**", None: "not measured"}
    yield "## Bars"
    yield f"{met} met, {missed} missed, {open_} not measured."
    yield table(
        ["Bar", "Promised", "Measured", ""],
        [[each.what, each.promised, each.measured, words[each.met]] for each in found],
    )


def _losses(results: Results) -> Iterator[str]:
    yield "## What we lose at"
    found = bars.losses(results)
    if found:
        yield "Every cell in which a peer was faster, whatever its recall:"
        yield "\n".join(f"- {each}" for each in found)
    elif not results.rows("encode") and not searches.timings(results):
        yield "*Not measured yet.*"
    else:
        yield "In none of the cells that were measured was a peer faster."


def _section(results: Results, title: str, names: str, write: Callable[[Results], Iterator[str]]) -> Iterator[str]:
    """Give a section: how it was measured, its tables and its plots, and what failed."""
    here = [each for each in results.sections.values() if each.name == names or each.name.startswith(f"{names}-")]
    yield f"## {title}"
    if not here:
        yield "*Missing: not measured yet.*"
        return
    for section in here:
        if section.failure:
            yield _incomplete(section)
    if any(section.rows for section in here):
        yield from write(results)
        for figure in figures.plan(results):
            if figure.section == names:
                yield f"![{figure.alt}](performance/{figure.file})"
    yield "\n".join(f"- {_told(section.run)}" for section in here)


def _incomplete(section: Section) -> str:
    """Say what a section that was stopped or failed lacks."""
    partly = "; the rows that it gave before are shown" if section.rows else ""
    if not section.failure.startswith(("stopped", "cut off")):
        return f"*Missing: `{section.name}` failed ({section.failure}){partly}.*"
    missing = searches.missing(section.rows)
    return f"*`{section.name}` was {section.failure}{missing and f'; {missing}'}{partly}.*"


def _told(run: Row) -> str:
    trial = " A trial in small." if run.get("quick") else ""
    commands = " and ".join(f"`{command}`" for command in run["commands"])
    return f"{run['at']} UTC, {run['seconds']} s, Termwise {run['termwise']}: {commands}.{trial}"


def _encode(results: Results) -> Iterator[str]:
    yield (
        "Texts in, sparse vectors out, one thread each: milliseconds (quartiles), and how many times faster than "
        "sentence-transformers. A query is some 9 tokens, passages are of 60 to 150 tokens in one batch of 32. "
        "Engines take turns; a turn begins with a call that is not timed."
    )
    rows = results.rows("encode")
    for model, shown in bars.MODELS.items():
        here = [row for row in rows if row["model"] == model]
        if not here:
            continue
        random = ", random weights" if any(row.get("random_weights") for row in here) else ""
        yield f"### {shown[0].upper()}{shown[1:]}{random}"
        found = {(name(row), row["cell"]): row for row in here}
        engines = list(dict.fromkeys(name(row) for row in here))
        lines = [[each, *(_encoder_cell(found.get((each, cell))) for cell in bars.CELLS)] for each in engines]
        yield table(["Engine", *(work.removeprefix("a ") for work in bars.CELLS.values())], lines)
    cosines: dict[str, float] = {}
    for row in rows:
        if row["model"] == "default" and row.get("cosine") is not None:
            cosines[name(row)] = min(row["cosine"], cosines.get(name(row), 1.0))
    if cosines:
        told = ", ".join(f"{engine} {value:.4f}" for engine, value in cosines.items())
        yield f"Smallest cosine of a vector with the reference's, default model: {told}."


def _encoder_cell(row: Row | None) -> str:
    if row is None:
        return MISSING
    return f"{number(row['p50_ms'])} ({number(row['p25_ms'])} to {number(row['p75_ms'])}), {number(row['ratio'])}x"


def _generic(section: str, says: str) -> Callable[[Results], Iterator[str]]:
    def write(results: Results) -> Iterator[str]:
        yield says
        # Rows with other keys are other tables.
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in results.rows(section):
            groups.setdefault(tuple(sorted(key for key in row if key not in {"bar", "ok"})), []).append(row)
        for rows in groups.values():
            yield plain_table(rows)

    return write


def _search(results: Results) -> Iterator[str]:
    rows = searches.timings(results)
    yield (
        "One query at a time, vectors given, in process (`termwise grpc`: through the service). Milliseconds in the "
        "median (95th percentile), and recall against exact scores. Short queries are real titles as the default model "
        "expands them; long ones have 150 tokens. Ours is exact."
    )
    for documents in dict.fromkeys(row["documents"] for row in rows):
        here = searches.pick(rows, documents=documents)
        labels = ", ".join(dict.fromkeys(str(row["vectors"]) for row in here if row.get("vectors")))
        yield f"### {number(documents)} documents{f' ({labels})' if labels else ''}"
        yield _search_table(searches.pick(here, state="fresh"))
        updated = searches.pick(here, state="updated")
        if updated:
            yield "After 20 % of the documents were updated and 10 % deleted:"
            yield _search_table(updated)
    settings = dict.fromkeys((row["engine"], str(row["settings"])) for row in rows if row.get("settings"))
    if settings:
        yield "### Settings"
        told: dict[str, list[str]] = {}
        for engine, words in settings:
            told.setdefault(engine, []).append(words)
        yield "\n".join(f"- {engine}: {'; '.join(found)}" for engine, found in told.items())
    skipped = [row for row in results.rows() if "skipped" in row]
    if skipped:
        yield "Engines that could not be had:"
        yield "\n".join(f"- {row['engine']}, {size(row['documents'])}: {row['skipped']}" for row in skipped)
    built = searches.builds(results)
    if built:
        yield "### Building, disk and memory"
        keys = [("index_s", "seconds"), ("disk_bytes_per_posting", "disk, bytes a posting")]
        keys.append(("memory_bytes_per_posting", "memory, bytes a posting"))
        lines = [
            [
                row["engine"],
                size(row["documents"]),
                *(number(row.get(key)) for key, _ in keys),
                str(row.get("memory_measured", MISSING)),
            ]
            for row in built
        ]
        yield table(["Engine", "Documents", *(heading for _, heading in keys), "memory is"], lines)


def _search_table(rows: list[Row]) -> str:
    cells = list(dict.fromkeys((row["queries"], row["k"]) for row in rows))
    lines = []
    for engine in dict.fromkeys(row["engine"] for row in rows):
        shown = []
        for queries, k in cells:
            row = next(iter(searches.pick(rows, engine=engine, queries=queries, k=k)), None)
            shown.append(
                f"{number(row['p50_ms'])} ({number(row['p95_ms'])}), {_recall(row['recall'])}" if row else MISSING
            )
        lines.append([engine, *shown])
    return table(["Engine", *(f"{queries}, k = {k}" for queries, k in cells)], lines)


def _recall(value: float | None) -> str:
    return MISSING if value is None else "1" if value == 1 else f"{value:.3f}"


def _quality(results: Results) -> Iterator[str]:
    yield "NDCG@10 of `termwise eval`, encoders in float32, by collection:"
    rows = results.rows("quality")
    systems = list(dict.fromkeys(row["system"] for row in rows))
    found = {(row["collection"], row["system"]): row for row in rows}
    lines = []
    for collection in dict.fromkeys(row["collection"] for row in rows):
        any_row = next(row for row in rows if row["collection"] == collection)
        scores = (found.get((collection, system), {}).get("ndcg@10") for system in systems)
        sizes = (number(any_row["documents"]), number(any_row["queries"]))
        lines.append([collection, *sizes, *(f"{score:.4f}" if score is not None else MISSING for score in scores)])
    yield table(["Collection", "documents", "queries", *systems], lines)


def _hardware(results: Results) -> Iterator[str]:
    yield (
        "What an operator gets by allocations and threads, through a server over loopback: ELSER's hardware table. A "
        "call carries one 512-token document; documents a second with every allocation busy; queries of about 9 and "
        "about 200 tokens one at a time. Quartiles in brackets. The caller runs on the same processors."
    )
    rows = results.rows("hardware")
    for model in dict.fromkeys(row["model"] for row in rows):
        here = [row for row in rows if row["model"] == model]
        random = ", random weights" if here[0].get("random_weights") else ""
        yield f"### {model}{random}, {here[0]['precision']}"
        headings = [
            "Allocations x threads",
            "ms a call",
            "documents a second",
            "ms a short query",
            "ms a 200-token query",
        ]
        lines = []
        for row in here:
            call, short, long = (_quartiles(row, each) for each in ("call", "short_query", "long_query"))
            lines.append(
                [f"{row['allocations']} x {row['threads']}", call, number(row["documents_per_s"]), short, long]
            )
        yield table(headings, lines)


def _quartiles(row: Row, key: str) -> str:
    middle, low, high = (number(row[f"{key}_p{each}_ms"]) for each in (50, 25, 75))
    return f"{middle} ({low} to {high})"


SECTIONS: tuple[tuple[str, str, Callable[[Results], Iterator[str]]], ...] = (
    ("Encoder", "encode", _encode),
    (
        "Drift",
        "drift",
        _generic("drift", "What faster arithmetic costs in quality, against float32, on real collections."),
    ),
    ("Search", "search", _search),
    ("Storage", "storage", _generic("storage", "The tantivy backend alone: writing, disk, memory, restart.")),
    (
        "Ingest",
        "ingest",
        _generic("ingest", "Documents through the service: expanded, stored, durable and searchable."),
    ),
    (
        "Service",
        "overhead",
        _generic("overhead", "What the service adds to the encoder and to the index, and under load."),
    ),
    (
        "Start",
        "start",
        _generic(
            "start",
            "From a restart with the default model deployed and an index, until health says `readiness`, beside what "
            "importing torch and transformers alone takes.",
        ),
    ),
    ("Quality", "quality", _quality),
    ("Hardware", "hardware", _hardware),
)
"""Title, section of the results (or the beginning of its names), and what writes it."""
