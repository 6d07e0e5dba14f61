"""A model's weights out of its safetensors files. Nothing here needs torch, which takes a second to import."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.architectures import current_name
from termwise.server.inference.memory import allocate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

    from numpy.typing import NDArray

    from termwise.server.inference.artefacts import ModelFolder
    from termwise.server.inference.plain_folder import PlainFolder

_BFLOAT16 = "BF16"
# NumPy's types by the names of the safetensors format; numbers of two bytes that it lacks are read as they lie.
_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    _BFLOAT16: "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def read_weights(folder: ModelFolder | PlainFolder) -> dict[str, NDArray[np.float32]]:
    """Read all weights of an opened folder into memory as float32, under today's names.

    Raises:
        FailedPreconditionError: a tensor is of numbers that are not read, or a file changed since it was opened.

    """
    weights: dict[str, NDArray[np.float32]] = {}
    for file in folder.weights:
        try:
            with file.open("rb") as stream:
                for name, array in _read_file(stream):
                    weights[current_name(name)] = array
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unusable(f"{file.name} is not a safetensors file or is incomplete; download it again") from error
    return weights


def _read_file(stream: BufferedReader) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Give the tensors of a file: 8 bytes that tell the length of a JSON header, the header, and the numbers."""
    length = int.from_bytes(stream.read(8), "little")
    header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        kind, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if kind not in _TYPES:
            raise _unusable(f'its tensor "{name}" is stored as {kind}, which is not read; convert it to float32')
        dtype = np.dtype(_TYPES[kind])
        stream.seek(8 + length + start)
        # A copy in memory: the file may be replaced while the model is in use.
        raw = allocate(end - start)
        if stream.readinto(raw.data) != end - start:
            message = "the file ends within a tensor"
            raise ValueError(message)
        numbers: NDArray[Any] = raw.view(dtype)
        if kind == _BFLOAT16:
            # The upper half of a float32.
            numbers = (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
        yield name, numbers.astype(np.float32, copy=False).reshape(shape)


def _unusable(problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"The model cannot be used: {problem}.", reason="MODEL_UNUSABLE")
