"""The bookkeeping of a bulk stream: what was sent, what was acknowledged, what has to be sent again. It does no I/O.

Writes go out while at most `WINDOW` of them (or `WINDOW_BYTES`) wait for their acknowledgement, so neither side ever
holds more than that. When the connection breaks, writes that may run twice go out again, in their order; those that may
not are reported as failures, because nobody knows whether they happened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from termwise.client.errors import InvalidArgumentError, TermwiseError, UnavailableError
from termwise.client.messages import is_repeatable, operation_message, write_result
from termwise.client.parsing import invalid
from termwise.v1 import indices_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from termwise.client.types import Document, JsonObject, Operation

WINDOW = 1_024
"""Most writes without acknowledgement: enough to fill the server's batches, few enough to resend."""
WINDOW_BYTES = 16 << 20
"""Most bytes of writes without acknowledgement; one larger write goes alone."""
ENVELOPE_BYTES = 1_024
"""Room left in a message for what surrounds an operation."""


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """How far a bulk write is: operations taken from the input, and of those acknowledged and failed."""

    taken: int
    acknowledged: int
    failed: int


@dataclass(frozen=True, slots=True)
class BulkFailure:
    """An operation that failed.

    Attributes:
        position: Its place in the input, from 0.
        id: The document's id; empty where it has none.
        error: Why.
    """

    position: int
    id: str
    error: TermwiseError


@dataclass(frozen=True, slots=True)
class BulkReport:
    """What became of a bulk write: how many documents it created, updated and deleted, and what failed."""

    created: int
    updated: int
    deleted: int
    failures: tuple[BulkFailure, ...]

    @property
    def succeeded(self) -> int:
        """How many operations worked."""
        return self.created + self.updated + self.deleted


class BulkIndexError(TermwiseError):
    """Operations of a bulk write failed, or the stream broke for good; `report` says what worked and what did not."""

    def __init__(self, message: str, report: BulkReport, cause: TermwiseError) -> None:
        """Keep the report; code, reason and details are those of `cause`, the first failure."""
        super().__init__(
            message,
            code=cause.code,
            reason=cause.reason,
            metadata=cause.metadata,
            field_violations=cause.field_violations,
            resource=cause.resource,
            retry_delay=cause.retry_delay,
        )
        self.report = report


@dataclass(slots=True)
class _Pending:
    position: int
    request: pb.BulkIndexRequest
    size: int


@dataclass(slots=True)
class BulkSession:
    """One bulk write over as many connections as it takes.

    Attributes:
        index: The index.
        pipeline: The pipeline of operations that name none.
        max_message_bytes: Larger operations fail on their own instead of breaking the stream.
        on_progress: Called after every operation that is done with.
    """

    index: str
    pipeline: str = ""
    max_message_bytes: int = 32 << 20
    on_progress: Callable[[BulkProgress], None] | None = None
    _taken: int = 0
    _pending: dict[str, _Pending] = field(default_factory=dict)
    _pending_bytes: int = 0
    _counts: dict[str, int] = field(default_factory=lambda: {"created": 0, "updated": 0, "deleted": 0})
    _failures: list[BulkFailure] = field(default_factory=list)

    @property
    def method(self) -> str:
        """The call that it is."""
        return "Indices/BulkIndex"

    def opening(self) -> pb.BulkIndexRequest:
        """Give the first message of every connection."""
        return pb.BulkIndexRequest(defaults=pb.BulkIndexRequest.Defaults(index=self.index, pipeline=self.pipeline))

    def take(self, item: Operation | Document | JsonObject) -> pb.BulkIndexRequest | None:
        """Give the message that sends one operation; None where it failed before being sent (it is no document)."""
        position = self._taken
        self._taken += 1
        try:
            operation = operation_message(item, f"operations[{position}]")
            size = operation.ByteSize()
            if size + ENVELOPE_BYTES > self.max_message_bytes:
                raise invalid(
                    f"operations[{position}]", f"{size} bytes are more than a message of {self.max_message_bytes} holds"
                )
        except InvalidArgumentError as error:
            self._fail(position, _claimed_id(item), error)
            return None
        operation.operation_id = str(position)
        request = pb.BulkIndexRequest(operation=operation)
        self._pending[operation.operation_id] = _Pending(position, request, size)
        self._pending_bytes += size
        return request

    @property
    def full(self) -> bool:
        """Whether acknowledgements have to come before more is sent."""
        return len(self._pending) >= WINDOW or self._pending_bytes >= WINDOW_BYTES

    @property
    def pending_count(self) -> int:
        """How many operations wait for their acknowledgement."""
        return len(self._pending)

    def acknowledge(self, response: pb.BulkIndexResponse) -> None:
        """Take one acknowledgement in. Raises TermwiseError where it belongs to nothing that was sent."""
        pending = self._pending.pop(response.operation_id, None)
        if pending is None:
            raise TermwiseError(f'The server acknowledged "{response.operation_id}", which is not waiting for it.')
        self._pending_bytes -= pending.size
        result = write_result(response)
        if result.error is not None:
            self._fail(pending.position, result.id or _id_of(pending.request.operation), result.error)
            return
        self._counts[result.result or "updated"] += 1
        self._report()

    def resume(self) -> list[pb.BulkIndexRequest]:
        """Give what has to be sent again over a new connection, in order; what must not run twice fails here."""
        for key, pending in list(self._pending.items()):
            if not is_repeatable(pending.request.operation):
                del self._pending[key]
                self._pending_bytes -= pending.size
                error = UnavailableError(
                    "The connection broke before the acknowledgement; read the document to see whether it was written.",
                    reason="OUTCOME_UNKNOWN",
                )
                self._fail(pending.position, _id_of(pending.request.operation), error)
        return [pending.request for pending in self._pending.values()]

    def give_up(self, error: TermwiseError) -> BulkIndexError:
        """Give the error of a stream that broke for good; whatever waits for its acknowledgement has failed."""
        for pending in self._pending.values():
            self._failures.append(BulkFailure(pending.position, _id_of(pending.request.operation), error))
        self._pending.clear()
        self._pending_bytes = 0
        return BulkIndexError(f"The bulk stream broke: {error.message}", self.report(), error)

    def report(self) -> BulkReport:
        """Give what became of everything so far."""
        failures = tuple(sorted(self._failures, key=lambda failure: failure.position))
        return BulkReport(**self._counts, failures=failures)

    def conclude(self, *, raise_on_failure: bool) -> BulkReport:
        """Give the report of a stream that ended. Raises BulkIndexError where something failed, if asked to."""
        report = self.report()
        if report.failures and raise_on_failure:
            first = report.failures[0]
            raise BulkIndexError(
                f"{len(report.failures)} of {self._taken} operations failed; the first, "
                f'"{first.id}": {first.error.message}',
                report,
                first.error,
            )
        return report

    def _fail(self, position: int, identifier: str, error: TermwiseError) -> None:
        self._failures.append(BulkFailure(position, identifier, error))
        self._report()

    def _report(self) -> None:
        if self.on_progress is not None:
            failed = len(self._failures)
            done = sum(self._counts.values()) + failed
            self.on_progress(BulkProgress(taken=self._taken, acknowledged=done, failed=failed))


def check_items(items: object) -> None:
    """Refuse what is surely a mistake: one document where many are expected."""
    if isinstance(items, dict | str | bytes):
        raise invalid("documents", f"expected many documents, got one {type(items).__name__}")


def _id_of(operation: pb.IndexOperation) -> str:
    match operation.WhichOneof("kind"):
        case "put":
            return operation.put.document.id
        case "create":
            return operation.create.document.id
        case _:
            return operation.delete.id


def _claimed_id(item: object) -> str:
    """Give the id of something that could not be written as an operation, as far as it has one."""
    document = getattr(item, "document", item)
    found = document.get("id", "") if isinstance(document, dict) else getattr(document, "id", "")
    return found if isinstance(found, str) else ""
