"""From errors to gRPC statuses: the one table, and the `google.rpc` details that go with each.

A status travels in HTTP/2 headers, which peers limit to 8 KiB by default, so messages and details are bounded here.
"""

from __future__ import annotations

import errno
import secrets
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from termwise.server import errors
from termwise.storage import errors as storage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

DOMAIN: Final = "termwise"
"""`ErrorInfo.domain` of every error."""

DETAILS_KEY: Final = "grpc-status-details-bin"
"""Trailing metadata that carries a serialised `google.rpc.Status`, as in every gRPC implementation."""

Code = grpc.StatusCode

TABLE: Final[Mapping[type[Exception], tuple[grpc.StatusCode, str]]] = {
    # The reason is that of errors which carry none of their own: storage's.
    errors.InvalidArgumentError: (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    errors.NotFoundError: (Code.NOT_FOUND, "NOT_FOUND"),
    errors.AlreadyExistsError: (Code.ALREADY_EXISTS, "ALREADY_EXISTS"),
    errors.FailedPreconditionError: (Code.FAILED_PRECONDITION, "FAILED_PRECONDITION"),
    errors.AbortedError: (Code.ABORTED, "VERSION_CONFLICT"),
    errors.ResourceExhaustedError: (Code.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"),
    errors.UnavailableError: (Code.UNAVAILABLE, "UNAVAILABLE"),
    errors.DeadlineExceededError: (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    errors.PermissionDeniedError: (Code.PERMISSION_DENIED, "PERMISSION_DENIED"),
    errors.DataLossError: (Code.DATA_LOSS, "DATA_LOSS"),
    errors.UnimplementedError: (Code.UNIMPLEMENTED, "UNIMPLEMENTED"),
    storage.IndexMissingError: (Code.NOT_FOUND, "INDEX_NOT_FOUND"),
    storage.IndexExistsError: (Code.ALREADY_EXISTS, "INDEX_ALREADY_EXISTS"),
    storage.SchemaError: (Code.INVALID_ARGUMENT, "FIELD_NOT_SUITED"),
    storage.InvalidDocumentError: (Code.INVALID_ARGUMENT, "INVALID_DOCUMENT"),
    storage.StorageLockedError: (Code.FAILED_PRECONDITION, "STORAGE_LOCKED"),
    storage.StorageFormatError: (Code.FAILED_PRECONDITION, "STORAGE_FORMAT"),
    storage.StorageFullError: (Code.RESOURCE_EXHAUSTED, "DISK_FULL"),
    storage.BackendMissingError: (Code.FAILED_PRECONDITION, "STORAGE_BACKEND_MISSING"),
    storage.DocumentExistsError: (Code.ALREADY_EXISTS, "DOCUMENT_ALREADY_EXISTS"),
    storage.DocumentMissingError: (Code.NOT_FOUND, "DOCUMENT_NOT_FOUND"),
    storage.VersionConflictError: (Code.ABORTED, "VERSION_CONFLICT"),
}
"""Every error that may reach a caller: its code and reason. An error that is not here is a bug, and INTERNAL."""

_RETRIED: Final = frozenset({Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE})
_RETRY_AFTER: Final = timedelta(seconds=1)
"""RetryInfo of errors that name no delay of their own."""

_MESSAGE_BYTES: Final = 800
"""Longest message. It travels twice: percent-encoded (up to 3 bytes a byte) and in the details (base64)."""
_DETAIL_BYTES: Final = 300
"""Longest field path, description, metadata value or name in the details."""
_DETAILS_BYTES: Final = 2_400
"""Most bytes of all details; field violations beyond that are left out, the last ones first."""

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_log = structlog.get_logger()


def to_status(error: BaseException) -> status_pb2.Status:
    """Give the `google.rpc.Status` of an error.

    Anything unexpected becomes INTERNAL with an id; its traceback is logged under that id and shown to nobody.
    """
    if _disk_is_full(error):
        error = errors.ResourceExhaustedError(
            "The server's disk is full; make room on it and retry.", reason="DISK_FULL"
        )
    row = next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), None)
    if row is None:
        return _internal(error)
    code, reason = row
    if isinstance(error, errors.TermwiseError):
        return _status(
            code,
            error.message,
            error.reason_code,
            metadata=error.metadata,
            violations=error.violations,
            resource=error.resource,
            retry_after=error.retry_after,
        )
    resource = errors.Resource("document", error.id) if isinstance(error, storage.OperationError) else None
    return _status(code, str(error), reason, resource=resource)


def status_code(status: status_pb2.Status) -> grpc.StatusCode:
    """Give the code of a status as grpc's enum."""
    return _CODES[status.code]


_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def _disk_is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _internal(error: BaseException) -> status_pb2.Status:
    error_id = secrets.token_hex(8)
    _log.error("internal_error", error_id=error_id, exc_info=error)
    return _status(
        Code.INTERNAL,
        f"Internal error {error_id}; the server's log says more under that id.",
        "INTERNAL",
        metadata={"error_id": error_id},
    )


def _status(
    code: grpc.StatusCode,
    message: str,
    reason: str,
    *,
    metadata: Mapping[str, str] | None = None,
    violations: tuple[errors.FieldViolation, ...] = (),
    resource: errors.Resource | None = None,
    retry_after: timedelta | None = None,
) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    for key, value in (metadata or {}).items():
        info.metadata[_clip(key, 64)] = _clip(value, _DETAIL_BYTES)
    details: list[Message] = [info]
    if code in _RETRIED:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(_RETRY_AFTER if retry_after is None else retry_after)
        details.append(retry)
    if resource is not None:
        details.append(
            error_details_pb2.ResourceInfo(
                resource_type=resource.kind, resource_name=_clip(resource.name, _DETAIL_BYTES)
            )
        )
    left = _DETAILS_BYTES - sum(detail.ByteSize() for detail in details)
    if bad := _bad_request(violations, left):
        details.append(bad)
    status = status_pb2.Status(code=code.value[0], message=_clip(message, _MESSAGE_BYTES))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _bad_request(violations: tuple[errors.FieldViolation, ...], room: int) -> error_details_pb2.BadRequest | None:
    bad = error_details_pb2.BadRequest()
    for violation in violations:
        one = error_details_pb2.BadRequest.FieldViolation(
            field=_clip(violation.field, _DETAIL_BYTES), description=_clip(violation.description, _DETAIL_BYTES)
        )
        if bad.field_violations and bad.ByteSize() + one.ByteSize() > room:
            break
        bad.field_violations.append(one)
    return bad if violations else None


def _clip(text: str, size: int) -> str:
    """Shorten a text to `size` UTF-8 bytes; half a surrogate pair, which UTF-8 has no form for, becomes "?"."""
    data = text.encode("utf-8", "replace")
    if len(data) > size:
        data = data[: size - 3].decode("utf-8", "ignore").encode() + "…".encode()
    return data.decode("utf-8")
