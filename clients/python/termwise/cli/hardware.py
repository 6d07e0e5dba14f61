"""How fast a deployment is on this machine, by allocations and threads: what an operator chooses between.

Every figure comes from calls to a real server: one call at a time for what a call takes, enough callers to keep every
allocation busy for documents a second. No text is sent twice, and the deployment's cache is off.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from termwise.cli.stdlib_docs import entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from termwise.client import Client
    from termwise.client.deployments import Precision
    from termwise.client.inference import InputType

DOCUMENT_TOKENS = 512
SHORT_QUERY_TOKENS = 9
LONG_QUERY_TOKENS = 200
"""Lengths of ELSER's hardware benchmark: long documents, and the queries of msmarco-long-light and of arguana."""
DOCUMENTS_A_CALL = 4
CALLERS_AN_ALLOCATION = 2
"""While one call is computed, the next one waits in the queue."""
LEAST_CALLS = 5
MOST_ALLOCATIONS, MOST_THREADS = 64, 32
"""Allocations, and threads of each, that the API takes at most."""
CALL_TIMEOUT = 300.0
CELLS = ("ms a call", "documents a second", "short queries", "long queries")
"""What is measured of each combination, in this order."""


@dataclass(frozen=True, slots=True)
class Combination:
    """Allocations, and threads of each."""

    allocations: int
    threads: int

    def __str__(self) -> str:
        """Give it as people write it."""
        return f"{self.allocations} x {self.threads}"


@dataclass(frozen=True, slots=True)
class Latency:
    """Quartiles of single calls in milliseconds, and the mean number of tokens that the model read."""

    p25: float
    p50: float
    p75: float
    tokens: float
    calls: int


def default_combinations(processors: int | None = None) -> list[Combination]:
    """Give one allocation of one thread, as many allocations as processors, one with as many threads, and a mixture."""
    count = processors or os.cpu_count() or 1
    threads = min(MOST_THREADS, 1 << (count.bit_length() - 1))
    wanted = [Combination(1, 1), Combination(min(MOST_ALLOCATIONS, count), 1), Combination(1, threads)]
    if count >= 4:  # noqa: PLR2004 - fewer leave nothing between the two ends
        wanted.append(Combination(min(MOST_ALLOCATIONS, count // 2), 2))
    return list(dict.fromkeys(wanted))


class Texts:
    """Different texts of about a number of tokens, cut from the standard library's documentation; from many threads."""

    def __init__(self, words: list[str] | None = None) -> None:
        """Take words, or those of the documentation."""
        self._words = words or [word for entry in entries() for word in entry.text.split()]
        self._next = 0
        self._lock = threading.Lock()
        self.tokens_a_word = 1.0

    def calibrate(self, count: Callable[[str], int]) -> None:
        """Learn how many tokens a word has, from a text of a hundred words and the number of its tokens."""
        counted = count(" ".join(self._words[:100])) - 2
        self.tokens_a_word = max(0.1, counted / min(100, len(self._words)))

    def cut(self, tokens: int) -> str:
        """Give a new text of about `tokens` tokens, the two special ones included."""
        length = max(1, round((tokens - 2) / self.tokens_a_word))
        with self._lock:
            start = self._next
            # A step that shares no factor with most lengths: texts differ even after the words have been gone through.
            self._next = (start + length + 7) % len(self._words)
        # Copies what it gives and no more: callers share the processors with the server that is measured.
        taken = self._words[start : start + length]
        while len(taken) < length:
            taken += self._words[: length - len(taken)]
        return " ".join(taken)


def measure(
    client: Client,
    model_id: str,
    combinations: list[Combination],
    *,
    precision: Precision = "auto",
    seconds: float = 5.0,
    texts: Texts | None = None,
    on_cell: Callable[[str], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Measure a model in each combination; give a row each. `on_cell` is told what is measured next.

    Deployments are started for it and stopped again.
    """
    source = texts or Texts()
    for number, combination in enumerate(combinations):
        name = f"bench-hardware-{os.getpid()}-{number}"
        on_cell(f"{combination}: starting")
        deployment = client.deployments.start(
            model_id,
            deployment_id=name,
            number_of_allocations=combination.allocations,
            threads_per_allocation=combination.threads,
            precision=precision,
            cache_size_bytes=0,
            wait_for="fully_allocated",
        )
        try:
            row = {
                "bench": "hardware",
                "model": model_id,
                "precision": deployment.precision,
                "processors": os.cpu_count(),
                "allocations": combination.allocations,
                "threads": combination.threads,
            }
            source.calibrate(lambda text, name=name: _count(client, name, text))  # type: ignore[misc]
            yield row | _cells(client, name, combination, seconds, source, on_cell)
        finally:
            client.deployments.stop(name, force=True)


def _cells(
    client: Client, name: str, combination: Combination, seconds: float, texts: Texts, on_cell: Callable[[str], None]
) -> dict[str, Any]:
    """Measure one deployment."""
    on_cell(f"{combination}: {CELLS[0]}")
    call = _latency(client, name, "document", DOCUMENT_TOKENS * 2, seconds, texts)
    on_cell(f"{combination}: {CELLS[1]}")
    rate = _throughput(client, name, combination.allocations * CALLERS_AN_ALLOCATION, seconds, texts)
    on_cell(f"{combination}: {CELLS[2]}")
    short = _latency(client, name, "query", SHORT_QUERY_TOKENS, seconds, texts)
    on_cell(f"{combination}: {CELLS[3]}")
    long = _latency(client, name, "query", LONG_QUERY_TOKENS, seconds, texts)
    named = {"call": call, "short_query": short, "long_query": long}
    fields: dict[str, Any] = {"documents_per_s": round(rate, 2)}
    for key, latency in named.items():
        fields |= {f"{key}_p{each}_ms": round(getattr(latency, f"p{each}"), 2) for each in (50, 25, 75)}
        fields |= {f"{key}_tokens": round(latency.tokens, 1), f"{key}_calls": latency.calls}
    return fields


def _count(client: Client, name: str, text: str) -> int:
    return client.infer(name, [text], input_type="document", timeout=CALL_TIMEOUT).results[0].token_count


def _latency(client: Client, name: str, side: InputType, tokens: int, seconds: float, texts: Texts) -> Latency:
    """Call with one text at a time; the first call does not count."""
    times: list[float] = []
    read: list[int] = []
    until = time.perf_counter() + seconds
    while len(times) <= LEAST_CALLS or time.perf_counter() < until:
        text = texts.cut(tokens)
        began = time.perf_counter()
        answer = client.infer(name, [text], input_type=side, timeout=CALL_TIMEOUT)
        times.append((time.perf_counter() - began) * 1e3)
        read.append(answer.results[0].token_count)
    low, middle, high = statistics.quantiles(times[1:], n=4, method="inclusive")
    return Latency(low, middle, high, statistics.fmean(read[1:]), len(times) - 1)


def _throughput(client: Client, name: str, callers: int, seconds: float, texts: Texts) -> float:
    """Keep every allocation busy with documents; give documents a second."""
    begin = threading.Barrier(callers)

    def call() -> tuple[float, float, int]:
        begin.wait()
        done = 0
        began = time.perf_counter()
        while done == 0 or time.perf_counter() < began + seconds:
            batch = [texts.cut(DOCUMENT_TOKENS * 2) for _ in range(DOCUMENTS_A_CALL)]
            client.infer(name, batch, input_type="document", timeout=CALL_TIMEOUT)
            done += len(batch)
        return began, time.perf_counter(), done

    with ThreadPoolExecutor(callers) as pool:
        results = [future.result() for future in [pool.submit(call) for _ in range(callers)]]
    elapsed = max(end for _, end, _ in results) - min(began for began, _, _ in results)
    return sum(done for _, _, done in results) / elapsed
