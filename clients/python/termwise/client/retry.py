"""When a failed call is sent again, as plain arithmetic: no channel, no clock of its own.

Only calls that change nothing when they run twice are retried: reads, searches, inference, and writes of a document
under an explicit id. A call that may have had its effect (a create without an id, a delete, a start) never is.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from termwise.client.errors import ResourceExhaustedError, TermwiseError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how long apart. Delays grow exponentially, each drawn from its upper half (jitter).

    Attributes:
        attempts: Tries in all; 1 never retries.
        initial_delay: Longest delay before the second try, in seconds.
        multiplier: Growth of the delay from try to try.
        max_delay: Longest delay of all, in seconds. A server that asks for more (RetryInfo) is obeyed.
    """

    attempts: int = 5
    initial_delay: float = 0.1
    multiplier: float = 2.0
    max_delay: float = 5.0

    def patient(self) -> RetryPolicy:
        """Give the policy of a stream: twice the tries, so that it outlasts a restart of the server."""
        return self if self.attempts == 1 else replace(self, attempts=2 * self.attempts)

    def delay(self, error: TermwiseError, *, attempt: int, remaining: float, jitter: float) -> float | None:
        """Give the seconds to wait after try number `attempt` (from 1) failed; None: give up.

        `remaining` is the time to the deadline in seconds (infinite where there is none): a wait that would outlast it
        is not begun. `jitter` is a number from 0 to 1. UNAVAILABLE is retried; RESOURCE_EXHAUSTED only where the server
        says when (a message too large carries the same code, and never gets smaller).
        """
        if attempt >= self.attempts or not is_transient(error):
            return None
        ceiling = min(self.max_delay, self.initial_delay * self.multiplier ** (attempt - 1))
        delay = max(ceiling * (1 + jitter) / 2, error.retry_delay or 0.0)
        return delay if delay < remaining else None


NO_RETRIES = RetryPolicy(attempts=1)
"""Sends everything once."""


def unlimited(timeout: float | None) -> float:
    """Give a timeout in seconds, infinite where there is none."""
    return math.inf if timeout is None else timeout


def is_transient(error: TermwiseError) -> bool:
    """Whether the same call may work a little later."""
    return isinstance(error, UnavailableError) or (
        isinstance(error, ResourceExhaustedError) and error.retry_delay is not None
    )


@dataclass(slots=True)
class Attempts:
    """The tries of one call against one deadline. Shared by the synchronous and the asyncio client, which only sleep.

    Attributes:
        policy: How often, and how long apart.
        timeout: Seconds for all tries together; infinite: no deadline.
        clock: Gives monotonic seconds.
        jitter: Gives numbers from 0 to 1.
    """

    policy: RetryPolicy
    timeout: float = math.inf
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    _deadline: float = field(init=False)
    _count: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._deadline = self.clock() + self.timeout

    def remaining(self) -> float | None:
        """Give the next try's timeout in seconds, as gRPC takes it: None without a deadline."""
        return None if math.isinf(self._deadline) else max(0.0, self._deadline - self.clock())

    def delay_or_raise(self, error: TermwiseError, *, idempotent: bool) -> float:
        """Give the seconds to wait before the next try; raise `error` where there shall be none."""
        self._count += 1
        remaining = math.inf if (left := self.remaining()) is None else left
        delay = self.policy.delay(error, attempt=self._count, remaining=remaining, jitter=self.jitter())
        if delay is None or not idempotent:
            raise error
        return delay

    def progressed(self) -> None:
        """Count tries from the start again: the last one got somewhere (a stream that moved)."""
        self._count = 0
