"""The metadata store: SQLite in the data folder. It holds intent; storage backends hold documents.

Methods block for a disk's sync at most and may be called from any thread: on the event loop use `asyncio.to_thread`.
A write is durable when the method returns (WAL, synchronous=FULL).
"""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from termwise.server.errors import (
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    ResourceExhaustedError,
)
from termwise.server.metadata import tables
from termwise.server.metadata.records import AliasRecord, DeploymentRecord, IndexRecord, ModelRecord, PipelineRecord
from termwise.server.metadata.schema import bring_up_to_date

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import Connection

Record = TypeVar("Record", bound=ModelRecord | AliasRecord | DeploymentRecord | PipelineRecord | IndexRecord)

_BUSY_MS: Final = 10_000
"""Longest wait for SQLite's own lock; only a tool that reads the file meanwhile can hold it."""


class _Rows(Generic[Record]):
    """Reads and writes records of one table whose columns are the record's fields."""

    def __init__(self, table: sa.Table, record: type[Record]) -> None:
        self.table = table
        self.record = record
        (self.key,) = table.primary_key.columns
        self._names = [field.name for field in dataclasses.fields(record)]

    def values(self, record: Record) -> dict[str, object]:
        # Not dataclasses.asdict: it would copy JSON deeply.
        return {name: getattr(record, name) for name in self._names}

    def put(self, connection: Connection, record: Record) -> None:
        values = self.values(record)
        changes = {name: value for name, value in values.items() if name != self.key.name}
        connection.execute(
            insert(self.table).values(values).on_conflict_do_update(index_elements=[self.key], set_=changes)
        )

    def insert(self, connection: Connection, record: Record) -> bool:
        result = connection.execute(
            insert(self.table).values(self.values(record)).on_conflict_do_nothing(index_elements=[self.key])
        )
        return result.rowcount == 1

    def get(self, connection: Connection, key: str) -> Record | None:
        row = connection.execute(sa.select(self.table).where(self.key == key)).mappings().first()
        return None if row is None else self.record(**row)

    def page(self, connection: Connection, after: str, limit: int | None) -> list[Record]:
        query = sa.select(self.table).where(self.key > after).order_by(self.key).limit(limit)
        return [self.record(**row) for row in connection.execute(query).mappings()]

    def delete(self, connection: Connection, key: str) -> None:
        connection.execute(sa.delete(self.table).where(self.key == key))


_MODELS: Final = _Rows(tables.models, ModelRecord)
_ALIASES: Final = _Rows(tables.aliases, AliasRecord)
_DEPLOYMENTS: Final = _Rows(tables.deployments, DeploymentRecord)
_PIPELINES: Final = _Rows(tables.pipelines, PipelineRecord)
_INDICES: Final = _Rows(tables.indices, IndexRecord)


class MetadataStore:
    """What the operator wants: models, aliases, deployments, pipelines, indices, and what sparse fields are bound to.

    Lists are ordered by id (by UTF-8 bytes), from the one after `after`. Deleting what is absent does nothing.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, make it where it is absent, and bring its schema up to date.

        Raises:
            FailedPreconditionError: a newer release wrote it, it cannot be opened, or another program keeps it locked.
            DataLossError: it is no SQLite file, or broken.
            ResourceExhaustedError: the disk is full.

        """
        self._writing = threading.Lock()
        # AUTOCOMMIT: transactions are begun by hand below, since pysqlite's own begin too late for `IMMEDIATE` and DDL.
        self._engine = sa.create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT")
        sa.event.listen(self._engine, "connect", _prepare)
        try:
            with self._write() as connection:
                bring_up_to_date(connection, path)
        except sa.exc.OperationalError as error:
            self.close()
            raise FailedPreconditionError(
                f'Metadata file "{path}" cannot be used: {error.orig}. Close what else has it open, and see that '
                "the server may write it.",
                reason="METADATA_UNUSABLE",
            ) from error
        except sa.exc.DatabaseError as error:
            self.close()
            raise DataLossError(
                f'Metadata file "{path}" cannot be read; restore it from a backup of the data folder.',
                reason="METADATA_BROKEN",
            ) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """Run a block as one durable transaction; writers queue here rather than in SQLite, whose waits are polls."""
        with self._writing, _full_disk_named(), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                # SQLite itself rolls back where the disk is full; a second rollback would hide that error.
                if _in_transaction(connection):
                    connection.exec_driver_sql("ROLLBACK")
                raise

    def put_model(self, record: ModelRecord) -> None:
        """Write a model, new or not."""
        with self._write() as connection:
            _MODELS.put(connection, record)

    def insert_model(self, record: ModelRecord) -> bool:
        """Write a new model; False, and nothing written, where its id is taken."""
        with self._write() as connection:
            return _MODELS.insert(connection, record)

    def get_model(self, model_id: str) -> ModelRecord | None:
        """Give a model."""
        with self._engine.connect() as connection:
            return _MODELS.get(connection, model_id)

    def list_models(self, after: str = "", limit: int | None = None) -> list[ModelRecord]:
        """Give models by id."""
        with self._engine.connect() as connection:
            return _MODELS.page(connection, after, limit)

    def delete_model(self, model_id: str) -> None:
        """Remove a model and its aliases."""
        with self._write() as connection:
            connection.execute(sa.delete(tables.aliases).where(tables.aliases.c.model_id == model_id))
            _MODELS.delete(connection, model_id)

    def put_alias(self, record: AliasRecord) -> None:
        """Write an alias, new or not."""
        with self._write() as connection:
            _ALIASES.put(connection, record)

    def list_aliases(self, after: str = "", limit: int | None = None) -> list[AliasRecord]:
        """Give aliases by name."""
        with self._engine.connect() as connection:
            return _ALIASES.page(connection, after, limit)

    def delete_alias(self, alias: str) -> None:
        """Remove an alias."""
        with self._write() as connection:
            _ALIASES.delete(connection, alias)

    def put_deployment(self, record: DeploymentRecord) -> None:
        """Write a deployment, new or not."""
        with self._write() as connection:
            _DEPLOYMENTS.put(connection, record)

    def insert_deployment(self, record: DeploymentRecord) -> bool:
        """Write a new deployment; False, and nothing written, where its id is taken."""
        with self._write() as connection:
            return _DEPLOYMENTS.insert(connection, record)

    def get_deployment(self, deployment_id: str) -> DeploymentRecord | None:
        """Give a deployment."""
        with self._engine.connect() as connection:
            return _DEPLOYMENTS.get(connection, deployment_id)

    def list_deployments(self, after: str = "", limit: int | None = None) -> list[DeploymentRecord]:
        """Give deployments by id."""
        with self._engine.connect() as connection:
            return _DEPLOYMENTS.page(connection, after, limit)

    def delete_deployment(self, deployment_id: str) -> None:
        """Remove a deployment."""
        with self._write() as connection:
            _DEPLOYMENTS.delete(connection, deployment_id)

    def put_pipeline(self, record: PipelineRecord) -> None:
        """Write a pipeline, new or not."""
        with self._write() as connection:
            _PIPELINES.put(connection, record)

    def insert_pipeline(self, record: PipelineRecord) -> bool:
        """Write a new pipeline; False, and nothing written, where its id is taken."""
        with self._write() as connection:
            return _PIPELINES.insert(connection, record)

    def get_pipeline(self, pipeline_id: str) -> PipelineRecord | None:
        """Give a pipeline."""
        with self._engine.connect() as connection:
            return _PIPELINES.get(connection, pipeline_id)

    def list_pipelines(self, after: str = "", limit: int | None = None) -> list[PipelineRecord]:
        """Give pipelines by id."""
        with self._engine.connect() as connection:
            return _PIPELINES.page(connection, after, limit)

    def delete_pipeline(self, pipeline_id: str) -> None:
        """Remove a pipeline."""
        with self._write() as connection:
            _PIPELINES.delete(connection, pipeline_id)

    def put_index(self, record: IndexRecord) -> None:
        """Write an index, new or not."""
        with self._write() as connection:
            _INDICES.put(connection, record)

    def insert_index(self, record: IndexRecord) -> bool:
        """Write a new index; False, and nothing written, where its name is taken."""
        with self._write() as connection:
            return _INDICES.insert(connection, record)

    def get_index(self, name: str) -> IndexRecord | None:
        """Give an index."""
        with self._engine.connect() as connection:
            return _INDICES.get(connection, name)

    def list_indices(self, after: str = "", limit: int | None = None) -> list[IndexRecord]:
        """Give indices by name."""
        with self._engine.connect() as connection:
            return _INDICES.page(connection, after, limit)

    def delete_index(self, name: str) -> None:
        """Remove an index and the fingerprints of its fields."""
        with self._write() as connection:
            _INDICES.delete(connection, name)

    def bind_fingerprint(self, index: str, field: str, fingerprint: str) -> str:
        """Bind a sparse field to a fingerprint unless it has one, and give the one that it has now.

        `index` is the index's `storage_name`: an index made anew under an old name starts without any.

        Raises:
            NotFoundError: the index was deleted meanwhile.

        """
        table = tables.fingerprints
        values = {"storage_name": index, "field": field, "fingerprint": fingerprint}
        try:
            with self._write() as connection:
                connection.execute(insert(table).values(values).on_conflict_do_nothing())
                bound = connection.execute(
                    sa.select(table.c.fingerprint).where(table.c.storage_name == index, table.c.field == field)
                )
                return str(bound.scalar_one())
        except sa.exc.IntegrityError as error:
            raise NotFoundError("The index was deleted meanwhile.", reason="INDEX_NOT_FOUND") from error

    def fingerprints(self, index: str) -> dict[str, str]:
        """Give the fingerprints of an index (by `storage_name`), by field."""
        table = tables.fingerprints
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(table.c.field, table.c.fingerprint).where(table.c.storage_name == index)
            )
            return {row.field: row.fingerprint for row in rows}


def _prepare(connection: sqlite3.Connection, record: object) -> None:
    del record
    for pragma in (
        f"busy_timeout = {_BUSY_MS}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _in_transaction(connection: Connection) -> bool:
    driver = connection.connection.driver_connection
    return isinstance(driver, sqlite3.Connection) and driver.in_transaction


@contextmanager
def _full_disk_named() -> Iterator[None]:
    """Turn SQLite's word for a full disk into the domain's."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        # A journal that cannot grow is reported as an I/O error of a write rather than as SQLITE_FULL.
        if getattr(error.orig, "sqlite_errorcode", None) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}:
            raise ResourceExhaustedError(
                "The disk of the data folder is full; nothing was written. Make room and retry.", reason="DISK_FULL"
            ) from error
        raise
