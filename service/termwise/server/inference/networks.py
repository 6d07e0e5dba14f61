"""What computes a model's largest logits: the kernel where it runs, torch elsewhere."""

from __future__ import annotations

import math
import time
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

import torch

from termwise.server.inference.body import DTYPES, NARROW, Body, layers_dtype, relative_bias
from termwise.server.inference.hardware import has_amx, torch_has_bfloat16
from termwise.server.inference.head import PooledHead
from termwise.server.inference.native.layout import Kind
from termwise.server.inference.native.library import best_level
from termwise.server.inference.native.network import NativeNetwork
from termwise.server.inference.packing import group_lengths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from termwise.server.inference.artefacts import ModelFolder
    from termwise.server.inference.native.library import Level

# Tokens of the text that networks are timed with.
_PROBE_TOKENS = 128
_KINDS = {"float32": Kind.FLOAT32, "bfloat16": Kind.BFLOAT16, "int8": Kind.INT8}


class Network(Protocol):
    """A model from vocabulary ids to largest logits. Thread-safe."""

    @property
    def kernel(self) -> str:
        """What computes: a level of instructions of the kernel, or "torch"."""
        ...

    def pool(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Give the largest logits `[texts, vocabulary]`, bias included.

        The array may be the calling thread's own, and lasts until its next call.

        Args:
            texts: vocabulary ids, sorted by length, none of them empty.

        """
        ...


class TorchNetwork:
    """A model in torch's operations, on any processor."""

    kernel = "torch"

    def __init__(self, folder: ModelFolder, tensors: Mapping[str, Tensor], precision: str) -> None:
        """Lay the weights out."""
        architecture, dimensions = folder.architecture, folder.dimensions
        dtype, body_dtype = DTYPES[precision], layers_dtype(dimensions, precision)
        with torch.inference_mode():
            self._body = Body(tensors.__getitem__, architecture, dimensions, body_dtype)
            self._head = PooledHead(tensors.__getitem__, architecture, dimensions, folder.bias, dtype, body_dtype)

    def pool(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Give the largest logits; see `Network.pool`."""
        groups = group_lengths([len(ids) for ids in texts])
        with torch.inference_mode():
            packed = torch.tensor([number for ids in texts for number in ids])
            logits: NDArray[np.float32] = self._head(self._body(packed, groups), groups).numpy()
        return logits


def make_networks(
    folder: ModelFolder, tensors: Mapping[str, Tensor], precision: str
) -> Sequence[Callable[[], Network]]:
    """Give what makes the networks that compute in a precision here, the best one first.

    Making one, or its first use, raises RuntimeError where the processor or this build of torch lacks a product, and
    RuntimeError or MemoryError where memory does not suffice.

    Args:
        folder: the model.
        tensors: its weights in float32, by today's names.
        precision: "float32", "bfloat16" or "int8"; the last one has no network but the kernel's.

    """
    makers = list(_makers(folder, tensors, precision))
    if precision == "bfloat16" and has_amx():
        # Which one wins depends on the model's width; so far nobody has measured it.
        return fastest_first(makers, folder.dimensions.longest)
    return makers


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
            timed.append((clock() - start, partial(_identity, network)))
    return [make for _, make in sorted(timed, key=itemgetter(0))]


def _identity(network: Network) -> Network:
    return network


def _makers(folder: ModelFolder, tensors: Mapping[str, Tensor], precision: str) -> Iterator[Callable[[], Network]]:
    kind = _KINDS[precision]
    level = best_level()
    if level is not None and kind in level.kinds:
        narrow = folder.dimensions.hidden <= NARROW
        yield partial(_make_native, level, folder, tensors, (Kind.FLOAT32 if narrow else kind, kind))
        if kind is Kind.INT8 and not narrow:
            # Some models have numbers of very different size in one row. The head alone in int8 is worth having too.
            layers = Kind.BFLOAT16 if Kind.BFLOAT16 in level.kinds else Kind.FLOAT32
            yield partial(_make_native, level, folder, tensors, (layers, kind))
    if precision == "float32" or (precision == "bfloat16" and torch_has_bfloat16()):
        yield partial(TorchNetwork, folder, tensors, precision)


def has_int8() -> bool:
    """Tell whether there is a network that computes in int8 here."""
    level = best_level()
    return level is not None and Kind.INT8 in level.kinds


def _make_native(level: Level, folder: ModelFolder, tensors: Mapping[str, Tensor], kinds: tuple[Kind, Kind]) -> Network:
    dimensions = folder.dimensions
    distances = None
    if dimensions.relative_buckets:
        table = tensors[f"{folder.architecture.embeddings['relative']}.weight"]
        bias = relative_bias(table, dimensions.longest)
        # It depends on the distance alone: the last token's row backwards, then the first token's row.
        distances = torch.cat([bias[:, -1, :-1], bias[:, 0, :]], dim=1).numpy()
    return NativeNetwork(
        level,
        lambda name: tensors[name].numpy(),
        folder.architecture,
        dimensions,
        folder.bias,
        kinds,
        distances=distances,
        # The one home of a worker's threads: see `hardware.set_compute_threads`.
        threads=torch.get_num_threads,
    )
