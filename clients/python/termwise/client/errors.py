"""What can go wrong with a call: one class a kind, all under `TermwiseError`.

The server sends every error as a gRPC status with `google.rpc` details; they are decoded here, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata key of the serialised `google.rpc.Status` (the gRPC "richer error model")."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request that cannot be used: its path, such as `query.match.field`, and why."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Resource:
    """What an error is about: `kind` is "model", "deployment", "pipeline", "index" or "document"."""

    kind: str
    name: str


class TermwiseError(Exception):
    """A call failed.

    Attributes:
        code: The gRPC status code.
        message: One sentence that says what is wrong and what to do.
        reason: The error's stable name in UPPER_SNAKE case; empty where the server did not send one.
        metadata: Key-values that belong to the reason.
        field_violations: The fields of the request that cannot be used.
        resource: What does not exist, or exists already; None where the error is about something else.
        retry_delay: Seconds after which the server expects a retry to work; None where it did not say.
    """

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        field_violations: Iterable[FieldViolation] = (),
        resource: Resource | None = None,
        retry_delay: float | None = None,
    ) -> None:
        """Keep what the status said."""
        super().__init__(message)
        self.message = message
        self.code = code or type(self).default_code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.field_violations = tuple(field_violations)
        self.resource = resource
        self.retry_delay = retry_delay


class CallCancelledError(TermwiseError):
    """The call was cancelled, by this side or the other."""

    default_code = grpc.StatusCode.CANCELLED


class InvalidArgumentError(TermwiseError):
    """The request cannot work; `field_violations` name what is wrong with it. Raised before sending, too."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(TermwiseError):
    """What the request names does not exist."""

    default_code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(TermwiseError):
    """What the request makes exists."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(TermwiseError):
    """Something else must be done first; the message says what."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class AbortedError(TermwiseError):
    """Somebody else was faster (`if_version` does not match); read again and retry."""

    default_code = grpc.StatusCode.ABORTED


class ResourceExhaustedError(TermwiseError):
    """A queue or a disk is full, or a message too large; `retry_delay` says when to retry."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(TermwiseError):
    """The server cannot be reached, or is stopping."""

    default_code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceededError(TermwiseError):
    """The call took longer than its timeout."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class PermissionDeniedError(TermwiseError):
    """This caller may not do that."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class UnauthenticatedError(TermwiseError):
    """The server does not know who calls."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class UnimplementedError(TermwiseError):
    """The server, or the storage backend of the index, cannot do that."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class DataLossError(TermwiseError):
    """Stored data cannot be read."""

    default_code = grpc.StatusCode.DATA_LOSS


class InternalError(TermwiseError):
    """A fault of the server; the message carries the id under which its log tells more."""

    default_code = grpc.StatusCode.INTERNAL


_BY_CODE: dict[grpc.StatusCode, type[TermwiseError]] = {
    kind.default_code: kind for kind in TermwiseError.__subclasses__()
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def status_code(number: int) -> grpc.StatusCode:
    """Give the status code of a number; UNKNOWN where there is none."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def error_from_status(status: status_pb2.Status) -> TermwiseError:
    """Give the error that a `google.rpc.Status` describes: a call's, or that of one operation among many."""
    code = status_code(status.code)
    reason, metadata, resource, retry_delay = "", {}, None, None
    violations: list[FieldViolation] = []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            violations += [FieldViolation(each.field, each.description) for each in bad.field_violations]
        elif detail.Is(error_details_pb2.ResourceInfo.DESCRIPTOR):
            about = error_details_pb2.ResourceInfo.FromString(detail.value)
            resource = Resource(about.resource_type, about.resource_name)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            retry_delay = delay.seconds + delay.nanos / 1e9
    return _BY_CODE.get(code, TermwiseError)(
        status.message or code.name,
        code=code,
        reason=reason,
        metadata=metadata,
        field_violations=violations,
        resource=resource,
        retry_delay=retry_delay,
    )


def error_from_rpc(error: grpc.RpcError) -> TermwiseError:
    """Give the error of a failed call of grpc or grpc.aio. Details that cannot be decoded are left out."""
    code = error.code()
    trailing: Any = error.trailing_metadata() or ()  # pairs, of another type in grpc.aio
    details = next((value for key, value in trailing if key == DETAILS_KEY), b"")
    try:
        status = status_pb2.Status.FromString(details if isinstance(details, bytes) else details.encode())
    except DecodeError:
        status = status_pb2.Status()
    # A proxy may have replaced the code and the message, not the details: the status line is what counts.
    status.code = code.value[0]
    status.message = error.details() or status.message
    return error_from_status(status)
