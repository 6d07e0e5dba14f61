"""What computes a model's largest logits: the kernel where it runs, torch elsewhere.

Where the kernel does, torch is not imported, which would take a second of each start.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from termwise.server.inference.findings import is_known, remember
from termwise.server.inference.hardware import compute_threads, has_amx, torch_has_bfloat16
from termwise.server.inference.native.layout import Kind
from termwise.server.inference.native.library import best_level
from termwise.server.inference.native.network import NativeNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from termwise.server.inference.artefacts import ModelFolder
    from termwise.server.inference.native.library import Level

# Up to this hidden width the layers stay in float32, whatever the precision: the head is nearly all of the work, so
# bfloat16 layers gain little, and they make two thirds of the drift (measured with 128: weights off by .0078 against
# .0027).
NARROW = 128
# Tokens of the text that networks are timed with.
_PROBE_TOKENS = 128
_KERNEL_WINS = "kernel-wins"
_KINDS = {"float32": Kind.FLOAT32, "bfloat16": Kind.BFLOAT16, "int8": Kind.INT8}


class Network(Protocol):
    """A model from vocabulary ids to largest logits. Thread-safe."""

    @property
    def engine(self) -> str:
        """What computes: "native", which is the kernel, or "torch"."""
        ...

    @property
    def kernel(self) -> str:
        """What computes, more closely: a level of instructions of the kernel, "torch", or a device's name."""
        ...

    @property
    def place(self) -> str:
        """Where it computes: "cpu" or "cuda"."""
        ...

    def pool(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Give the largest logits `[texts, vocabulary]`, bias included.

        The array may be the calling thread's own, and lasts until its next call.

        Args:
            texts: vocabulary ids, sorted by length, none of them empty.

        """
        ...


@runtime_checkable
class PositiveNetwork(Network, Protocol):
    """A network of whose logits only the positive ones leave the place where it computes."""

    def positive(self, texts: Sequence[Sequence[int]]) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Give each text's vocabulary ids whose largest logit is positive, ascending, and those logits."""
        ...


def make_networks(
    folder: ModelFolder, weights: Mapping[str, NDArray[np.float32]], precision: str, cache: Path | None = None
) -> Iterable[Callable[[], Network]]:
    """Give what makes the networks that compute in a precision here, the best one first.

    Making one, or its first use, raises RuntimeError where the processor or this build of torch lacks a product, and
    RuntimeError or MemoryError where memory does not suffice.

    Args:
        folder: the model.
        weights: its weights in float32, by today's names.
        precision: "float32", "bfloat16" or "int8"; the last one has no network but the kernel's.
        cache: folder that keeps whether the kernel was the fastest, where networks must be timed.

    """
    makers = _makers(folder, weights, precision)
    if precision != "bfloat16" or not has_amx():
        return makers
    # Which one wins depends on the model's width; so far nobody has measured it.
    shape = folder.dimensions, compute_threads()
    if is_known(cache, _KERNEL_WINS, *shape):
        return makers
    ranked = fastest_first(makers, folder.dimensions.longest)
    if isinstance(ranked[0], _Made) and ranked[0].network.engine == "native":
        remember(cache, _KERNEL_WINS, *shape)
    return ranked


def fastest_first(
    makers: Iterable[Callable[[], Network]], longest: int, clock: Callable[[], float] = time.perf_counter
) -> list[Callable[[], Network]]:
    """Sort networks by the time that a text of up to 128 tokens takes them; those that do not run come last."""
    text = [0] * min(_PROBE_TOKENS, longest)
    timed: list[tuple[float, Callable[[], Network]]] = []
    for make in makers:
        try:
            network = make()
            network.pool([text])  # the first call touches the weights
            start = clock()
            network.pool([text])
        except (RuntimeError, MemoryError):
            timed.append((math.inf, make))  # whoever makes it again hears why
        else:
            timed.append((clock() - start, _Made(network)))
    return [make for _, make in sorted(timed, key=itemgetter(0))]


@dataclass(frozen=True, slots=True)
class _Made:
    """Gives a network that is there already."""

    network: Network

    def __call__(self) -> Network:
        return self.network


def _makers(
    folder: ModelFolder, weights: Mapping[str, NDArray[np.float32]], precision: str
) -> Iterator[Callable[[], Network]]:
    kind = _KINDS[precision]
    level = best_level()
    if level is not None and kind in level.kinds:
        narrow = folder.dimensions.hidden <= NARROW
        yield partial(_make_native, level, folder, weights, (Kind.FLOAT32 if narrow else kind, kind))
        if kind is Kind.INT8 and not narrow:
            # Some models have numbers of very different size in one row. The head alone in int8 is worth having too.
            layers = Kind.BFLOAT16 if Kind.BFLOAT16 in level.kinds else Kind.FLOAT32
            yield partial(_make_native, level, folder, weights, (layers, kind))
    if precision == "float32" or (precision == "bfloat16" and torch_has_bfloat16()):
        yield partial(_make_torch, folder, weights, precision)


def has_int8() -> bool:
    """Tell whether there is a network that computes in int8 here."""
    level = best_level()
    return level is not None and Kind.INT8 in level.kinds


def _make_torch(folder: ModelFolder, weights: Mapping[str, NDArray[np.float32]], precision: str) -> Network:
    from termwise.server.inference.torch_network import TorchNetwork  # noqa: PLC0415 - imports torch

    return TorchNetwork(folder, weights, precision)


def _make_native(
    level: Level, folder: ModelFolder, weights: Mapping[str, NDArray[np.float32]], kinds: tuple[Kind, Kind]
) -> Network:
    dimensions = folder.dimensions
    distances = None
    if dimensions.relative_buckets:
        distances = _distances(weights[f"{folder.architecture.embeddings['relative']}.weight"], dimensions.longest)
    return NativeNetwork(
        level,
        weights.__getitem__,
        folder.architecture,
        dimensions,
        folder.bias,
        kinds,
        distances=distances,
        threads=compute_threads,
    )


def _distances(table: NDArray[np.float32], longest: int) -> NDArray[np.float32]:
    """Give what attention adds by distance, `[heads, 2 * longest - 1]`; see `NativeNetwork`."""
    import torch  # noqa: PLC0415 - its logarithm decides where a bucket ends, as in transformers

    from termwise.server.inference.body import relative_bias  # noqa: PLC0415 - imports torch

    bias = relative_bias(torch.from_numpy(table), longest).numpy()
    # It depends on the distance alone: the last token's row backwards, then the first token's row.
    return np.concatenate([bias[:, -1, :-1], bias[:, 0, :]], axis=1)
