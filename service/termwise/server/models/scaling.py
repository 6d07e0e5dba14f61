"""Adaptive allocations: how many workers a load wants.

The rule is Elasticsearch's (its adaptive allocations): the load is the rate of texts times the time that one takes, in
workers that are busy all the time. There is a worker more where each would be busy over 0.9 of the time, and one less
where the others would be busy below 0.85 of it; after 15 minutes without a text there is none, where none is allowed.
Elasticsearch smooths both factors by Kalman filters; here each is a mean that forgets, quickly for the rate and slowly
for the time, which a model hardly changes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from termwise.server.inference.statistics import StatisticsView
    from termwise.server.models.requests import AdaptiveAllocations

SAMPLE_SECONDS: Final = 10.0
"""Time between two looks at a deployment."""
GROW_ABOVE: Final = 0.9
SHRINK_BELOW: Final = 0.85
IDLE_SECONDS: Final = 15 * 60.0
"""Time without a text after which a deployment may have no worker."""

_RATE_SECONDS: Final = 30.0
_TEXT_SECONDS: Final = 300.0
"""What is older than this weighs less than 1/e in the means."""


def wanted_allocations(load: float, current: int, limits: AdaptiveAllocations) -> int:
    """Give how many workers a load wants, from a number that there is, within the limits."""
    # The fewest that are not busy over GROW_ABOVE, and the most of which one less would not do; between them it stays.
    enough = math.ceil(load / GROW_ABOVE)
    worth = math.floor(load / SHRINK_BELOW) + 1
    return limits.clamp(min(max(current, enough), worth))


class Scaler:
    """Watches one deployment's figures, and says how many workers it wants. Times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        """Begin with no load."""
        self._last = now
        self._busy = now
        self._arrivals = self._answers = 0
        self._seconds = 0.0
        self._rate = 0.0
        self._text_seconds: float | None = None

    @property
    def load(self) -> float:
        """Workers that would be busy all the time."""
        return self._rate * (self._text_seconds or 0.0)

    def sample(self, now: float, figures: StatisticsView, pending: int) -> None:
        """Look at a deployment's figures; `pending` texts wait."""
        span = now - self._last
        if span <= 0:
            return
        arrivals = figures.arrivals - self._arrivals
        answers = figures.inference_count - self._answers
        seconds = figures.busy_seconds - self._seconds
        self._last, self._arrivals, self._answers = now, figures.arrivals, figures.inference_count
        self._seconds = figures.busy_seconds
        self._rate += (arrivals / span - self._rate) * _share(span, _RATE_SECONDS)
        if answers > 0:
            newest = seconds / answers
            before = newest if self._text_seconds is None else self._text_seconds
            self._text_seconds = before + (newest - before) * _share(span, _TEXT_SECONDS)
        if arrivals or pending:
            self._busy = now

    def wanted(self, now: float, current: int, limits: AdaptiveAllocations) -> int:
        """Give how many workers there should be; none after a while without a text, where the limits allow that."""
        if limits.fewest == 0 and now - self._busy >= IDLE_SECONDS:
            return 0
        if current == 0:  # asleep: the next text wakes it, not the memory of earlier ones
            return limits.fewest
        return wanted_allocations(self.load, current, limits)


def _share(span: float, seconds: float) -> float:
    """Give the part of a mean that the newest `span` seconds make up."""
    return 1.0 - math.exp(-span / seconds)
