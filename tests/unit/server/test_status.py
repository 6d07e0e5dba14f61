from __future__ import annotations

import errno
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from termwise.server import errors
from termwise.server.rpc.status import DOMAIN, TABLE, status_code, to_status
from termwise.storage import errors as storage

if TYPE_CHECKING:
    from google.protobuf.message import Message


def below(base: type[Exception]) -> list[type[Exception]]:
    """List all subclasses, theirs included."""
    return [kind for child in base.__subclasses__() for kind in [child, *below(child)]]


DOMAIN_ERRORS = below(errors.TermwiseError)
STORAGE_ERRORS = [kind for kind in below(storage.StorageError) if kind is not storage.OperationError]


def make(kind: type[Exception]) -> Exception:
    return kind("doc-1", "No.") if issubclass(kind, storage.OperationError) else kind("No.")


def details(status: status_pb2.Status) -> dict[str, Message]:
    found = {}
    for packed in status.details:
        name = packed.type_url.rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name)()
        assert packed.Unpack(found[name])
    return found


@pytest.mark.parametrize("kind", DOMAIN_ERRORS + STORAGE_ERRORS)
def test_every_error_class_has_its_own_row_code_and_reason(kind: type[Exception]) -> None:
    assert kind in TABLE
    status = to_status(make(kind))
    assert status_code(status) is TABLE[kind][0]
    assert status_code(status) not in {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
    assert status.message == "No."
    info = details(status)["ErrorInfo"]
    assert (info.reason, info.domain) == (TABLE[kind][1], DOMAIN)
    assert info.reason == info.reason.upper()


def test_the_table_holds_no_class_that_is_gone() -> None:
    assert set(TABLE) == set(DOMAIN_ERRORS + STORAGE_ERRORS)


@pytest.mark.parametrize("kind", DOMAIN_ERRORS + STORAGE_ERRORS)
def test_what_may_be_retried_says_when(kind: type[Exception]) -> None:
    status = to_status(make(kind))
    retried = status_code(status) in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
    assert ("RetryInfo" in details(status)) is retried
    if retried:
        assert details(status)["RetryInfo"].retry_delay.ToMilliseconds() == 1_000


def test_a_retry_delay_of_its_own_wins() -> None:
    status = to_status(errors.ResourceExhaustedError("Full.", retry_after=timedelta(milliseconds=20)))
    assert details(status)["RetryInfo"].retry_delay.ToMilliseconds() == 20


def test_a_missing_document_is_a_resource() -> None:
    info = details(to_status(storage.DocumentMissingError("doc-1", "No.")))["ResourceInfo"]
    assert (info.resource_type, info.resource_name) == ("document", "doc-1")


def test_an_invalid_field_is_named() -> None:
    status = to_status(errors.invalid_field("query.match.field", "There is no such field."))
    (violation,) = details(status)["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("query.match.field", "There is no such field.")
    assert details(status)["ErrorInfo"].reason == "INVALID_FIELD"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")]
)
def test_a_full_disk_is_resource_exhausted(error: OSError) -> None:
    status = to_status(error)
    assert status_code(status) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(status)["ErrorInfo"].reason == "DISK_FULL"
    assert "RetryInfo" in details(status)


def test_a_full_database_is_resource_exhausted() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 2")
    with pytest.raises(sqlite3.Error) as caught:
        connection.execute("CREATE TABLE t AS WITH RECURSIVE n(x) AS (VALUES (1) UNION SELECT x + 1 FROM n LIMIT 9999) "
                           "SELECT x FROM n")  # fmt: skip
    assert status_code(to_status(caught.value)) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "error", [ValueError("s3cret"), OSError(errno.EIO, "s3cret"), errors.TermwiseError("s3cret"), KeyError("s3cret")]
)
def test_anything_else_is_internal_and_tells_nothing_but_an_id(error: Exception) -> None:
    status = to_status(error)
    assert status_code(status) is grpc.StatusCode.INTERNAL
    assert "s3cret" not in str(status)
    assert details(status)["ErrorInfo"].metadata["error_id"] in status.message


@pytest.mark.parametrize("text", ["x" * 100_000, "ß" * 100_000, "\ud800" * 100_000, "\U0001f600" * 50_000])
def test_a_status_fits_in_headers_and_is_utf8(text: str) -> None:
    status = to_status(
        errors.NotFoundError(
            text,
            metadata={text: text},
            violations=[errors.FieldViolation(text, text)] * 50,
            resource=errors.Resource("index", text),
        )
    )
    # The message percent-encoded, and everything again in base64: below the 8 KiB that clients take.
    assert len(status.message.encode()) * 3 + len(status.SerializeToString()) * 4 / 3 < 8_000
    assert len(details(status)["BadRequest"].field_violations) >= 1
