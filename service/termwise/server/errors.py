"""Errors of the domain. They know nothing of gRPC: `rpc.status` holds the one table that maps them.

An error's message is one short English sentence that says what to do. `reason` is its stable name in UPPER_SNAKE case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import timedelta
    from typing import Self


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A request field that cannot be used: its path, such as `query.boolean.should[0].match.field`, and why."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Resource:
    """What an error is about: `kind` is "model", "deployment", "pipeline", "index" or "document"."""

    kind: str
    name: str


class TermwiseError(Exception):
    """Base of all. Raise a subclass."""

    reason: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[FieldViolation] = (),
        resource: Resource | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        """Say what is wrong, and what to do."""
        super().__init__(message)
        self.message = message
        self.reason_code = reason or type(self).reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.resource = resource
        self.retry_after = retry_after

    @property
    def sentence(self) -> str:
        """The message without the field that `invalid_field` puts before it."""
        for each in self.violations:
            if self.message == f"{each.field}: {each.description}":
                return each.description
        return self.message

    def in_terms_of(
        self, message: str, violations: Iterable[FieldViolation], metadata: Mapping[str, str] | None = None
    ) -> Self:
        """Give the same error as the caller of another layer should see it.

        `violations` replace those there are, which name fields of a request that this caller did not make; `metadata`
        is added.
        """
        return type(self)(
            message,
            reason=self.reason_code,
            metadata={**self.metadata, **(metadata or {})},
            violations=violations,
            resource=self.resource,
            retry_after=self.retry_after,
        )


class InvalidArgumentError(TermwiseError):
    """The request cannot work, whatever the server's state."""

    reason = "INVALID_ARGUMENT"


class NotFoundError(TermwiseError):
    """What the request names does not exist."""

    reason = "NOT_FOUND"


class AlreadyExistsError(TermwiseError):
    """What the request makes exists."""

    reason = "ALREADY_EXISTS"


class FailedPreconditionError(TermwiseError):
    """Something else must be done first."""

    reason = "FAILED_PRECONDITION"


class AbortedError(TermwiseError):
    """Somebody else was faster; read again and retry."""

    reason = "VERSION_CONFLICT"


class ResourceExhaustedError(TermwiseError):
    """A queue or a disk is full; retry later."""

    reason = "RESOURCE_EXHAUSTED"


class UnavailableError(TermwiseError):
    """A peer is gone or the server is stopping; retry."""

    reason = "UNAVAILABLE"


class DeadlineExceededError(TermwiseError):
    """The call's deadline passed."""

    reason = "DEADLINE_EXCEEDED"


class PermissionDeniedError(TermwiseError):
    """The principal may not do that."""

    reason = "PERMISSION_DENIED"


class DataLossError(TermwiseError):
    """Stored data cannot be read."""

    reason = "DATA_LOSS"


class UnimplementedError(TermwiseError):
    """The backend cannot do that."""

    reason = "UNIMPLEMENTED"


def invalid_field(field: str, description: str, *, reason: str | None = None) -> InvalidArgumentError:
    """Make the error for one bad request field.

    `description` is a sentence; it is the message too, the field before it.
    """
    return InvalidArgumentError(
        f"{field}: {description}", reason=reason or "INVALID_FIELD", violations=[FieldViolation(field, description)]
    )


def not_found(kind: str, name: str, known: Iterable[str] = (), *, field: str = "", hint: str = "") -> NotFoundError:
    """Make the error for an absent resource, with the nearest known name where one is close.

    `field` is the request field that names it; `hint` is a sentence to add.
    """
    import difflib  # noqa: PLC0415 - only on this path

    near = difflib.get_close_matches(name, list(known), n=1)
    tail = f'; did you mean "{near[0]}"?' if near else "."
    message = f'{kind.capitalize()} "{name}" does not exist{tail}'
    return NotFoundError(
        f"{message} {hint}".rstrip(),
        reason=f"{kind.upper()}_NOT_FOUND",
        metadata={kind: name},
        violations=[FieldViolation(field, f"no such {kind}")] if field else [],
        resource=Resource(kind, name),
    )


def already_exists(kind: str, name: str, *, hint: str = "") -> AlreadyExistsError:
    """Make the error for a name that is taken."""
    return AlreadyExistsError(
        f'{kind.capitalize()} "{name}" already exists. {hint}'.rstrip(),
        reason=f"{kind.upper()}_ALREADY_EXISTS",
        metadata={kind: name},
        resource=Resource(kind, name),
    )
