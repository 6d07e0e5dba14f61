"""The folder of a model that the fast path knows: which files it must hold, what they say. Nothing here needs torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from termwise.server.inference.architectures import (
    Architecture,
    Dimensions,
    current_name,
    find_architecture,
    read_dimensions,
    tensor_shapes,
)
from termwise.server.inference.files import find_tokenizer, find_weights, read_json, read_shapes, total_size, unusable

if TYPE_CHECKING:
    from pathlib import Path

    from termwise.server.inference.layouts import SpecialTokens

_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's folder whose files are all there and fit together.

    `weights` are the safetensors files; `tokenizer` is tokenizer.json, or the files of the vocabulary where there is
    none; `bias` is the name of the head's vocabulary bias. `weights_bytes` is the size of all tensors in float32;
    `lowercase`: texts are put into small letters before anything else.
    """

    path: Path
    config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    architecture: Architecture
    dimensions: Dimensions
    weights: tuple[Path, ...]
    tokenizer: tuple[Path, ...]
    bias: str
    weights_bytes: int
    lowercase: bool = False

    @property
    def name(self) -> str:
        """The architecture's name."""
        return self.architecture.name

    @property
    def vocabulary(self) -> int:
        """Tokens that there are weights for."""
        return self.dimensions.vocabulary

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the model takes."""
        return self.dimensions.longest

    @property
    def hidden(self) -> int:
        """Width of a layer."""
        return self.dimensions.hidden

    @property
    def special(self) -> SpecialTokens:
        """The names of special tokens where tokenizer_config.json does not say otherwise."""
        return self.architecture.special

    @property
    def size_bytes(self) -> int:
        """Size of the files that the encoder reads."""
        own = {self.path / "config.json", self.path / "tokenizer_config.json"}
        return total_size({*self.weights, *self.tokenizer, *own})


def open_folder(path: Path) -> ModelFolder:
    """Read what a model's folder says of itself, and check that its tensors are there in the right shapes.

    Raises:
        FailedPreconditionError: a file is missing or broken, the weights are a pickle, or the architecture is not one
            that the fast path knows; the message is one sentence that names the file.

    """
    config = read_config(path)
    return open_packed(path, config, find_architecture(config))


def read_config(path: Path) -> dict[str, Any]:
    """Read a model's config.json."""
    if not path.is_dir():
        raise unusable("its folder does not exist; download it again")
    return read_json(path / "config.json")


def open_packed(path: Path, config: dict[str, Any], architecture: Architecture) -> ModelFolder:
    """Do the same for a configuration that is read already."""
    dimensions = read_dimensions(architecture, config)
    weights = find_weights(path)
    shapes = {current_name(name): shape for file in weights for name, shape in read_shapes(file).items()}
    bias = _check_tensors(shapes, architecture, dimensions)
    tokenizer = find_tokenizer(path, architecture.vocabulary_files)
    size = _FLOAT32_BYTES * sum(map(math.prod, shapes.values()))
    settings = read_tokenizer_config(path)
    return ModelFolder(path, config, settings, architecture, dimensions, weights, tokenizer, bias, size)


def read_tokenizer_config(path: Path) -> dict[str, Any]:
    """Read a folder's tokenizer_config.json; empty where there is none."""
    settings = path / "tokenizer_config.json"
    return read_json(settings) if settings.is_file() else {}


def _check_tensors(shapes: dict[str, tuple[int, ...]], architecture: Architecture, dimensions: Dimensions) -> str:
    for name, shape in tensor_shapes(architecture, dimensions).items():
        if name not in shapes:
            raise unusable(f'its weights lack the tensor "{name}"')
        if shapes[name] != shape:
            raise unusable(
                f'its tensor "{name}" has the shape {list(shapes[name])} where config.json needs {list(shape)}'
            )
    # Tied, the model reads the first of them; untied, the decoder's own, which stands last.
    for bias in architecture.bias if dimensions.tied else reversed(architecture.bias):
        if shapes.get(bias) == (dimensions.vocabulary,):
            return bias
    raise unusable(f'its weights lack the tensor "{architecture.bias[0]}"')
