from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from termwise.server.errors import DataLossError, FailedPreconditionError, NotFoundError, ResourceExhaustedError
from termwise.server.metadata import schema, tables
from termwise.server.metadata.records import (
    AliasRecord,
    DeploymentRecord,
    IndexRecord,
    IndexState,
    ModelRecord,
    ModelState,
    PipelineRecord,
)
from termwise.server.metadata.store import MetadataStore

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2024, 2, 29, 12, 30, 15, 123457, tzinfo=UTC)
MODEL = ModelRecord(
    "m",
    ModelState.READY,
    "file:///m",
    NOW,
    sha256="ab",
    description='"ä"',
    tags=("a", "b"),
    config={"max_tokens": 3, "truncate": False, "min_weight": 0.5},
    metadata={"k": "v"},
    fingerprint="sha256:1",
    query_fingerprint="sha256:2",
    size_bytes=2**40,
    architecture="BertForMaskedLM",
    vocabulary_size=30_522,
)
DEPLOYMENT = DeploymentRecord("d", "m", 2, 1, 64, NOW, "int8", 4096)
PIPELINE = PipelineRecord("p", {"processors": [{"set": {"field": "a", "value": None}}]}, NOW, NOW)
INDEX = IndexRecord("i", IndexState.READY, "i-1", "tantivy", {"properties": {"a": {"text": {}}}}, {}, NOW)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MetadataStore]:
    opened = MetadataStore(tmp_path / "metadata.sqlite")
    yield opened
    opened.close()


KINDS = [
    ("model", "models", MODEL, "model_id", {"state": ModelState.FAILED, "tags": ()}),
    ("deployment", "deployments", DEPLOYMENT, "deployment_id", {"queue_capacity": 1}),
    ("pipeline", "pipelines", PIPELINE, "pipeline_id", {"body": {}}),
    ("index", "indices", INDEX, "name", {"state": IndexState.DELETING}),
]


@pytest.mark.parametrize(("kind", "kinds", "record", "key", "change"), KINDS)
def test_records_come_back_as_they_were(store, kind, kinds, record, key, change) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    name = getattr(record, key)
    get, put, insert = (getattr(store, f"{verb}_{kind}") for verb in ("get", "put", "insert"))
    assert get(name) is None
    assert insert(record)
    assert get(name) == record
    assert not insert(replace(record, **change))
    assert get(name) == record
    put(replace(record, **change))
    assert get(name) == replace(record, **change)
    assert getattr(store, f"list_{kinds}")() == [replace(record, **change)]
    getattr(store, f"delete_{kind}")(name)
    assert get(name) is None
    getattr(store, f"delete_{kind}")(name)


def test_lists_are_by_id_and_in_pages(store: MetadataStore) -> None:
    for name in ("b", "a", "_", "c", ".x", "a-1"):
        store.put_model(replace(MODEL, model_id=name))
    assert [m.model_id for m in store.list_models()] == [".x", "_", "a", "a-1", "b", "c"]
    assert [m.model_id for m in store.list_models("a", 2)] == ["a-1", "b"]
    assert store.list_models("c") == []


def test_a_reopened_store_holds_what_was_written(tmp_path: Path) -> None:
    first = MetadataStore(tmp_path / "m.sqlite")
    first.put_index(INDEX)
    first.bind_fingerprint("i-1", "f", "x")
    first.close()
    second = MetadataStore(tmp_path / "m.sqlite")
    assert second.list_indices() == [INDEX]
    assert second.fingerprints("i-1") == {"f": "x"}
    second.close()


def test_the_first_fingerprint_stays_until_the_index_goes(store: MetadataStore) -> None:
    store.put_index(INDEX)
    assert store.bind_fingerprint("i-1", "f", "x") == "x"
    assert store.bind_fingerprint("i-1", "f", "y") == "x"
    assert store.bind_fingerprint("i-1", "g", "y") == "y"
    store.put_index(replace(INDEX, state=IndexState.DELETING))
    assert store.fingerprints("i-1") == {"f": "x", "g": "y"}
    store.delete_index("i")
    assert store.fingerprints("i-1") == {}
    with pytest.raises(NotFoundError):
        store.bind_fingerprint("i-1", "f", "x")


def test_an_alias_is_kept_moved_and_goes_with_its_model(store: MetadataStore) -> None:
    alias = AliasRecord("best", MODEL.model_id, MODEL.create_time)
    store.put_model(MODEL)
    store.put_alias(alias)
    assert store.list_aliases() == [alias]
    moved = replace(alias, model_id="other")
    store.put_alias(moved)
    assert store.list_aliases() == [moved]
    store.delete_alias("best")
    assert store.list_aliases() == []
    store.put_alias(alias)
    store.put_alias(AliasRecord("kept", "other", MODEL.create_time))
    store.delete_model(MODEL.model_id)
    assert [each.alias for each in store.list_aliases()] == ["kept"]


def test_of_many_threads_one_binds_and_one_inserts(store: MetadataStore) -> None:
    store.put_index(INDEX)
    bound: list[str] = []
    inserted: list[bool] = []
    gate = threading.Barrier(8)

    def work(number: int) -> None:
        gate.wait()
        bound.append(store.bind_fingerprint("i-1", "f", str(number)))
        inserted.append(store.insert_model(MODEL))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bound) == 8
    assert len(set(bound)) == 1
    assert sorted(inserted) == [False] * 7 + [True]


def test_the_migrations_make_the_tables_of_the_code(tmp_path: Path) -> None:
    MetadataStore(tmp_path / "m.sqlite").close()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'm.sqlite'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, tables.metadata) == []
        found = sa.inspect(connection)
        for table in tables.metadata.tables.values():
            made = {column["name"]: column for column in found.get_columns(table.name)}
            assert set(made) == set(table.columns.keys())
            for column in table.columns:
                assert made[column.name]["nullable"] == column.nullable
                same = column.type.compile(engine.dialect)
                assert made[column.name]["type"].compile(engine.dialect) == same, (table.name, column.name)
    engine.dispose()


LATER_COLUMNS = {
    "models": ("layout", "facts", "package"),
    "deployments": (
        "precision",
        "cache_size_bytes",
        "priority",
        "adaptive",
        "min_number_of_allocations",
        "max_number_of_allocations",
    ),
}


def test_models_and_deployments_of_an_older_schema_are_taken_along(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    first = MetadataStore(path)
    first.put_model(MODEL)
    first.put_deployment(DEPLOYMENT)
    first.close()
    with sqlite3.connect(path) as connection:
        for table, columns in LATER_COLUMNS.items():
            for column in columns:
                connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute("DROP TABLE aliases")
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()
    second = MetadataStore(path)
    assert second.list_deployments() == [replace(DEPLOYMENT, precision="", cache_size_bytes=None)]
    assert second.list_models() == [MODEL]
    assert second.list_aliases() == []
    second.close()


def test_the_versions_are_those_of_the_migrations() -> None:
    script = ScriptDirectory(str(Path(schema.__file__).parent / "migrations"))
    assert schema.known_versions() == sorted(each.revision for each in script.walk_revisions())
    assert script.get_heads() == schema.known_versions()[-1:]


def test_a_file_of_todays_schema_opens_without_alembic(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from termwise.server.metadata.store import MetadataStore\n"
        "MetadataStore(Path(sys.argv[1])).close()\n"
        "print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.sqlite")]
    first, second = (subprocess.run(command, check=True, capture_output=True).stdout.strip() for _ in range(2))
    assert (first, second) == (b"True", b"False")


def test_a_newer_schema_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    MetadataStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(FailedPreconditionError) as caught:
        MetadataStore(path)
    assert "9999" in caught.value.message
    assert caught.value.metadata["known_schema_version"] in caught.value.message


def test_a_file_that_cannot_be_opened_is_not_called_broken(tmp_path: Path) -> None:
    (tmp_path / "m.sqlite").mkdir()
    with pytest.raises(FailedPreconditionError, match="cannot be used: unable to open"):
        MetadataStore(tmp_path / "m.sqlite")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    path.write_bytes(b"not a database, and long enough to be looked at " * 20)
    with pytest.raises(DataLossError):
        MetadataStore(path)


def test_a_kill_loses_no_write(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, itertools, datetime\n"
        "from termwise.server.metadata.store import MetadataStore\n"
        "from termwise.server.metadata.records import DeploymentRecord\n"
        "store = MetadataStore(pathlib.Path(sys.argv[1]))\n"
        "for n in itertools.count():\n"
        "    store.put_deployment(DeploymentRecord(f'd{n:05}', 'm', 1, 1, 1, datetime.datetime.now(datetime.UTC)))\n"
        "    print(n, flush=True)\n"
    )
    path = tmp_path / "m.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout:
        seen = [int(writer.stdout.readline()) for _ in range(30)]
        os.kill(writer.pid, signal.SIGKILL)
        seen += [int(line) for line in writer.stdout.read().split()]
        writer.wait(60)
    store = MetadataStore(path)
    assert {f"d{n:05}" for n in seen} <= {d.deployment_id for d in store.list_deployments()}
    store.close()


def test_a_full_disk_is_named_and_nothing_is_half_written(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    store = MetadataStore(path)
    with store._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    sa.event.listen(store._engine, "checkout", lambda c, *_: c.execute(f"PRAGMA max_page_count = {pages + 2}"))
    with pytest.raises(ResourceExhaustedError) as caught:
        store.put_model(replace(MODEL, description="x" * 100_000))
    assert caught.value.reason_code == "DISK_FULL"
    assert store.list_models() == []
    store.put_model(MODEL)
    assert store.list_models() == [MODEL]
    store.close()
