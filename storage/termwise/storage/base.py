"""The storage port: what a backend does, and when.

The docstrings are the specification; `conformance` tests them.

A backend is an `IndexStore`: a folder (or a server) of indices. Methods block, are called from many threads, and
release the GIL where they work long. A write has one caller at a time an index; reads run beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from termwise.storage.types import (
        Condition,
        IndexSchema,
        IndexStatistics,
        Leaf,
        Operation,
        Outcome,
        Ranking,
        StoredDocument,
        TokenStatistics,
    )


class IndexReader(Protocol):
    """An index at one moment: writes after it was made do not show.

    Cheap to make; dropped when no longer referenced.
    """

    def get(self, ids: Sequence[str]) -> list[StoredDocument | None]:
        """Give documents by id, None where there is none, in the order of `ids`."""
        ...

    def fetch(
        self, seq_nos: NDArray[np.int64], *, source: bool = True, sparse: Collection[str] | None = None
    ) -> list[StoredDocument]:
        """Give documents that this reader ranked or matched, in the order of `seq_nos`.

        What is not asked for is not read: without `source` bodies are empty, and vectors (chunks too) are those of the
        fields in `sparse` (None: all).
        """
        ...

    def rank(self, leaf: Leaf, depth: int, where: Condition | None = None, *, count: int | None = None) -> Ranking:
        """Rank the documents that match `leaf` and `where`, and give the best `depth` (1 or more) of them.

        Ties go to the smaller seq_no, at the cut too. All matches are counted by default. With `count` (0 or more)
        they are counted as far as that: where at least so many match, `Ranking.total` may be any number between
        `count` and their true number, and `counted` is False. That lets a backend skip documents that cannot be among
        the best. A ranking of fewer than `depth` documents is always counted.

        Raises:
            SchemaError: the leaf's or a condition's field does not exist or is of another kind.
            ValueError: `depth` or `count` is out of range.

        """
        ...

    def score(self, leaf: Leaf, seq_nos: NDArray[np.int64]) -> NDArray[np.float32]:
        """Give the leaf's score of each document, NaN where it does not match; equal to what `rank` gives."""
        ...

    def match(self, where: Condition) -> NDArray[np.int64]:
        """Give the seq_nos of all documents that match, ascending. The array is shared: do not write to it."""
        ...

    def token_statistics(self, field: str, tokens: Sequence[str]) -> TokenStatistics:
        """Give the frequencies of tokens in a sparse field, by vectors: a document of two chunks counts twice."""
        ...

    def statistics(self) -> IndexStatistics:
        """Count the index."""
        ...


class SparseIndex(Protocol):
    """An open index."""

    @property
    def schema(self) -> IndexSchema:
        """The schema that it was created with."""
        ...

    def write(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Run operations in order, each seeing those before it, and give one outcome each.

        On return, those that worked are durable (they survive a kill -9 and a power cut) and visible to the next
        `reader`. seq_nos grow by operation over the life of the index, restarts included, and are never used twice. An
        operation that fails by itself (OperationError) comes back as its outcome and touches no other.

        Raises:
            InvalidDocumentError: a document does not fit the schema or a limit; nothing was written.
            StorageFullError: nothing was written; the index goes on, and the same batch may be written later.

        """
        ...

    def reader(self) -> IndexReader:
        """Give the index as of the last write."""
        ...

    def close(self) -> None:
        """Release files and threads. Readers may still finish. Closing twice is allowed."""
        ...


class IndexStore(Protocol):
    """A backend's indices."""

    def create(self, name: str, schema: IndexSchema) -> None:
        """Make an index, durably and as a whole: after a crash it is there or it is not.

        Raises:
            IndexExistsError: the name is taken.
            SchemaError: the schema cannot be served, such as an unknown analyzer.
            StorageFullError: the disk is full.

        """
        ...

    def open(self, name: str) -> SparseIndex:
        """Open an index; opening it again gives the same object.

        Raises:
            IndexMissingError: there is none.
            StorageLockedError: another process has it open.
            StorageFormatError: its files are of a newer format, or broken.

        """
        ...

    def list(self) -> list[str]:
        """Name the indices, sorted."""
        ...

    def drop(self, name: str) -> None:
        """Close an index and remove it. IndexMissingError where there is none."""
        ...

    def close(self) -> None:
        """Close every index."""
        ...


class Backend(Protocol):
    """What a `termwise.storage` entry point names: opens a store below a folder that is the backend's own."""

    def __call__(self, folder: Path) -> IndexStore:
        """Open the store. The folder exists, may be empty, and is held by this process alone."""
        ...
