"""Rows of the metadata store: what the operator wants. Times are aware datetimes in UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime  # noqa: TC003 - SQLAlchemy and readers need the type at run time
from enum import Enum
from typing import Any


class ModelState(Enum):
    """Where a trained model stands."""

    DEFINED = "DEFINED"
    DOWNLOADING = "DOWNLOADING"
    READY = "READY"
    FAILED = "FAILED"
    DELETING = "DELETING"


class IndexState(Enum):
    """Where an index stands."""

    CREATING = "CREATING"
    READY = "READY"
    DELETING = "DELETING"


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A trained model. `config` is `inference.base.ExpansionConfig` as a dict.

    `layout`, `facts` and what else `inference.loader.ModelFacts` says of it are empty until it is READY. `package` is
    the metadata file of a package in ELSER's layout, as it came; None for other models.
    """

    model_id: str
    state: ModelState
    source_uri: str
    create_time: datetime
    sha256: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    query_fingerprint: str = ""
    size_bytes: int = 0
    architecture: str = ""
    vocabulary_size: int = 0
    error: str = ""
    layout: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    package: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """Another name of a model."""

    alias: str
    model_id: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """A deployment that should run.

    `precision` is "" where the server's setting decides; `cache_size_bytes` is None for the model's size. Where
    `adaptive`, `number_of_allocations` is what the load wanted last, between the two limits
    (`max_number_of_allocations` None: no limit of its own).
    """

    deployment_id: str
    model_id: str
    number_of_allocations: int
    threads_per_allocation: int
    queue_capacity: int
    create_time: datetime
    precision: str = ""
    cache_size_bytes: int | None = None
    priority: str = "normal"
    adaptive: bool = False
    min_number_of_allocations: int = 0
    max_number_of_allocations: int | None = None


@dataclass(frozen=True, slots=True)
class PipelineRecord:
    """An ingest pipeline; `body` is its processors as plain JSON (`ingest.pipelines` reads it)."""

    pipeline_id: str
    body: dict[str, Any]
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class IndexRecord:
    """An index; `mapping` and `settings` are plain JSON (`indices.mapping` reads them).

    `storage_name` is the name that the storage backend knows it by: unique for ever, so that a name used again never
    meets an old folder. `backend` is the storage backend's name.
    """

    name: str
    state: IndexState
    storage_name: str
    backend: str
    mapping: dict[str, Any]
    settings: dict[str, Any]
    create_time: datetime
