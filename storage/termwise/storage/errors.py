"""Errors of the storage port. A backend raises no other, bugs aside."""

from __future__ import annotations


class StorageError(Exception):
    """Something that storage cannot do; the message is one sentence that says what to do."""


class IndexMissingError(StorageError):
    """There is no index of that name."""


class IndexExistsError(StorageError):
    """There is an index of that name."""


class SchemaError(StorageError):
    """A schema, field or leaf that the index cannot serve, such as BM25 of a sparse field."""


class InvalidDocumentError(StorageError):
    """A document that does not fit the schema or a limit of storage."""


class StorageLockedError(StorageError):
    """Another process holds the data folder."""


class StorageFormatError(StorageError):
    """The data folder is of a newer format, or broken."""


class StorageFullError(StorageError):
    """The disk is full. Nothing of the batch was written; it may be sent again."""


class BackendMissingError(StorageError):
    """No backend of that name is installed."""


class OperationError(StorageError):
    """Why one operation of a batch did nothing; the others are not touched."""

    def __init__(self, id_: str, message: str) -> None:
        """Name the document."""
        super().__init__(message)
        self.id = id_


class DocumentExistsError(OperationError):
    """A document that must not exist does."""


class DocumentMissingError(OperationError):
    """A document to delete does not exist."""


class VersionConflictError(OperationError):
    """The document's version is not the one that the operation names."""
