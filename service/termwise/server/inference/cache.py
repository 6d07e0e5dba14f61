"""Expansions of texts that were asked before, so that the model need not run again."""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from termwise.server.inference.base import Expansion, Side

Key: TypeAlias = "tuple[Side, str | bytes]"
"""What equal texts share: the side that reads them, and the text or, of a long one, its digest."""

# Longest text, in characters, that is its own key; queries are shorter, passages longer.
_LONGEST_KEY = 64
# Bytes of a digest: two texts share one by chance once in 2^64 texts (BLAKE2b, so nobody finds two on purpose either).
_DIGEST_BYTES = 16
# Bytes of what an entry is made of beside its tokens and its text: the key, the expansion, two array headers, and its
# place in the order (sys.getsizeof of each, CPython 3.11).
_ENTRY_BYTES = 560


def cache_key(text: str, side: Side) -> Key:
    """Give what a text of a side is known by."""
    if len(text) <= _LONGEST_KEY:
        return side, text
    return side, hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


def entry_bytes(key: Key, expansion: Expansion) -> int:
    """Give the memory that a cached expansion takes, its key included; the strings of tokens are the vocabulary's."""
    arrays = _held_bytes(expansion.token_ids) + _held_bytes(expansion.weights)
    return _ENTRY_BYTES + sys.getsizeof(key[1]) + sys.getsizeof(expansion.tokens) + arrays


def _held_bytes(array: NDArray[Any]) -> int:
    """Give the bytes that an array keeps alive: all of another's where it is a part of that."""
    return array.nbytes if array.base is None else max(array.nbytes, getattr(array.base, "nbytes", 0))


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """How a cache does. Hits are texts answered without a run of the model for them; misses those it ran for."""

    size_bytes: int = 0
    used_bytes: int = 0
    hits: int = 0
    misses: int = 0


class ExpansionCache:
    """Keeps the expansions that were asked for last, up to a number of bytes. Not thread-safe: its owner has a lock.

    What it gives is shared by all who ask, and may not be changed.
    """

    def __init__(self, size_bytes: int) -> None:
        """Begin empty; a size of 0 keeps nothing."""
        self.size_bytes = size_bytes
        self.used_bytes = 0
        self._entries: OrderedDict[Key, tuple[Expansion, int]] = OrderedDict()

    def __len__(self) -> int:
        """Give the number of expansions."""
        return len(self._entries)

    def get(self, key: Key) -> Expansion | None:
        """Give what became of a text, which is then the one asked for last; None where it is not known."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Key, expansion: Expansion) -> None:
        """Keep what became of a text, in place of what was not asked for longest; one that never fits is not kept."""
        size = entry_bytes(key, expansion)
        if size > self.size_bytes:
            return
        before = self._entries.pop(key, None)
        if before is not None:
            self.used_bytes -= before[1]
        self._entries[key] = (expansion, size)
        self.used_bytes += size
        while self.used_bytes > self.size_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.used_bytes -= freed

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.used_bytes = 0
