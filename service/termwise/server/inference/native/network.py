"""A whole model in the kernel: embeddings, layers and head in one call."""

from __future__ import annotations

import ctypes
import os
import threading
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from termwise.server.inference.architectures import ACTIVATIONS
from termwise.server.inference.memory import allocate
from termwise.server.inference.native.layout import (
    Activation,
    BatchStructure,
    Kind,
    LayerStructure,
    Matrix,
    ModelStructure,
    Norm,
    aligned,
    to_bfloat16,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from termwise.server.inference.architectures import Architecture, Dimensions
    from termwise.server.inference.native.library import Level

    Tensor = Callable[[str], NDArray[np.float32]]

_ACTIVATIONS = {
    ("gelu", "none"): Activation.GELU,
    ("gelu", "tanh"): Activation.GELU_TANH,
    ("relu", ""): Activation.RELU,
}
# Fewest tokens that a further thread is worth waiting for: a query runs alone, where two threads on a busy machine took
# five times as long.
_TOKENS_A_THREAD = 64


def team_size(asked: int, tokens: int) -> int:
    """Tell how many threads compute: no more than were asked for, than have work, or than this thread has processors.

    A team waits for each of its threads after every step, so that one without a processor holds up all.
    """
    return min(asked, tokens // _TOKENS_A_THREAD + 1, len(os.sched_getaffinity(0)))


class NativeNetwork:
    """Gives the largest logits of texts. Thread-safe: each thread has scratch memory of its own."""

    engine, place = "native", "cpu"

    def __init__(
        self,
        level: Level,
        tensor: Tensor,
        architecture: Architecture,
        dimensions: Dimensions,
        bias: str,
        kinds: tuple[Kind, Kind],
        *,
        distances: NDArray[np.float32] | None = None,
        threads: Callable[[], int] = lambda: 1,
    ) -> None:
        """Lay the weights out.

        Args:
            level: the instructions to compute with.
            tensor: gives a weight by name.
            architecture: the weights' names.
            dimensions: the model's figures.
            bias: name of the head's vocabulary bias.
            kinds: numbers that the layers multiply, and the decoder.
            distances: what attention adds by distance, `[heads, 2 * longest - 1]`, from the furthest token before to
                the furthest after; None where it adds nothing.
            threads: asked at each call how many threads may compute; see `team_size`.

        """
        body, head = kinds
        self.kernel = f"{level.name}, layers in {body.name.lower()}"
        self._level, self._tensor, self._kind = level, tensor, body
        self._threads = threads
        self._kept: list[object] = []
        self._local = threading.local()
        self._dimensions = dimensions
        names = architecture.embeddings
        words = tensor(f"{names['word']}.weight")
        positions = tensor(f"{names['position']}.weight")
        if "type" in names:
            # A single text is all of the first type, so its vector is a constant.
            positions = positions + tensor(f"{names['type']}.weight")[0]
        wide = body is not Kind.FLOAT32
        # Pairs of numbers make a unit, so that an odd head would begin inside one.
        paired = dimensions.hidden // dimensions.heads % 2 == 0
        halves = wide and paired and Kind.BFLOAT16 in level.kinds
        layers = [
            self._layer({part: name.format(layer=number) for part, name in architecture.layer.items()})
            for number in range(dimensions.layers)
        ]
        decoder = names["word"] if dimensions.tied else architecture.head["decoder"]
        transform = self._matrix([architecture.head["transform"]], dimensions.head_activation)
        project = self._matrix([names["project"]]) if dimensions.projects else None
        self._model = ModelStructure(
            embedding=dimensions.embedding,
            hidden=dimensions.hidden,
            heads=dimensions.heads,
            layers=dimensions.layers,
            words_kind=Kind.BFLOAT16 if wide else Kind.FLOAT32,
            attention_kind=Kind.BFLOAT16 if halves else Kind.FLOAT32,
            furthest=dimensions.longest,
            epsilon=dimensions.epsilon,
            words=self._keep(to_bfloat16(words) if wide else words),
            positions=self._keep(positions),
            distances=None if distances is None else self._keep(distances),
            project=None if project is None else ctypes.pointer(project),
            layer=(LayerStructure * len(layers))(*layers),
            embedding_norm=self._norm(names["norm"]),
            transform=transform,
            head_norm=self._norm(architecture.head["norm"]),
            decoder=self._pack(Matrix(tensor(f"{decoder}.weight"), tensor(bias), head, level.panel)),
        )
        # They are laid out now; a second copy of them would take as much memory again.
        del self._tensor

    def pool(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Give the largest logits `[texts, vocabulary]`, bias included; no text is empty.

        The array is the calling thread's own, and lasts until its next call.

        Raises:
            IndexError: an id is not in the vocabulary, or a text is longer than there are positions.

        """
        dimensions = self._dimensions
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        starts = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(lengths, out=starts[1:])
        ids = np.fromiter(chain.from_iterable(texts), np.int32, int(starts[-1]))
        if not 0 < lengths.min() <= lengths.max() <= dimensions.longest:
            raise IndexError("A text is empty, or longer than the model has positions.")
        if ids.min() < 0 or ids.max() >= dimensions.vocabulary:
            raise IndexError("An id is not in the vocabulary.")
        places = self._places(ids, starts, lengths)
        threads = team_size(self._threads(), ids.size)
        batch = BatchStructure(ids.ctypes.data, places.ctypes.data, starts.ctypes.data, len(texts), threads)
        scratch = self._memory("scratch", self._level.scratch(self._model, batch))
        size = len(texts) * dimensions.vocabulary
        out = self._memory("out", size * 4)[: size * 4].view(np.float32).reshape(len(texts), dimensions.vocabulary)
        self._level.encode(self._model, batch, scratch.ctypes.data, out.ctypes.data)
        return out

    def _places(
        self, ids: NDArray[np.int32], starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """Give each token's row of the positions."""
        offset = self._dimensions.position_offset
        places: NDArray[np.int32] = np.arange(offset, offset + ids.size, dtype=np.int32)
        if lengths.size > 1:
            places -= np.repeat(starts[:-1].astype(np.int32), lengths)
        padding = offset - 1
        if offset and (ids == padding).any():
            # A text that spells the padding token out: see `Dimensions`.
            for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
                counted = ids[start:end] != padding
                places[start:end] = np.cumsum(counted) * counted + padding
        return places

    def _memory(self, name: str, size: int) -> NDArray[np.uint8]:
        """Give the thread's memory of that name, at least `size` bytes, on a cache line; it grows and is used again."""
        found: NDArray[np.uint8] | None = getattr(self._local, name, None)
        if found is None or found.size < size:
            found = allocate(size)
            setattr(self._local, name, found)
        return found

    def _layer(self, names: dict[str, str]) -> LayerStructure:
        return LayerStructure(
            self._matrix([names["query"], names["key"], names["value"]]),
            self._matrix([names["attention"]]),
            self._matrix([names["intermediate"]], self._dimensions.activation),
            self._matrix([names["output"]]),
            self._norm(names["attention_norm"]),
            self._norm(names["output_norm"]),
        )

    def _matrix(self, names: Sequence[str], activation: str = "") -> object:
        weight = np.concatenate([self._tensor(f"{name}.weight") for name in names])
        bias = np.concatenate([self._tensor(f"{name}.bias") for name in names])
        kind = _ACTIVATIONS[ACTIVATIONS[activation]] if activation else Activation.NONE
        return self._pack(Matrix(weight, bias, self._kind, self._level.panel, kind))

    def _norm(self, name: str) -> object:
        norm = Norm(self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias"))
        self._kept.append(norm)
        return norm.structure

    def _pack(self, matrix: Matrix) -> object:
        self._kept.append(matrix)
        return matrix.structure

    def _keep(self, values: NDArray[np.generic]) -> int:
        copy = aligned(values)
        self._kept.append(copy)
        return int(copy.ctypes.data)
