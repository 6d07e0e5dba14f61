"""What callers ask of models and deployments, and the rules that it must keep. Fields are named as in the protos."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from termwise.server.errors import invalid_field, not_found
from termwise.server.identifiers import check_identifier
from termwise.server.inference.base import ExpansionConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from termwise.server.errors import NotFoundError
    from termwise.server.models.packaged import PackagedModel

MIN_TOKENS: Final = 3
"""Shortest `max_tokens`: the two special tokens and one of the text."""
MAX_THREADS: Final = 32
MAX_QUEUE_CAPACITY: Final = 99_999
"""As Elasticsearch's: the queue's capacity is below 100,000, threads are a power of two up to 32. The number of
allocations has no limit of its own; memory sets it."""
MOST_ADAPTIVE: Final = 32
"""Most allocations of a deployment that scales without a limit of its own, as Elasticsearch's."""
PRIORITIES: Final = ("normal", "low")
MAX_CACHE_BYTES: Final = 1 << 40

_MAX_DESCRIPTION: Final = 4_096
_MAX_PREFIX: Final = 1_024
_MAX_LABELS: Final = 100
_MAX_LABEL: Final = 256
_MAX_VALUE: Final = 4_096
"""Longest texts of operators, in characters; a page of 1,000 models has to fit in a message."""

_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_CONFIG: Final = "inference_config.text_expansion"


class ModelWait(Enum):
    """How long putting a model stays."""

    STORED = "stored"
    READY = "ready"


class DeploymentWait(Enum):
    """How long starting a deployment stays."""

    STARTING = "starting"
    STARTED = "started"
    FULLY_ALLOCATED = "fully_allocated"


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model to store; the fields are those of PutTrainedModelRequest."""

    model_id: str
    source_uri: str = ""
    sha256: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    config: ExpansionConfig = field(default_factory=ExpansionConfig)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdaptiveAllocations:
    """Limits between which the number of allocations follows the load; `most` None is `MOST_ADAPTIVE`."""

    fewest: int = 0
    most: int | None = None

    @property
    def ceiling(self) -> int:
        """The upper limit that holds."""
        return max(MOST_ADAPTIVE, self.fewest) if self.most is None else self.most

    def clamp(self, allocations: int) -> int:
        """Give the nearest number within the limits."""
        return min(max(allocations, self.fewest), self.ceiling)


@dataclass(frozen=True, slots=True)
class NewDeployment:
    """A deployment to start; the fields are those of StartDeploymentRequest.

    `model_id` may be an alias. `deployment_id` "" is the model's id, `number_of_allocations` None is 1 or what
    `adaptive` begins with, `precision` "" the server's setting, `cache_size_bytes` None the model's size.
    """

    model_id: str
    deployment_id: str = ""
    number_of_allocations: int | None = None
    threads_per_allocation: int = 1
    queue_capacity: int = 1_024
    precision: str = ""
    cache_size_bytes: int | None = None
    priority: str = "normal"
    adaptive: AdaptiveAllocations | None = None

    @property
    def first_allocations(self) -> int:
        """How many allocations it begins with."""
        if self.adaptive is not None:
            return max(1, self.adaptive.fewest)
        return 1 if self.number_of_allocations is None else self.number_of_allocations


@dataclass(frozen=True, slots=True)
class DeploymentUpdate:
    """What a deployment shall have from now on: a fixed number of allocations or adaptive ones; one of the two."""

    number_of_allocations: int | None = None
    adaptive: AdaptiveAllocations | None = None


def check_model(model: NewModel) -> None:
    """Check all of a new model but its source's form, which is its repository's to know, and what its package says.

    Raises:
        InvalidArgumentError: a field breaks a rule; it is named.

    """
    check_identifier(model.model_id, "model_id")
    if model.sha256 and _SHA256.fullmatch(model.sha256) is None:
        raise invalid_field("sha256", "It is no SHA-256; give 64 hexadecimal digits.")
    check_config(model.config)
    _check_labels(model)


def check_package(model: NewModel, package: PackagedModel) -> None:
    """Check a new packaged model against its package.

    Raises:
        InvalidArgumentError: a field says otherwise than the package; it is named.

    """
    if model.source_uri not in {"", package.source_uri}:
        raise invalid_field("source_uri", f"{model.model_id} is a packaged model and has its own; leave it empty.")
    if model.sha256.lower() not in {"", package.sha256}:
        raise invalid_field("sha256", f"{model.model_id} is a packaged model and has its own; leave it empty.")
    check_config(model.config, package.max_tokens or None)


def unknown_packaged(model_id: str, packaged: Mapping[str, PackagedModel], place: str = "") -> NotFoundError:
    """Make the error for an id that begins with a dot and is no packaged model's; `place` is the model repository."""
    names = ", ".join(sorted(packaged))
    hint = f"Only packaged models begin with a dot: {names}." if packaged else "There are no packaged models."
    if place:
        hint = f"The model repository {place} has no such package, nor is it built in: {names}."
    return not_found("model", model_id, packaged, field="model_id", hint=hint)


def check_config(config: ExpansionConfig, max_tokens: int | None = None) -> None:
    """Check how texts become weighted tokens; `max_tokens` is the model's own limit, where it is known.

    Raises:
        InvalidArgumentError: a field breaks a rule; it is named.

    """
    if config.max_tokens and config.max_tokens < MIN_TOKENS:
        raise invalid_field(
            f"{_CONFIG}.max_tokens", f"{config.max_tokens} is too few; give {MIN_TOKENS} or more, or 0."
        )
    if max_tokens is not None and config.max_tokens > max_tokens:
        raise invalid_field(
            f"{_CONFIG}.max_tokens",
            f"{config.max_tokens} is more than the model was trained for; give {max_tokens} at most.",
        )
    for name in ("document_max_terms", "query_max_terms"):
        if getattr(config, name) < 0:
            raise invalid_field(f"{_CONFIG}.{name}", f"{getattr(config, name)} is negative; give 0 for no limit.")
    if not (math.isfinite(config.min_weight) and config.min_weight >= 0):
        raise invalid_field(f"{_CONFIG}.min_weight", f"{config.min_weight} is no weight; give 0 or a positive number.")
    for name in ("document_prefix", "query_prefix"):
        _check_length(getattr(config, name), _MAX_PREFIX, f"{_CONFIG}.{name}")


def _check_labels(model: NewModel) -> None:
    _check_length(model.description, _MAX_DESCRIPTION, "description")
    for kind, count in (("tags", len(model.tags)), ("metadata", len(model.metadata))):
        if count > _MAX_LABELS:
            raise invalid_field(kind, f"{count} are too many; give {_MAX_LABELS} at most.")
    for place, tag in enumerate(model.tags):
        if not tag:
            raise invalid_field(f"tags[{place}]", "It is empty; leave it out.")
        _check_length(tag, _MAX_LABEL, f"tags[{place}]")
    for key, value in model.metadata.items():
        _check_length(key, _MAX_LABEL, "metadata")
        _check_length(value, _MAX_VALUE, f'metadata["{key}"]')


def _check_length(text: str, most: int, name: str) -> None:
    if len(text) > most:
        raise invalid_field(name, f"{len(text):,} characters are too long; give {most:,} at most.")


def check_deployment(deployment: NewDeployment) -> None:
    """Check a new deployment's own fields.

    Raises:
        InvalidArgumentError: a field breaks a rule; it is named.

    """
    check_identifier(deployment.model_id, "model_id")
    if deployment.deployment_id:
        check_identifier(deployment.deployment_id, "deployment_id")
    check_allocations(deployment.number_of_allocations, deployment.adaptive)
    threads = deployment.threads_per_allocation
    if not 1 <= threads <= MAX_THREADS or threads & (threads - 1):
        raise invalid_field(
            "threads_per_allocation", f"{threads} is no power of two from 1 to {MAX_THREADS}; give one."
        )
    if not 1 <= deployment.queue_capacity <= MAX_QUEUE_CAPACITY:
        raise invalid_field(
            "queue_capacity", f"{deployment.queue_capacity} is out of range; give 1 to {MAX_QUEUE_CAPACITY:,}."
        )
    size = deployment.cache_size_bytes
    if size is not None and not 0 <= size <= MAX_CACHE_BYTES:
        raise invalid_field("cache_size_bytes", f"{size} is out of range; give 0 to {MAX_CACHE_BYTES:,}.")
    _check_priority(deployment)


def _check_priority(deployment: NewDeployment) -> None:
    if deployment.priority not in PRIORITIES:
        raise invalid_field("priority", f'"{deployment.priority}" is unknown; give {" or ".join(PRIORITIES)}.')
    if deployment.priority != "low":
        return
    if deployment.adaptive is not None:
        raise invalid_field("adaptive_allocations", _low("leave them out"))
    if deployment.first_allocations != 1:
        raise invalid_field("number_of_allocations", _low("give 1"))
    if deployment.threads_per_allocation != 1:
        raise invalid_field("threads_per_allocation", _low("give 1"))


def _low(cure: str) -> str:
    return f"A deployment of low priority has one allocation of one thread; {cure}."


def check_update(update: DeploymentUpdate) -> None:
    """Check an update's own fields.

    Raises:
        InvalidArgumentError: a field breaks a rule, or there is none; it is named.

    """
    if update.number_of_allocations is None and update.adaptive is None:
        raise invalid_field("number_of_allocations", "It is absent; give it, or adaptive_allocations.")
    check_allocations(update.number_of_allocations, update.adaptive)


def check_allocations(number: int | None, adaptive: AdaptiveAllocations | None) -> None:
    """Check how many allocations are asked for.

    Raises:
        InvalidArgumentError: a number out of range, or both a number and adaptive ones; the field is named.

    """
    if number is not None and adaptive is not None:
        raise invalid_field(
            "number_of_allocations", "It stands beside adaptive_allocations, which choose it; leave one of them out."
        )
    if number is not None and number < 1:
        raise invalid_field("number_of_allocations", f"{number} is out of range; give 1 or more.")
    if adaptive is None:
        return
    if adaptive.fewest < 0:
        raise invalid_field(
            "adaptive_allocations.min_number_of_allocations", f"{adaptive.fewest} is negative; give 0 or more."
        )
    if adaptive.most is not None and adaptive.most < max(1, adaptive.fewest):
        raise invalid_field(
            "adaptive_allocations.max_number_of_allocations",
            f"{adaptive.most} is too few; give {max(1, adaptive.fewest)} or more.",
        )
