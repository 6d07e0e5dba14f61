"""Why texts are not expanded: what their callers hear."""

from __future__ import annotations

from datetime import timedelta

from termwise.server.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)

# Bounds of the advice when to retry, in seconds.
_LEAST_RETRY = 0.05
_MOST_RETRY = 30.0


def no_text() -> InvalidArgumentError:
    """Refuse a call without texts."""
    return InvalidArgumentError("There is no text to expand; give at least one.", reason="NO_TEXT")


def too_many(count: int, capacity: int) -> InvalidArgumentError:
    """Refuse a call with more texts than the queue ever holds."""
    return InvalidArgumentError(
        f"{count} texts are more than the queue holds ({capacity}); send fewer in a call.",
        reason="TOO_MANY_TEXTS",
        metadata={"limit": str(capacity), "actual": str(count)},
    )


def full(waiting: int, capacity: int, seconds: float) -> ResourceExhaustedError:
    """Refuse a call that does not wait; `seconds` is when there may be room."""
    return ResourceExhaustedError(
        f"The deployment's queue is full ({waiting} of {capacity} texts wait); retry later.",
        reason="QUEUE_FULL",
        metadata={"limit": str(capacity), "actual": str(waiting)},
        retry_after=_advice(seconds),
    )


def late() -> DeadlineExceededError:
    """Give up on a call whose answer would come too late."""
    return DeadlineExceededError("The deadline passed before the texts were expanded; allow more time or send fewer.")


def closing() -> UnavailableError:
    """Refuse a call since the deployment stops."""
    return UnavailableError("The deployment is stopping; retry once it runs again.", reason="DEPLOYMENT_STOPPING")


def died(seconds: float) -> UnavailableError:
    """End a call whose batch its worker did not survive; another one comes in `seconds`."""
    return UnavailableError(
        "The worker that had these texts died, and another takes its place; retry.",
        reason="WORKER_DIED",
        retry_after=_advice(seconds),
    )


def broken(cause: BaseException) -> UnavailableError:
    """Refuse all calls, since no worker survives."""
    return UnavailableError(
        f"The deployment's workers die one after the other ({type(cause).__name__}); the server's log says more.",
        reason="WORKERS_DIED",
    )


def _advice(seconds: float) -> timedelta:
    return timedelta(seconds=min(max(seconds, _LEAST_RETRY), _MOST_RETRY))
