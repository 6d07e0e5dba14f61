"""Adaptive allocations: how many workers a load wants.

The rule is Elasticsearch's (its adaptive allocations): the load is the rate of texts times the time that one takes, in
workers that are busy all the time. There is a worker more where each would be busy over 0.9 of the time, and one less
where the others would be busy below 0.85 of it; after 15 minutes without a text there is none, where none is allowed.
As there, each of the two factors is followed by a Kalman filter; a worker is added for what the load is at least, and
taken away for what it is at most, so that chance alone moves nothing.
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

_SMOOTHING: Final = 100
"""Samples that an estimate remembers while nothing changes: about the last 15 minutes."""
_CHANGE: Final = 3.0
"""Standard deviations between an estimate and a sample beyond which the sample is no chance."""
_CHANGED_SAMPLES: Final = 2
"""Samples in a row, all above or all below, that make a change. Elasticsearch believes one; by chance there is one an
hour, and two in a month."""


def wanted_allocations(at_least: float, at_most: float, current: int, limits: AdaptiveAllocations) -> int:
    """Give how many workers there should be, from a number that there is, within the limits.

    Args:
        at_least: the load below which it hardly is, in workers that are busy all the time.
        at_most: the load above which it hardly is; no less than `at_least`.
        current: how many there are, at least one.
        limits: the fewest and the most.

    """
    # The fewest that are not busy over GROW_ABOVE, and the most of which one less would not do; between them it stays.
    enough = math.ceil(at_least / GROW_ABOVE)
    worth = math.floor(at_most / SHRINK_BELOW) + 1
    return limits.clamp(min(max(current, enough), worth))


class Estimate:
    """What a figure is that samples show with noise: a Kalman filter of one dimension that notices changes."""

    def __init__(self) -> None:
        """Know nothing: 0, and no doubt about it."""
        self.value = 0.0
        self.deviation = 0.0
        self._is_new = True
        # Samples in a row that chance does not explain; negative where they lie below.
        self._surprises = 0

    def add(self, sample: float, variance: float) -> None:
        """Take a sample, and the variance of its noise (over 0)."""
        if self._is_new:
            self.value, self.deviation, self._is_new = sample, math.sqrt(variance), False
            return
        before = self.deviation**2
        off = sample - self.value
        if abs(off) <= _CHANGE * math.sqrt(before + variance):
            self._surprises = 0
        elif (off > 0) == (self._surprises > 0):
            self._surprises += 1 if off > 0 else -1
        else:
            self._surprises = 1 if off > 0 else -1
        drift = before / _SMOOTHING
        if abs(self._surprises) >= _CHANGED_SAMPLES:
            # It is elsewhere now, as far off as the sample says.
            drift = off**2
            self._surprises = 0
        predicted = before + drift
        gain = predicted / (predicted + variance)
        self.value += gain * off
        self.deviation = math.sqrt((1.0 - gain) * predicted)

    @property
    def lower(self) -> float:
        """What it is at least, but for chance."""
        return max(0.0, self.value - self.deviation)

    @property
    def upper(self) -> float:
        """What it is at most, but for chance."""
        return self.value + self.deviation


class Scaler:
    """Watches one deployment's figures, and says how many workers it wants. Times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        """Begin with no load."""
        self._last = now
        self._busy = now
        self._arrivals = self._answers = 0
        self._seconds = 0.0
        self._rate = Estimate()
        self._text_seconds = Estimate()

    @property
    def load(self) -> float:
        """Workers that would be busy all the time."""
        return self._rate.value * self._text_seconds.value

    def sample(self, now: float, figures: StatisticsView, pending: int) -> None:
        """Look at a deployment's figures; `pending` texts wait."""
        span = now - self._last
        if span <= 0:
            return
        # Texts that found no room in the queue are a load too.
        asked = figures.arrivals + figures.rejected_count
        arrivals = asked - self._arrivals
        answers = figures.inference_count - self._answers
        seconds = figures.busy_seconds - self._seconds
        self._last, self._arrivals, self._answers = now, asked, figures.inference_count
        self._seconds = figures.busy_seconds
        # Arrivals scatter as a Poisson process does: their variance is their mean.
        expected = max(1.0, (self._rate.value or arrivals / span) * span)
        self._rate.add(arrivals / span, expected / span**2)
        if answers > 0 and seconds > 0:
            # Times of texts scatter about as much as they are long.
            typical = self._text_seconds.value or seconds / answers
            self._text_seconds.add(seconds / answers, typical**2 / answers)
        if arrivals or pending:
            self._busy = now

    def note_work(self, now: float) -> None:
        """Take it that there is work, although none has arrived where it is counted."""
        self._busy = now

    def wanted(self, now: float, current: int, limits: AdaptiveAllocations) -> int:
        """Give how many workers there should be; none after a while without a text, where the limits allow that."""
        if limits.fewest == 0 and now - self._busy >= IDLE_SECONDS:
            return 0
        if current == 0:  # asleep: the next text wakes it, not the memory of earlier ones
            return limits.fewest
        at_least = self._rate.lower * self._text_seconds.lower
        at_most = self._rate.upper * self._text_seconds.upper
        return wanted_allocations(at_least, at_most, current, limits)
