"""The kernel's structures, and weights in its layout. Mirrors kernel/kernel.h."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from termwise.server.inference.memory import allocate

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 1 << 16  # numbers that are rounded at a time: they stay in the cache, and so does what lies between


class Activation(IntEnum):
    """What follows a product."""

    NONE = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3


class Kind(IntEnum):
    """Numbers that are multiplied."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2


# Numbers of each kind in a unit of 32 bits.
PER_UNIT = {Kind.FLOAT32: 1, Kind.BFLOAT16: 2, Kind.INT8: 4}


class MatrixStructure(ctypes.Structure):
    """`termwise_matrix`."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("units", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("activation", ctypes.c_int32),
    )


class RowsStructure(ctypes.Structure):
    """`termwise_rows`."""

    _fields_ = (("units", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("stride", ctypes.c_int64))


class NormStructure(ctypes.Structure):
    """`termwise_norm`."""

    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class LayerStructure(ctypes.Structure):
    """`termwise_layer`."""

    _fields_ = (
        ("mixed", MatrixStructure),
        ("attention", MatrixStructure),
        ("intermediate", MatrixStructure),
        ("output", MatrixStructure),
        ("attention_norm", NormStructure),
        ("output_norm", NormStructure),
    )


class ModelStructure(ctypes.Structure):
    """`termwise_model`."""

    _fields_ = (
        ("embedding", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("layers", ctypes.c_int64),
        ("words_kind", ctypes.c_int64),
        ("attention_kind", ctypes.c_int64),
        ("furthest", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
        ("words", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("distances", ctypes.c_void_p),
        ("project", ctypes.POINTER(MatrixStructure)),
        ("layer", ctypes.POINTER(LayerStructure)),
        ("embedding_norm", NormStructure),
        ("transform", MatrixStructure),
        ("head_norm", NormStructure),
        ("decoder", MatrixStructure),
    )


class BatchStructure(ctypes.Structure):
    """`termwise_batch`."""

    _fields_ = (
        ("ids", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("texts", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    )


class Matrix:
    """A packed matrix and its bias, kept alive beside the structure that points to them."""

    def __init__(
        self,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        kind: Kind,
        panel: int,
        activation: Activation = Activation.NONE,
    ) -> None:
        """Pack `weight` `[outputs, inputs]` for panels of `panel` outputs."""
        outputs, inputs = weight.shape
        self.kind, self.outputs, self.inputs = kind, outputs, inputs
        self.units = -(-inputs // PER_UNIT[kind])
        self.panels = -(-outputs // panel)
        shape = self.panels * panel, self.units * PER_UNIT[kind]
        padded = allocate(4 * shape[0] * shape[1]).view(np.float32).reshape(shape)
        padded[outputs:], padded[:, inputs:] = 0, 0
        padded[:outputs, :inputs] = weight
        scale = offset = None
        if kind is Kind.INT8:
            scale = np.abs(padded).max(axis=1) / np.float32(127)
            whole = np.rint(padded / np.where(scale > 0, scale, 1)[:, None])
            # The processor multiplies unsigned rows with signed weights, so rows are stored plus 128.
            offset = (-128 * whole.sum(axis=1)).astype(np.int32)
            numbers: NDArray[Any] = whole.astype(np.int8)
        else:
            numbers = to_bfloat16(padded) if kind is Kind.BFLOAT16 else padded
        units = numbers.view(np.uint32).reshape(self.panels, panel, self.units)
        self._kept = [aligned(units.transpose(0, 2, 1)), np.zeros(self.panels * panel, dtype=np.float32)]
        if bias is not None:
            self._kept[1][:outputs] = bias
        self._kept += [each for each in (offset, scale) if each is not None]
        pointers = [each.ctypes.data for each in self._kept] + [None] * (4 - len(self._kept))
        self.structure = MatrixStructure(*pointers, outputs, self.units, kind, activation)

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return sum(each.nbytes for each in self._kept)


class Norm:
    """A layer norm's weights, kept alive beside the structure that points to them."""

    def __init__(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        """Copy the weights."""
        self._kept = [aligned(weight), aligned(bias)]
        self.structure = NormStructure(*(each.ctypes.data for each in self._kept))


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; a NaN stays one."""
    made = allocate(2 * values.size).view(np.uint16)
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        bits = part.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        made[start : start + _BLOCK] = np.where(np.isnan(part), np.uint32(0x7FC0), rounded)
    return made.reshape(values.shape)


def aligned(values: NDArray[Any]) -> NDArray[Any]:
    """Copy to contiguous memory that begins on a cache line."""
    copy = allocate(values.nbytes).view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy
