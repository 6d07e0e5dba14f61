"""The inference processor: the texts of many documents go to the model in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from termwise.server.errors import InvalidArgumentError, TermwiseError, UnavailableError
from termwise.server.inference.base import Side
from termwise.server.ingest.draft import Provenance
from termwise.server.ingest.paths import ABSENT
from termwise.server.ingest.processors import missing_field
from termwise.storage.types import SMALLEST_WEIGHT, SparseVector, sparse_vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from termwise.server.context import RequestContext
    from termwise.server.inference.base import Expander, Expansion
    from termwise.server.ingest.draft import Draft
    from termwise.server.ingest.processors import InferenceProcessor


@dataclass(frozen=True, slots=True)
class _Expanded:
    """The vector of a text, and who made it."""

    vector: SparseVector
    provenance: Provenance


_Outcome: TypeAlias = _Expanded | TermwiseError


class TextExpander:
    """Expands texts for one call."""

    def __init__(self, expander: Expander, context: RequestContext, *, wait: bool) -> None:
        """Expand on behalf of `context`; `wait` as in `Expander.expand`."""
        self._expander = expander
        self._context = context
        self._wait = wait

    async def apply(self, action: InferenceProcessor, drafts: Sequence[Draft]) -> list[bool | TermwiseError]:
        """Run the processor over documents: True where one changed, False where it had no input, else why it failed.

        A document of which one text fails is left as it was.
        """
        inputs = [_inputs(action, draft) for draft in drafts]
        texts = dict.fromkeys(
            text
            for texts_of in inputs
            if not isinstance(texts_of, TermwiseError)
            for each in texts_of.values()
            for text in each
        )
        expanded = dict(zip(texts, await self._expand(action.deployment_id, list(texts)), strict=True))
        return [
            texts_of if isinstance(texts_of, TermwiseError) else _write(draft, texts_of, expanded)
            for draft, texts_of in zip(drafts, inputs, strict=True)
        ]

    async def _expand(self, deployment_id: str, texts: list[str]) -> list[_Outcome]:
        """Expand texts; where the model refuses the lot, expand its halves, so that only the guilty texts fail."""
        if not texts:
            return []
        try:
            answer = await self._expander.expand(self._context, deployment_id, texts, Side.DOCUMENT, wait=self._wait)
        except InvalidArgumentError as error:
            if len(texts) == 1:
                return [_in_pipeline(error)]
            middle = len(texts) // 2
            return [
                *await self._expand(deployment_id, texts[:middle]),
                *await self._expand(deployment_id, texts[middle:]),
            ]
        except TermwiseError as error:
            return [_in_pipeline(error)] * len(texts)
        provenance = Provenance(answer.model_id, answer.fingerprint, answer.aliases)
        return [_Expanded(_vector(expansion), provenance) for expansion in answer.expansions]


def _in_pipeline(error: TermwiseError) -> TermwiseError:
    """Take out of an error the fields of inference's own request: whoever runs a pipeline made none."""
    return error.in_terms_of(error.sentence, ())


def _inputs(action: InferenceProcessor, draft: Draft) -> dict[str, list[str]] | TermwiseError:
    """Give the texts by output field; texts without content are left out, since they need no model."""
    found: dict[str, list[str]] = {}
    for pair in action.input_output:
        value = draft.get(pair.input_field)
        if value is ABSENT or value is None:
            if action.ignore_missing:
                continue
            return missing_field(pair.input_field)
        texts = _texts(value)
        if texts is None:
            return InvalidArgumentError(
                f'Field "{pair.input_field}" is neither a string nor a list of strings.', reason="FIELD_NOT_TEXT"
            )
        found[pair.output_field] = texts
    return found


def _texts(value: Any) -> list[str] | None:
    values = [each for each in value if each is not None] if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in values):
        return None
    return [text for text in values if text.strip()]


def _write(draft: Draft, texts: dict[str, list[str]], expanded: dict[str, _Outcome]) -> bool | TermwiseError:
    made: list[tuple[str, SparseVector, Provenance | None]] = []
    for output_field, texts_of_field in texts.items():
        parts: list[_Expanded] = []
        for text in texts_of_field:
            outcome = expanded[text]
            if isinstance(outcome, TermwiseError):
                return outcome
            parts.append(outcome)
        origins = {part.provenance for part in parts}
        if len(origins) > 1:
            return UnavailableError("The deployment changed its model meanwhile; retry.", reason="MODEL_CHANGED")
        made.append((output_field, _joined([part.vector for part in parts]), origins.pop() if origins else None))
    for output_field, vector, provenance in made:
        draft.set(output_field, vector, provenance)
    return bool(made)


def _vector(expansion: Expansion) -> SparseVector:
    """Take over an expansion, which is sorted as vectors are; weights too small to be stored go."""
    count = int(np.count_nonzero(expansion.weights >= SMALLEST_WEIGHT))
    weights = np.asarray(expansion.weights[:count], dtype=np.float32)
    weights = weights.view()
    weights.flags.writeable = False
    return SparseVector(tuple(expansion.tokens[:count]), weights)


def _joined(vectors: Sequence[SparseVector]) -> SparseVector:
    """Join vectors by the largest weight of each token."""
    if len(vectors) == 1:
        return vectors[0]
    largest: dict[str, float] = {}
    for vector in vectors:
        for token, weight in zip(vector.tokens, vector.weights.tolist(), strict=True):
            largest[token] = max(weight, largest.get(token, weight))
    return sparse_vector(list(largest), list(largest.values()))
