"""The schema of the metadata file: which version it has, and how it gets today's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from termwise.server.errors import FailedPreconditionError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_MIGRATIONS: Final = Path(__file__).parent / "migrations"


def known_versions() -> list[str]:
    """Give the versions that this release knows, oldest first: what the files of the migrations are named by."""
    return sorted(file.name.partition("_")[0] for file in (_MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def bring_up_to_date(connection: Connection, path: Path) -> None:
    """Give a file today's schema; Alembic, which takes a tenth of a second to import, is asked only where it has not.

    Args:
        connection: inside a transaction; the caller commits it.
        path: the file, for the error.

    Raises:
        FailedPreconditionError: a newer release wrote it.

    """
    known, found = known_versions(), _version(connection)
    if found == known[-1]:
        return
    if found is not None and found not in known:
        raise FailedPreconditionError(
            f'Metadata file "{path}" has schema version {found}, this server knows up to {known[-1]}; '
            "start a newer release.",
            reason="METADATA_TOO_NEW",
            metadata={"schema_version": found, "known_schema_version": known[-1]},
        )
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _version(connection: Connection) -> str | None:
    """Read the version that Alembic has left; None in a new file."""
    tables = connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'")
    if tables.first() is None:
        return None
    row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
    return None if row is None else str(row[0])
