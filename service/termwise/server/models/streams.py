"""Streams of texts: expanded as they come, answered in order, and no faster than the deployment and the reader are."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from termwise.server.errors import InvalidArgumentError, TermwiseError, invalid_field

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from termwise.server.context import RequestContext
    from termwise.server.inference.base import Expander, Expansions, Side

MAX_TEXTS: Final = 1_024
"""Most texts of a message: as many as a deployment's queue takes from a call, unless it was given another capacity."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of a stream.

    Beyond this many messages, texts or bytes of texts that are not answered, nothing more is read, so the caller is
    slowed down. A single message over one of the last two goes alone. An answer counts until it is handed on.
    """

    messages: int = 256
    texts: int = 4_096
    text_bytes: int = 16 * 2**20


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How the texts of a stream are read; `side` None: the caller did not say."""

    deployment_id: str
    side: Side | None


@dataclass(frozen=True, slots=True)
class StreamTexts:
    """Texts that are answered together, and about how many bytes they take."""

    request_id: str
    texts: Sequence[str]
    size: int


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """What became of texts: their expansions, or why there are none."""

    request_id: str
    expansions: Expansions | None = None
    error: Exception | None = None


_Begin: TypeAlias = "Callable[[StreamTexts], asyncio.Task[StreamAnswer]]"


class TextStreams:
    """The use case of streams of texts."""

    def __init__(self, expander: Expander, limits: StreamLimits | None = None) -> None:
        """Expand by `expander`."""
        self._expander = expander
        self._limits = limits or StreamLimits()

    async def run(
        self, context: RequestContext, options: StreamOptions, messages: AsyncIterator[StreamTexts]
    ) -> AsyncGenerator[StreamAnswer, None]:
        """Expand a stream of texts; give one answer a message, in order.

        Texts that cannot be expanded, whatever the reason, are answered with the error. An error of the deployment, of
        the options or of `messages` itself ends the stream, after everything before it is answered. Leaving the
        iteration keeps texts that still wait away from the model.

        Raises:
            TermwiseError: as `Expander.expand` does, but for what is wrong with texts, and never for a full queue.

        """
        stream = _Stream(self._limits)

        def begin(message: StreamTexts) -> asyncio.Task[StreamAnswer]:
            return asyncio.create_task(self._answer(context, options, message))

        reader = asyncio.create_task(stream.read(messages, begin))
        try:
            while await stream.more():
                message, answer = stream.begun[0]
                yield await answer
                stream.release(message)
            await reader
        finally:
            left = [reader, *(answer for _, answer in stream.begun)]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _answer(self, context: RequestContext, options: StreamOptions, message: StreamTexts) -> StreamAnswer:
        if len(message.texts) > MAX_TEXTS:
            error = invalid_field("texts", f"{len(message.texts):,} are too many; give {MAX_TEXTS:,} at most.")
            return StreamAnswer(message.request_id, error=error)
        try:
            expansions = await self._expander.expand(
                context, options.deployment_id, message.texts, options.side, wait=True
            )
        except Exception as caught:
            if _ends_stream(caught):
                raise
            return StreamAnswer(message.request_id, error=caught)
        return StreamAnswer(message.request_id, expansions)


def _ends_stream(error: Exception) -> bool:
    """Tell whether the texts of later messages would meet the same error.

    What is wrong with texts is an InvalidArgumentError, or no error of the domain at all (a bug that they bring out).
    Which side reads them is said once for the stream.
    """
    if isinstance(error, InvalidArgumentError):
        return any(violation.field == "input_type" for violation in error.violations)
    return isinstance(error, TermwiseError)


class _Stream:
    """What was read and is not answered, in order."""

    def __init__(self, limits: StreamLimits) -> None:
        self.begun: deque[tuple[StreamTexts, asyncio.Task[StreamAnswer]]] = deque()
        self._limits = limits
        self._texts = self._bytes = 0
        self._ended = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    async def read(self, messages: AsyncIterator[StreamTexts], begin: _Begin) -> None:
        """Begin messages as they arrive, as long as there is room."""
        try:
            async for message in messages:
                while not self._has_room(message):
                    self._room.clear()
                    await self._room.wait()
                self._texts += len(message.texts)
                self._bytes += message.size
                self.begun.append((message, begin(message)))
                self._changed.set()
        finally:
            self._ended = True
            self._changed.set()

    async def more(self) -> bool:
        """Wait until a message is begun; False where none is and none comes."""
        while not self.begun and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        return bool(self.begun)

    def release(self, message: StreamTexts) -> None:
        """Make room: the first message is answered, and its answer handed on."""
        self.begun.popleft()
        self._texts -= len(message.texts)
        self._bytes -= message.size
        self._room.set()

    def _has_room(self, message: StreamTexts) -> bool:
        limits = self._limits
        return not self.begun or (
            len(self.begun) < limits.messages
            and self._texts + len(message.texts) <= limits.texts
            and self._bytes + message.size <= limits.text_bytes
        )
