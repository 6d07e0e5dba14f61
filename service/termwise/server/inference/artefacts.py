"""A model's folder: which files it must hold, and what they say. Nothing here needs torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.architectures import (
    Architecture,
    Dimensions,
    current_name,
    find_architecture,
    read_dimensions,
    tensor_shapes,
)

if TYPE_CHECKING:
    from pathlib import Path

    from termwise.server.inference.layouts import SpecialTokens

_FLOAT32_BYTES = 4
# Names under which weights come as pickles, which run code when they are opened and are never read here.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


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
        files = {*self.weights, *self.tokenizer, self.path / "config.json", self.path / "tokenizer_config.json"}
        return sum(file.stat().st_size for file in files if file.exists())


def open_folder(path: Path) -> ModelFolder:
    """Read what a model's folder says of itself, and check that its tensors are there in the right shapes.

    Raises:
        FailedPreconditionError: a file is missing or broken, the weights are a pickle, or the architecture is not
            supported; the message is one sentence that names the file.

    """
    if not path.is_dir():
        raise _unusable("its folder does not exist; download it again")
    config = _read_json(path / "config.json")
    architecture = find_architecture(config)
    dimensions = read_dimensions(architecture, config)
    weights = _find_weights(path)
    shapes = {current_name(name): shape for file in weights for name, shape in _shapes(file).items()}
    bias = _check_tensors(shapes, architecture, dimensions)
    _check_pooling(path)
    tokenizer = _find_tokenizer(path, architecture)
    settings = path / "tokenizer_config.json"
    tokenizer_config = _read_json(settings) if settings.is_file() else {}
    size = _FLOAT32_BYTES * sum(map(math.prod, shapes.values()))
    return ModelFolder(path, config, tokenizer_config, architecture, dimensions, weights, tokenizer, bias, size)


def _find_tokenizer(path: Path, architecture: Architecture) -> tuple[Path, ...]:
    for names in (("tokenizer.json",), architecture.vocabulary_files):
        files = tuple(path / name for name in names)
        if files and all(file.is_file() for file in files):
            return files
    if not architecture.vocabulary_files:
        raise _unusable("tokenizer.json is missing; add it")
    others = " and ".join(architecture.vocabulary_files)
    raise _unusable(f"tokenizer.json is missing, and {others} too; add one of them")


def _find_weights(path: Path) -> tuple[Path, ...]:
    whole = path / "model.safetensors"
    if whole.is_file():
        return (whole,)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) else []
        # A shard lies beside its index; a path that leaves the folder is not one.
        if not names or any(not isinstance(name, str) or "/" in name or "\\" in name for name in names):
            raise _unusable("model.safetensors.index.json does not name the files of the weights")
        for name in names:
            if not (path / name).is_file():
                raise _unusable(f"{name} is missing, which model.safetensors.index.json names")
        return tuple(path / name for name in names)
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise FailedPreconditionError(
            f"The model's weights are a pickle ({pickles[0]}), which is never read; convert them to model.safetensors.",
            reason="MODEL_IS_PICKLE",
            metadata={"file": pickles[0]},
        )
    raise _unusable("model.safetensors is missing; add it")


def _check_tensors(shapes: dict[str, tuple[int, ...]], architecture: Architecture, dimensions: Dimensions) -> str:
    for name, shape in tensor_shapes(architecture, dimensions).items():
        if name not in shapes:
            raise _unusable(f'its weights lack the tensor "{name}"')
        if shapes[name] != shape:
            raise _unusable(
                f'its tensor "{name}" has the shape {list(shapes[name])} where config.json needs {list(shape)}'
            )
    # Tied, the model reads the first of them; untied, the decoder's own, which stands last.
    for bias in architecture.bias if dimensions.tied else reversed(architecture.bias):
        if shapes.get(bias) == (dimensions.vocabulary,):
            return bias
    raise _unusable(f'its weights lack the tensor "{architecture.bias[0]}"')


def _check_pooling(path: Path) -> None:
    """Refuse a sentence-transformers folder whose pooling is not the one computed here: `log1p(relu(max))`."""
    listing = path / "modules.json"
    if not listing.is_file():
        return
    try:
        modules = json.loads(listing.read_text(encoding="utf-8"))
        pooling = [str(each["path"]) for each in modules if str(each["type"]).endswith("SpladePooling")]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unusable("modules.json is broken; download it again") from error
    for name in pooling:
        settings = path / name / "config.json"
        stated = _read_json(settings) if settings.is_file() else {}
        if stated.get("pooling_strategy", "max") != "max" or stated.get("activation_function", "relu") != "relu":
            raise _unusable(f"its pooling ({name}) is not the maximum of SPLADE, which is the one supported")


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - not a need of the client's install

    try:
        # The frame of reference is NumPy's, so that a look at the header does not import torch.
        with safe_open(file, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unusable(f"{file.name} is not a safetensors file or is incomplete; download it again") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _unusable(f"{file.name} is missing; add it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(f"{file.name} is not readable JSON; download it again") from error
    if not isinstance(value, dict):
        raise _unusable(f"{file.name} does not hold a JSON object; download it again")
    return value


def _unusable(problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"The model cannot be used: {problem}.", reason="MODEL_UNUSABLE")
