"""Encoders in memory: deployments of one model share one, since encoders keep no state between calls."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from termwise.server.inference.memory import give_back_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from termwise.server.inference.base import Encoder, ExpansionConfig

Load: TypeAlias = "Callable[[Path, ExpansionConfig, int, str], Encoder]"
"""Loads an encoder from a model's folder for a number of threads and a precision; blocks."""

_AT_ONCE: Final = 2
"""Models that are loaded at a time: loading reads the disk and checks with the processor."""


@dataclass(frozen=True, slots=True)
class EncoderKey:
    """What must be equal for an encoder to be shared. A model that is deleted and put again is another one.

    `precision` is what the encoder is loaded with: of a deployment that asks for none, the server's.
    """

    model_id: str
    create_time: datetime
    threads: int
    precision: str


@dataclass(slots=True)
class _Shared:
    loading: asyncio.Future[Encoder]
    users: int = 0


class Encoders:
    """Loads encoders in threads, and keeps each as long as someone uses it."""

    def __init__(self, load: Load) -> None:
        """Begin with none."""
        self._load = load
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="model-load")
        self._shared: dict[EncoderKey, _Shared] = {}

    async def acquire(self, key: EncoderKey, folder: Path, config: ExpansionConfig) -> Encoder:
        """Give the encoder of a key, loading it for the first who asks. Give it back with `release`.

        Raises whatever loading raises; there is then nothing to release. The next who asks loads anew.
        """
        shared = self._shared.get(key)
        if shared is None:
            loop = asyncio.get_running_loop()
            shared = _Shared(
                loop.run_in_executor(self._threads, self._load, folder, config, key.threads, key.precision)
            )
            self._shared[key] = shared
        shared.users += 1
        try:
            # Shielded: the others still wait for it when one of them is cancelled.
            return await asyncio.shield(shared.loading)
        except BaseException:
            self._leave(key, shared)
            raise

    def release(self, key: EncoderKey) -> None:
        """Give one use of an encoder back."""
        self._leave(key, self._shared[key])

    def _leave(self, key: EncoderKey, shared: _Shared) -> None:
        shared.users -= 1
        failed = shared.loading.done() and (shared.loading.cancelled() or shared.loading.exception() is not None)
        if (shared.users == 0 or failed) and self._shared.get(key) is shared:
            del self._shared[key]
            # Soon, since whoever gives an encoder back still has it in hand.
            asyncio.get_running_loop().call_soon(self._tidy)

    def _tidy(self) -> None:
        with suppress(RuntimeError):  # closed meanwhile
            self._threads.submit(give_back_memory)

    def close(self) -> None:
        """Load no more. A load that runs is not waited for; its result is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
