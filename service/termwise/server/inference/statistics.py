"""What a deployment's texts came to: counts since the server's start, and figures of the last minute."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MINUTE = 60
"""Seconds of the window that the last minute's figures are of: the running one, and those before it."""


@dataclass(slots=True)
class Tally:
    """What happened since the last time that it was handed over. Counts are of texts.

    Args:
        arrivals: admitted, to be computed or answered at once.
        answered: out of the cache or by the model.
        hits: of those answered, those that the model did not run for.
        errors: that the model, or the worker, failed on.
        timeouts: not answered before their caller's deadline.
        rejected: refused since the queue was full.

    """

    arrivals: int = 0
    answered: int = 0
    hits: int = 0
    errors: int = 0
    timeouts: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class StatisticsView:
    """A deployment's figures at a moment. Counts are of texts; a time is 0.0 where there was no text to measure.

    The terms are those of Elasticsearch's trained-model statistics. `average_inference_seconds` is the model's time for
    a text: a batch's, shared by its texts, over all that were answered, those out of the cache included.
    `last_access` is when texts came last, by the clock on the wall. `arrivals` are the texts that were admitted, and
    `busy_seconds` the model's time so far, that of failed batches included, summed over allocations.
    """

    inference_count: int = 0
    cache_hit_count: int = 0
    cache_hit_count_last_minute: int = 0
    error_count: int = 0
    timeout_count: int = 0
    rejected_count: int = 0
    average_inference_seconds: float = 0.0
    average_inference_seconds_last_minute: float = 0.0
    average_inference_seconds_excluding_cache_hits: float = 0.0
    throughput_last_minute: int = 0
    peak_throughput_per_minute: int = 0
    last_access: datetime | None = None
    arrivals: int = 0
    busy_seconds: float = 0.0

    @property
    def cache_miss_count(self) -> int:
        """Texts that the model ran for."""
        return self.inference_count - self.cache_hit_count


@dataclass(slots=True)
class _Second:
    """What was answered in one second of the last minute."""

    number: int
    answered: int = 0
    hits: int = 0
    seconds: float = 0.0


class Statistics:
    """Counts what batchers tell it. It belongs to a deployment and outlives its batchers. Thread-safe.

    It is told once a call and once a batch, not once a text.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        """Begin with nothing; `clock` gives seconds that never go back, `wall` seconds since 1970."""
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._total = Tally()
        self._answer_seconds = self._busy_seconds = 0.0
        self._last_access: float | None = None
        # The seconds of the last minute in which anything was answered, and how much it was together.
        self._minute: deque[_Second] = deque()
        self._newest = _Second(-1)
        self._throughput = self._peak = 0

    def add(self, tally: Tally, now: float, seconds: float = 0.0) -> None:
        """Count what happened at `now`, by the clock, and clear the tally. `seconds` is the model's time for it."""
        with self._lock:
            total = self._total
            self._busy_seconds += seconds
            if tally.arrivals:
                total.arrivals += tally.arrivals
                tally.arrivals = 0
                self._last_access = now
            if tally.answered:
                total.answered += tally.answered
                total.hits += tally.hits
                self._answer_seconds += seconds
                self._add_second(tally, now, seconds)
                tally.answered = tally.hits = 0
            if tally.errors or tally.timeouts or tally.rejected:
                total.errors += tally.errors
                total.timeouts += tally.timeouts
                total.rejected += tally.rejected
                tally.errors = tally.timeouts = tally.rejected = 0

    def read(self, now: float | None = None) -> StatisticsView:
        """Give the figures at `now`, by the clock; None: as it stands."""
        now = self._clock() if now is None else now
        with self._lock:
            self._forget(int(now))
            total = self._total
            return StatisticsView(
                inference_count=total.answered,
                cache_hit_count=total.hits,
                cache_hit_count_last_minute=sum(second.hits for second in self._minute),
                error_count=total.errors,
                timeout_count=total.timeouts,
                rejected_count=total.rejected,
                average_inference_seconds=_share(self._answer_seconds, total.answered),
                average_inference_seconds_last_minute=_share(
                    sum(second.seconds for second in self._minute), self._throughput
                ),
                average_inference_seconds_excluding_cache_hits=_share(
                    self._answer_seconds, total.answered - total.hits
                ),
                throughput_last_minute=self._throughput,
                peak_throughput_per_minute=self._peak,
                last_access=self._on_the_wall(self._last_access),
                arrivals=total.arrivals,
                busy_seconds=self._busy_seconds,
            )

    def _add_second(self, tally: Tally, now: float, seconds: float) -> None:
        # One that tells it late, by another thread, counts in the newest second.
        if now >= self._newest.number + 1 or not self._minute:
            number = int(now)
            self._forget(number)
            self._newest = _Second(number)
            self._minute.append(self._newest)
        newest = self._newest
        newest.answered += tally.answered
        newest.hits += tally.hits
        newest.seconds += seconds
        self._throughput += tally.answered
        self._peak = max(self._peak, self._throughput)

    def _on_the_wall(self, moment: float | None) -> datetime | None:
        return None if moment is None else datetime.fromtimestamp(self._wall() - (self._clock() - moment), UTC)

    def _forget(self, number: int) -> None:
        """Drop the seconds that lie a minute before one."""
        while self._minute and self._minute[0].number <= number - MINUTE:
            self._throughput -= self._minute.popleft().answered


def _share(seconds: float, count: int) -> float:
    return seconds / count if count else 0.0
