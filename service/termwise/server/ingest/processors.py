"""Ingest pipelines and their processors as values: what they are, whether they can work, how they are stored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from termwise.server.errors import InvalidArgumentError, invalid_field
from termwise.server.identifiers import check_identifier
from termwise.server.indices.body import check_depth
from termwise.server.indices.mapping import check_path
from termwise.server.ingest.templates import check_template

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

MAX_PROCESSORS: Final = 256
"""Most processors of a pipeline, those under `on_failure` included."""

MAX_NESTING: Final = 5
"""Levels of `on_failure` in each other. Protobuf runtimes refuse messages nested more than 100 deep: with a value to
set that is as deep as it may be, a sixth level would make every list that shows the pipeline unreadable."""

MAX_INPUTS: Final = 64
"""Most inputs of an inference processor."""


@dataclass(frozen=True, slots=True)
class InputOutput:
    """From which field to which."""

    input_field: str
    output_field: str


@dataclass(frozen=True, slots=True)
class InferenceProcessor:
    """Reads text fields and writes sparse vectors."""

    kind: ClassVar[str] = "inference"
    deployment_id: str
    input_output: tuple[InputOutput, ...]
    ignore_missing: bool = False

    def check(self, where: str) -> None:
        """Refuse what cannot work; the violation names the field below `where`. So in the classes below."""
        check_identifier(self.deployment_id, f"{where}.deployment_id")
        if not self.input_output:
            raise invalid_field(f"{where}.input_output", "It is empty; give at least one input and output field.")
        if len(self.input_output) > MAX_INPUTS:
            raise invalid_field(f"{where}.input_output", f"There are more than {MAX_INPUTS}.")
        for place, pair in enumerate(self.input_output):
            check_path(pair.input_field, f"{where}.input_output[{place}].input_field")
            check_path(pair.output_field, f"{where}.input_output[{place}].output_field")
            if pair.output_field in {each.output_field for each in self.input_output[:place]}:
                raise invalid_field(
                    f"{where}.input_output[{place}].output_field",
                    f'"{pair.output_field}" stands twice; give each input a field of its own.',
                )


@dataclass(frozen=True, slots=True)
class SetProcessor:
    """Sets a field to `value`, whose strings are templates, or where `copy_from` is given to a copy of that field."""

    kind: ClassVar[str] = "set"
    field: str
    value: Any = None
    copy_from: str | None = None
    override: bool = True
    ignore_empty_value: bool = False

    def check(self, where: str) -> None:
        """Refuse what cannot work."""
        check_path(self.field, f"{where}.field")
        if self.copy_from is not None:
            check_path(self.copy_from, f"{where}.copy_from")
            return
        check_depth(self.value, f"{where}.value")
        for text in _strings(self.value):
            check_template(text, f"{where}.value")


@dataclass(frozen=True, slots=True)
class RemoveProcessor:
    """Removes fields: all of them, or none where it fails."""

    kind: ClassVar[str] = "remove"
    fields: tuple[str, ...]
    ignore_missing: bool = False

    def check(self, where: str) -> None:
        """Refuse what cannot work."""
        if not self.fields:
            raise invalid_field(f"{where}.fields", "It is empty; give at least one field.")
        for place, path in enumerate(self.fields):
            check_path(path, f"{where}.fields[{place}]")


@dataclass(frozen=True, slots=True)
class RenameProcessor:
    """Renames a field."""

    kind: ClassVar[str] = "rename"
    field: str
    target_field: str
    ignore_missing: bool = False
    override: bool = False

    def check(self, where: str) -> None:
        """Refuse what cannot work."""
        check_path(self.field, f"{where}.field")
        check_path(self.target_field, f"{where}.target_field")
        if self.field == self.target_field:
            raise invalid_field(f"{where}.target_field", "It is the field itself; give another name.")


@dataclass(frozen=True, slots=True)
class LowercaseProcessor:
    """Lowercases a string, or each string of a list. An empty `target_field` is the field itself."""

    kind: ClassVar[str] = "lowercase"
    field: str
    target_field: str = ""
    ignore_missing: bool = False

    def check(self, where: str) -> None:
        """Refuse what cannot work."""
        check_path(self.field, f"{where}.field")
        if self.target_field:
            check_path(self.target_field, f"{where}.target_field")


@dataclass(frozen=True, slots=True)
class FailProcessor:
    """Fails the document; `message` is a template."""

    kind: ClassVar[str] = "fail"
    message: str

    def check(self, where: str) -> None:
        """Refuse what cannot work."""
        if not self.message:
            raise invalid_field(f"{where}.message", "It is empty; say why the document fails.")
        check_template(self.message, f"{where}.message")


Action: TypeAlias = (
    InferenceProcessor | SetProcessor | RemoveProcessor | RenameProcessor | LowercaseProcessor | FailProcessor
)

_KINDS: Final[dict[str, type[Action]]] = {
    InferenceProcessor.kind: InferenceProcessor,
    SetProcessor.kind: SetProcessor,
    RemoveProcessor.kind: RemoveProcessor,
    RenameProcessor.kind: RenameProcessor,
    LowercaseProcessor.kind: LowercaseProcessor,
    FailProcessor.kind: FailProcessor,
}


@dataclass(frozen=True, slots=True)
class Processor:
    """One step: what it does, and what happens where it fails."""

    action: Action
    tag: str = ""
    description: str = ""
    ignore_failure: bool = False
    on_failure: tuple[Processor, ...] = ()


@dataclass(frozen=True, slots=True)
class IngestPipeline:
    """A list of processors; the times are set where it is stored."""

    processors: tuple[Processor, ...] = ()
    on_failure: tuple[Processor, ...] = ()
    description: str = ""
    version: int = 0
    create_time: datetime | None = None
    update_time: datetime | None = None

    def every_processor(self) -> Iterator[Processor]:
        """Give all processors, those under `on_failure` included."""
        pending = [*self.processors, *self.on_failure]
        while pending:
            processor = pending.pop()
            yield processor
            pending.extend(processor.on_failure)

    def uses_deployment(self, deployment_id: str) -> bool:
        """Whether an inference processor names the deployment."""
        return any(
            isinstance(each.action, InferenceProcessor) and each.action.deployment_id == deployment_id
            for each in self.every_processor()
        )

    def to_json(self) -> dict[str, Any]:
        """Give the pipeline as plain JSON, times left out; `from_json` reads it."""
        return {
            "description": self.description,
            "version": self.version,
            "processors": [_to_json(each) for each in self.processors],
            "on_failure": [_to_json(each) for each in self.on_failure],
        }

    @classmethod
    def from_json(
        cls, value: dict[str, Any], create_time: datetime | None = None, update_time: datetime | None = None
    ) -> IngestPipeline:
        """Read what `to_json` gave."""
        return cls(
            processors=tuple(_from_json(each) for each in value["processors"]),
            on_failure=tuple(_from_json(each) for each in value["on_failure"]),
            description=value["description"],
            version=value["version"],
            create_time=create_time,
            update_time=update_time,
        )


def check_pipeline(pipeline: IngestPipeline, field: str = "pipeline") -> None:
    """Refuse a pipeline that cannot work.

    Raises:
        InvalidArgumentError: the violation names the entry, such as `pipeline.processors[1].rename.target_field`.

    """
    if sum(1 for _ in pipeline.every_processor()) > MAX_PROCESSORS:
        raise invalid_field(f"{field}.processors", f"There are more than {MAX_PROCESSORS} processors.")
    _check_all(pipeline.processors, f"{field}.processors")
    _check_all(pipeline.on_failure, f"{field}.on_failure")


def missing_field(path: str) -> InvalidArgumentError:
    """Make the error of a processor whose document lacks a field."""
    return InvalidArgumentError(
        f'Field "{path}" does not exist in the document.', reason="FIELD_MISSING", metadata={"field": path}
    )


def _check_all(processors: tuple[Processor, ...], where: str, nesting: int = 0) -> None:
    if processors and nesting > MAX_NESTING:
        raise invalid_field(where, f"It is nested more than {MAX_NESTING} levels deep; flatten it.", reason="TOO_DEEP")
    for place, processor in enumerate(processors):
        processor.action.check(f"{where}[{place}].{processor.action.kind}")
        _check_all(processor.on_failure, f"{where}[{place}].on_failure", nesting + 1)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _to_json(processor: Processor) -> dict[str, Any]:
    value: dict[str, Any] = {processor.action.kind: dataclasses.asdict(processor.action)}
    for name in ("tag", "description", "ignore_failure"):
        if getattr(processor, name):
            value[name] = getattr(processor, name)
    if processor.on_failure:
        value["on_failure"] = [_to_json(each) for each in processor.on_failure]
    return value


def _from_json(value: dict[str, Any]) -> Processor:
    kind = next(name for name in value if name in _KINDS)
    options = dict(value[kind])
    if kind == InferenceProcessor.kind:
        options["input_output"] = tuple(InputOutput(**pair) for pair in options["input_output"])
    if kind == RemoveProcessor.kind:
        options["fields"] = tuple(options["fields"])
    return Processor(
        action=_KINDS[kind](**options),
        tag=value.get("tag", ""),
        description=value.get("description", ""),
        ignore_failure=value.get("ignore_failure", False),
        on_failure=tuple(_from_json(each) for each in value.get("on_failure", ())),
    )
