"""The Python client: `Client` and `AsyncClient`, their values and their errors.

>>> from termwise.client import Client
>>> client = Client("127.0.0.1:50051")
>>> client.indices.put_document("docs", {"text": "Salmon are farmed in sea cages."}, id="1")
>>> client.search("docs", "how is salmon farmed?").hits[0].id
'1'
"""

from termwise.client.aio import AsyncClient
from termwise.client.bulk import BulkFailure, BulkIndexError, BulkProgress, BulkReport
from termwise.client.errors import (
    AbortedError,
    AlreadyExistsError,
    CallCancelledError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    Resource,
    ResourceExhaustedError,
    TermwiseError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from termwise.client.retry import NO_RETRIES, RetryPolicy
from termwise.client.sync import DEFAULT_ADDRESS, Client
from termwise.client.types import (
    Create,
    Delete,
    Document,
    ExpandedText,
    Expansion,
    Hit,
    Inference,
    InferenceTimings,
    Operation,
    ProcessorError,
    Put,
    QueryExpansion,
    SearchResult,
    SearchTimings,
    Simulation,
    SimulationStep,
    SparseVector,
    WriteResult,
)
from termwise.client.uploads import UploadProgress

__all__ = [
    "DEFAULT_ADDRESS",
    "NO_RETRIES",
    "AbortedError",
    "AlreadyExistsError",
    "AsyncClient",
    "BulkFailure",
    "BulkIndexError",
    "BulkProgress",
    "BulkReport",
    "CallCancelledError",
    "Client",
    "Create",
    "DataLossError",
    "DeadlineExceededError",
    "Delete",
    "Document",
    "ExpandedText",
    "Expansion",
    "FailedPreconditionError",
    "FieldViolation",
    "Hit",
    "Inference",
    "InferenceTimings",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "Operation",
    "PermissionDeniedError",
    "ProcessorError",
    "Put",
    "QueryExpansion",
    "Resource",
    "ResourceExhaustedError",
    "RetryPolicy",
    "SearchResult",
    "SearchTimings",
    "Simulation",
    "SimulationStep",
    "SparseVector",
    "TermwiseError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UploadProgress",
    "WriteResult",
]
