"""From an archive's tensors to the fast encoder, where they are those of an architecture that it knows.

What the shapes of tensors do not tell (the number of heads, the layer norms' epsilon, the activation) is read from the
archive's code. It need not be right: the fast encoder has to answer as the archive does, or the archive itself runs.
"""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from termwise.server.inference.architectures import ARCHITECTURES, Dimensions, current_name, tensor_shapes
from termwise.server.inference.artefacts import ModelFolder
from termwise.server.inference.extraction import PLAIN
from termwise.server.inference.torchscript.archive import Archive
from termwise.server.inference.torchscript.names import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from termwise.server.inference.architectures import Architecture
    from termwise.server.inference.base import Encoder
    from termwise.server.inference.computing import Computing
    from termwise.server.inference.torchscript.package import Package
    from termwise.server.inference.torchscript.pickles import Tensor

    Reference = Callable[[Sequence[Sequence[int]]], list[NDArray[np.float32]]]

# An archive holds one model, or a few.
_MOST_PREFIXES: Final = 8
# Between the path of an int8 layer and the names of its weights.
_PACKED: Final = "._packed_params._packed_params"
_EPSILON: Final = 1e-12
# Places of the width and the epsilon among the arguments of aten::layer_norm.
_NORM_EPSILON: Final = 4
_HEAD_WIDTH: Final = 64
_SPLIT_DIMENSIONS: Final = 4
_TYPES: Final = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "QInt8Storage": "i1",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}


@dataclass(frozen=True, slots=True)
class Host:
    """How the fast encoder would run an archive: the model in its words, and the archive's tensor for each of its."""

    folder: ModelFolder
    tensors: dict[str, Tensor]


def find_host(path: Path, state: Mapping[str, Tensor], code: Mapping[str, bytes], vocabulary: int) -> Host | None:
    """Find the architecture whose tensors an archive holds, under any prefix; None where there is none.

    Args:
        path: the package's folder.
        state: the archive's tensors by their path.
        code: its code, by the names of its files.
        vocabulary: tokens of the vocabulary file.

    """
    named = {current_name(name.replace(_PACKED, "")): tensor for name, tensor in state.items()}
    said = _read_code(code)
    for architecture in ARCHITECTURES.values():
        word = f"{architecture.embeddings['word']}.weight"
        found = (name for name in named if name == word or name.endswith(f".{word}"))
        for name in itertools.islice(found, _MOST_PREFIXES):
            start = len(name) - len(word)
            prefix = name[:start]
            inner = {each[start:]: tensor for each, tensor in named.items() if each.startswith(prefix)}
            host = _match(path, architecture, inner, said)
            if host is not None and host.folder.dimensions.vocabulary == vocabulary:
                return host
    return None


def _match(path: Path, architecture: Architecture, tensors: dict[str, Tensor], said: _Said) -> Host | None:
    try:
        dimensions = _measure(architecture, tensors, said)
        needed = tensor_shapes(architecture, dimensions)
        bias = next(
            name
            for name in (architecture.bias if dimensions.tied else reversed(architecture.bias))
            if tensors[name].shape == (dimensions.vocabulary,)
        )
    except (KeyError, StopIteration, ValueError, IndexError, ZeroDivisionError):
        return None
    if any(name not in tensors or tensors[name].shape != shape for name, shape in needed.items()):
        return None
    wanted = {name: tensors[name] for name in [*needed, bias]}
    if any(tensor.dtype not in _TYPES for tensor in wanted.values()):
        return None
    folder = ModelFolder(
        path=path,
        config={},
        tokenizer_config={},
        architecture=architecture,
        dimensions=dimensions,
        weights=(),
        tokenizer=(),
        bias=bias,
        weights_bytes=0,
    )
    return Host(folder, wanted)


def _measure(architecture: Architecture, tensors: Mapping[str, Tensor], said: _Said) -> Dimensions:
    """Read a model's figures off its tensors; KeyError where one is missing."""

    def shape(name: str) -> tuple[int, ...]:
        return tensors[f"{name}.weight"].shape

    names, layer = architecture.embeddings, architecture.layer
    vocabulary, embedding = shape(names["word"])
    hidden, _ = shape(layer["query"].format(layer=0))
    intermediate, _ = shape(layer["intermediate"].format(layer=0))
    layers = 0
    while f"{layer['query'].format(layer=layers)}.weight" in tensors:
        layers += 1
    buckets, heads = shape(names["relative"]) if "relative" in names else (0, said.heads(hidden))
    decoder, words = tensors.get(f"{architecture.head['decoder']}.weight"), tensors[f"{names['word']}.weight"]
    if hidden % heads:
        raise ValueError(heads)
    return Dimensions(
        hidden=hidden,
        layers=layers,
        heads=heads,
        intermediate=intermediate,
        activation=said.activation,
        epsilon=said.epsilon,
        vocabulary=vocabulary,
        positions=shape(names["position"])[0],
        tied=decoder is None or (decoder.key, decoder.offset) == (words.key, words.offset),
        embedding=embedding,
        head_activation=architecture.head_activation or said.activation,
        types=shape(names["type"])[0] if "type" in names else 0,
        position_offset=0 if architecture.padding is None else architecture.padding + 1,
        relative_buckets=buckets,
    )


@dataclass(frozen=True, slots=True)
class _Said:
    """What an archive's code says of a model; `widths` are how often a figure stands where heads are split off."""

    epsilon: float
    activation: str
    widths: Counter[int]

    def heads(self, hidden: int) -> int:
        """Give the number of heads: a layer is split into `[texts, tokens, heads, width]`."""
        for width, _ in self.widths.most_common():
            if 0 < width < hidden and hidden % width == 0:
                return hidden // width
        return max(1, hidden // _HEAD_WIDTH)


def _read_code(code: Mapping[str, bytes]) -> _Said:
    epsilons: Counter[float] = Counter()
    widths: Counter[int] = Counter()
    operators: set[str] = set()
    tanh = False
    for raw in code.values():
        for node in ast.walk(ast.parse(raw.decode("ascii"))):
            if isinstance(node, ast.List) and len(node.elts) == _SPLIT_DIMENSIONS:
                widths.update(_integers(node.elts[-1:]))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                operators.add(node.func.attr)
                if node.func.attr == "layer_norm" and len(node.args) > _NORM_EPSILON:
                    epsilons.update(_numbers(node.args[_NORM_EPSILON : _NORM_EPSILON + 1]))
                if node.func.attr == "gelu":
                    tanh = tanh or any(getattr(each.value, "value", "") == "tanh" for each in node.keywords)
    if {"gelu", "erf"} & operators:
        activation = "gelu_new" if tanh else "gelu"
    else:
        # Written out, its approximation takes a third power and a tanh.
        activation = "gelu_new" if {"pow", "tanh"} <= operators else "relu"
    return _Said(epsilons.most_common(1)[0][0] if epsilons else _EPSILON, activation, widths)


def _integers(nodes: Sequence[ast.expr]) -> Iterator[int]:
    for node in nodes:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            yield node.value


def _numbers(nodes: Sequence[ast.expr]) -> Iterator[float]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield node.value


def load(package: Package, reference: Reference, computing: Computing) -> Encoder:
    """Load a package into the fast encoder.

    Args:
        package: one with a host.
        reference: gives what the archive itself answers.
        computing: how to compute.

    Raises:
        FailedPreconditionError: it does not run, or its answers differ from the archive's.

    """
    from termwise.server.inference.fast import Original, load_fast  # noqa: PLC0415 - imports much

    host = package.host
    assert host is not None  # noqa: S101 - the caller looked
    return load_fast(
        host.folder,
        package.config,
        package.tokenizer,
        package.fingerprints,
        computing,
        PLAIN,
        Original(lambda: read_tensors(package.path / ARCHIVE, host.tensors), reference, package.precision),
    )


def read_tensors(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Read tensors of an archive that was looked through, as float32.

    Raises:
        FailedPreconditionError: the archive is broken.

    """
    stores: dict[str, bytearray] = {}
    read: dict[str, NDArray[np.float32]] = {}
    with Archive(file) as archive:

        def numbers(tensor: Tensor) -> NDArray[Any]:
            if tensor.key not in stores:
                stores[tensor.key] = archive.read_store("data.pkl", tensor.key)
            dtype = np.dtype(_TYPES[tensor.dtype])
            flat: NDArray[Any] = np.frombuffer(stores[tensor.key], dtype)[tensor.offset :]
            # Inside its store, as `pickles` made sure.
            strides = [step * dtype.itemsize for step in tensor.stride]
            return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides)

        for name, tensor in tensors.items():
            read[name] = np.ascontiguousarray(_to_float32(tensor, numbers))
    return read


def _to_float32(tensor: Tensor, numbers: Callable[[Tensor], NDArray[Any]]) -> NDArray[np.float32]:
    held = numbers(tensor)
    plain: NDArray[np.float32]
    if tensor.dtype == "BFloat16Storage":
        # The upper half of a float32.
        plain = (held.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return plain
    if not tensor.scale:
        plain = held.astype(np.float32, copy=False)
        return plain
    kind, scales, zeros, *axis = tensor.scale
    if kind == "per_tensor_affine":
        plain = ((held.astype(np.float32) - zeros) * np.float32(scales)).astype(np.float32)
        return plain
    broadcast = [1] * held.ndim
    broadcast[axis[0]] = -1
    scale, zero = (numbers(each).astype(np.float32).reshape(broadcast) for each in (scales, zeros))
    scaled: NDArray[np.float32] = (held.astype(np.float32) - zero) * scale
    return scaled
