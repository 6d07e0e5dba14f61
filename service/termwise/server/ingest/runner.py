"""Runs a pipeline over a batch of documents, processor by processor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from termwise.server.errors import InvalidArgumentError, TermwiseError
from termwise.server.ingest import steps
from termwise.server.ingest.draft import Failure, Step, StepStatus
from termwise.server.ingest.processors import InferenceProcessor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from termwise.server.ingest.draft import Draft
    from termwise.server.ingest.expansion import TextExpander
    from termwise.server.ingest.processors import Action, IngestPipeline, Processor

INLINE_BYTES: Final = 64 * 1024
"""Up to this many bytes of bodies are worked on at once on the event loop, more in a thread: about a millisecond."""


MAX_SHOWN: Final = 64 * 2**20
"""Most bytes of bodies that the steps of a verbose run show."""


class Runner:
    """Runs processors; a document's failure stands in its draft."""

    def __init__(self, expander: TextExpander, *, verbose: bool = False) -> None:
        """Run inference by `expander`; `verbose` notes each step of each document."""
        self._expander = expander
        self._verbose = verbose
        self._shown = 0

    async def run(self, pipeline: IngestPipeline, drafts: Sequence[Draft]) -> None:
        """Run a pipeline over documents.

        Raises:
            InvalidArgumentError: the steps of a verbose run are too large to be shown.

        """
        await self._run_all(pipeline.processors, drafts)
        failed = [draft for draft in drafts if draft.failure is not None and not draft.failure.passing]
        if failed and pipeline.on_failure:
            await self._recover(pipeline.on_failure, failed)

    async def _run_all(self, processors: Sequence[Processor], drafts: Sequence[Draft]) -> None:
        for processor in processors:
            alive = [draft for draft in drafts if draft.failure is None]
            if not alive:
                return
            await self._run_one(processor, alive)

    async def _run_one(self, processor: Processor, drafts: Sequence[Draft]) -> None:
        failed = []
        for draft, outcome in zip(drafts, await self._apply(processor.action, drafts), strict=True):
            if isinstance(outcome, TermwiseError):
                draft.failure = Failure(outcome, processor.action.kind, processor.tag)
                if not draft.failure.passing:
                    failed.append(draft)
            if self._verbose:
                self._note(_step(processor, draft, outcome), draft)
        if failed and processor.on_failure:
            await self._recover(processor.on_failure, failed)
        if processor.ignore_failure:
            for draft in failed:
                if draft.failure is not None and not draft.failure.passing:
                    draft.failure = None

    def _note(self, step: Step, draft: Draft) -> None:
        self._shown += len(step.document.source)
        if self._shown > MAX_SHOWN:
            raise InvalidArgumentError(
                "The documents after each step are too large to show; try fewer documents, or leave out verbose.",
                reason="SIMULATION_TOO_LARGE",
            )
        draft.steps.append(step)

    async def _recover(self, processors: Sequence[Processor], drafts: Sequence[Draft]) -> None:
        """Run the processors for failed documents, which learn by `_ingest` what failed."""
        before = [draft.ingest for draft in drafts]
        for draft in drafts:
            if draft.failure is not None:
                draft.ingest = {
                    "on_failure_message": draft.failure.error.message,
                    "on_failure_processor_type": draft.failure.processor_type,
                    "on_failure_processor_tag": draft.failure.processor_tag,
                }
                draft.failure = None
        await self._run_all(processors, drafts)
        for draft, ingest in zip(drafts, before, strict=True):
            draft.ingest = ingest

    async def _apply(self, action: Action, drafts: Sequence[Draft]) -> Sequence[bool | TermwiseError]:
        if isinstance(action, InferenceProcessor):
            return await self._expander.apply(action, drafts)
        if sum(len(draft.text) for draft in drafts) <= INLINE_BYTES:
            return _apply_each(action, drafts)
        return await asyncio.to_thread(_apply_each, action, drafts)


def _apply_each(action: Action, drafts: Sequence[Draft]) -> Sequence[bool | TermwiseError]:
    outcomes: list[bool | TermwiseError] = []
    for draft in drafts:
        try:
            outcomes.append(steps.apply(action, draft))
        except InvalidArgumentError as error:
            outcomes.append(error)
    return outcomes


def _step(processor: Processor, draft: Draft, outcome: bool | TermwiseError) -> Step:
    if isinstance(outcome, TermwiseError):
        handled = bool(processor.ignore_failure or processor.on_failure)
        passing = draft.failure is not None and draft.failure.passing
        status = StepStatus.ERROR_IGNORED if handled and not passing else StepStatus.ERROR
    else:
        status = StepStatus.SUCCESS if outcome else StepStatus.SKIPPED
    return Step(processor.action.kind, processor.tag, status, draft.snapshot(), draft.failure)
