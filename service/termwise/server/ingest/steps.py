"""What processors do to one document; the inference processor, which takes many at once, is in `expansion`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from termwise.server.errors import InvalidArgumentError
from termwise.server.ingest.paths import ABSENT
from termwise.server.ingest.processors import (
    FailProcessor,
    InferenceProcessor,
    LowercaseProcessor,
    RemoveProcessor,
    RenameProcessor,
    SetProcessor,
    missing_field,
)
from termwise.server.ingest.templates import render, render_all
from termwise.storage.types import SparseVector

if TYPE_CHECKING:
    from termwise.server.ingest.draft import Draft
    from termwise.server.ingest.processors import Action

MAX_COPIED: Final = 4 * 2**20
"""Most values and characters that one copy takes, about: a processor that copies a field into itself would otherwise
double it each time."""


def apply(action: Action, draft: Draft) -> bool:
    """Change a document as a processor says; False where there was nothing to do.

    Raises:
        InvalidArgumentError: the processor fails; the document is as before.

    """
    try:
        match action:
            case SetProcessor():
                return _set(action, draft)
            case RemoveProcessor():
                return _remove(action, draft)
            case RenameProcessor():
                return _rename(action, draft)
            case LowercaseProcessor():
                return _lowercase(action, draft)
            case FailProcessor():
                raise InvalidArgumentError(render(action.message, draft.show), reason="FAILED_BY_PIPELINE")
            case InferenceProcessor():
                msg = "It takes many documents at once; see `expansion`."
                raise TypeError(msg)
    except ValueError as error:
        raise InvalidArgumentError(str(error), reason="FIELD_NOT_OBJECT") from error


def _set(action: SetProcessor, draft: Draft) -> bool:
    if not action.override and draft.get(action.field) not in (ABSENT, None):
        return False
    if action.copy_from is None:
        value = render_all(action.value, draft.show)
    else:
        value = draft.get(action.copy_from)
        if value is ABSENT and not action.ignore_empty_value:
            raise missing_field(action.copy_from)
    if action.ignore_empty_value and (value is ABSENT or value is None or value == ""):
        return False
    if isinstance(value, SparseVector):
        draft.set(action.field, value, draft.inferred.get(action.copy_from or ""))
    else:
        draft.set(action.field, _copy(value))
    return True


def _remove(action: RemoveProcessor, draft: Draft) -> bool:
    present = [path for path in action.fields if draft.get(path) is not ABSENT]
    if len(present) < len(action.fields) and not action.ignore_missing:
        raise missing_field(next(path for path in action.fields if path not in present))
    for path in present:
        draft.remove(path)
    return bool(present)


def _rename(action: RenameProcessor, draft: Draft) -> bool:
    if draft.get(action.field) is ABSENT:
        if action.ignore_missing:
            return False
        raise missing_field(action.field)
    if draft.get(action.target_field) is not ABSENT and not action.override:
        raise InvalidArgumentError(
            f'Field "{action.target_field}" exists already; set override to replace it.', reason="FIELD_EXISTS"
        )
    draft.rename(action.field, action.target_field)
    return True


def _lowercase(action: LowercaseProcessor, draft: Draft) -> bool:
    value = draft.get(action.field)
    if value is ABSENT or value is None:
        if action.ignore_missing:
            return False
        raise missing_field(action.field)
    if isinstance(value, str):
        lowered: Any = value.lower()
    elif isinstance(value, list) and all(isinstance(each, str) for each in value):
        lowered = [each.lower() for each in value]
    else:
        raise InvalidArgumentError(
            f'Field "{action.field}" is neither a string nor a list of strings.', reason="FIELD_NOT_TEXT"
        )
    draft.set(action.target_field or action.field, lowered)
    return True


def _copy(value: Any) -> Any:
    """Copy JSON deeply, up to `MAX_COPIED`."""
    left = MAX_COPIED

    def copy(value: Any) -> Any:
        nonlocal left
        left -= 1 + (len(value) if isinstance(value, str) else 0)
        if left < 0:
            raise InvalidArgumentError("The value is too large to copy.", reason="VALUE_TOO_LARGE")
        if isinstance(value, dict):
            return {key: copy(each) for key, each in value.items()}
        if isinstance(value, list):
            return [copy(each) for each in value]
        return value

    return copy(value)
