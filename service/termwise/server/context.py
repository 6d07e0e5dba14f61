"""What every use case knows of the call that it serves, and the one place that decides whether it may."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The caller, the call's id, and when the caller stops waiting (`time.monotonic` seconds; None: never)."""

    request_id: str
    principal: str = "anonymous"
    deadline: float | None = None
    trace_parent: str = ""

    def remaining(self) -> float | None:
        """Give the seconds until the deadline, negative once it has passed; None where there is none."""
        return None if self.deadline is None else self.deadline - time.monotonic()


def authorize(context: RequestContext, action: str, resource: str) -> None:
    """Raise PermissionDeniedError where the principal may not do `action` to `resource`.

    An action is such as "indices.write", a resource such as "index/docs". There are no keys yet, so
    everybody may do everything; every servicer method asks all the same.
    """
    del context, action, resource
