"""The tables of the metadata store, as the newest migration leaves them (a test compares the two)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from termwise.server.metadata.records import IndexState, ModelState

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Moment(sa.types.TypeDecorator[datetime]):
    """An aware datetime as microseconds since 1970: SQLite has no type for one, and text would lose the zone."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Turn it into microseconds."""
        del dialect
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Turn it back."""
        del dialect
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class Strings(sa.types.TypeDecorator[tuple[str, ...]]):
    """A tuple of strings as a JSON list."""

    impl = sa.JSON
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> list[str] | None:
        """Turn it into a list."""
        del dialect
        return None if value is None else list(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> tuple[str, ...] | None:
        """Turn it back."""
        del dialect
        return None if value is None else tuple(value)


def _state(states: type[ModelState | IndexState]) -> sa.Enum:
    return sa.Enum(states, native_enum=False, length=16, create_constraint=False)


metadata: Final = sa.MetaData()

models: Final = sa.Table(
    "models",
    metadata,
    sa.Column("model_id", sa.String, primary_key=True),
    sa.Column("state", _state(ModelState), nullable=False),
    sa.Column("source_uri", sa.String, nullable=False),
    sa.Column("create_time", Moment, nullable=False),
    sa.Column("sha256", sa.String, nullable=False),
    sa.Column("description", sa.String, nullable=False),
    sa.Column("tags", Strings, nullable=False),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("fingerprint", sa.String, nullable=False),
    sa.Column("query_fingerprint", sa.String, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("architecture", sa.String, nullable=False),
    sa.Column("vocabulary_size", sa.BigInteger, nullable=False),
    sa.Column("error", sa.String, nullable=False),
    sa.Column("layout", sa.String, nullable=False, server_default=""),
    sa.Column("facts", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("package", sa.JSON(none_as_null=True), nullable=True),
)

aliases: Final = sa.Table(
    "aliases",
    metadata,
    sa.Column("alias", sa.String, primary_key=True),
    sa.Column("model_id", sa.String, nullable=False),
    sa.Column("create_time", Moment, nullable=False),
)

deployments: Final = sa.Table(
    "deployments",
    metadata,
    sa.Column("deployment_id", sa.String, primary_key=True),
    sa.Column("model_id", sa.String, nullable=False),
    sa.Column("number_of_allocations", sa.Integer, nullable=False),
    sa.Column("threads_per_allocation", sa.Integer, nullable=False),
    sa.Column("queue_capacity", sa.Integer, nullable=False),
    sa.Column("create_time", Moment, nullable=False),
    sa.Column("precision", sa.String, nullable=False, server_default=""),
    sa.Column("cache_size_bytes", sa.BigInteger, nullable=True),
    sa.Column("priority", sa.String, nullable=False, server_default="normal"),
    sa.Column("adaptive", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("min_number_of_allocations", sa.Integer, nullable=False, server_default="0"),
    sa.Column("max_number_of_allocations", sa.Integer, nullable=True),
)

pipelines: Final = sa.Table(
    "pipelines",
    metadata,
    sa.Column("pipeline_id", sa.String, primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("create_time", Moment, nullable=False),
    sa.Column("update_time", Moment, nullable=False),
)

indices: Final = sa.Table(
    "indices",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("state", _state(IndexState), nullable=False),
    sa.Column("storage_name", sa.String, nullable=False, unique=True),
    sa.Column("backend", sa.String, nullable=False),
    sa.Column("mapping", sa.JSON, nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("create_time", Moment, nullable=False),
)

fingerprints: Final = sa.Table(
    "fingerprints",
    metadata,
    sa.Column("storage_name", sa.String, sa.ForeignKey("indices.storage_name", ondelete="CASCADE"), primary_key=True),
    sa.Column("field", sa.String, primary_key=True),
    sa.Column("fingerprint", sa.String, nullable=False),
)
