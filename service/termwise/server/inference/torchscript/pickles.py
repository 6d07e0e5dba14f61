"""Reading the pickles of a TorchScript archive without unpickling them.

torch's own reader of these pickles calls nothing by name, but it believes what they say: that a tensor's store is as
long as stated, that a tensor lies inside its store. One that does not shows the memory behind it. So the pickles are
walked here first, by a machine that knows the few opcodes that torch writes and makes nothing but plain values.

The opcodes are those of Python's pickle protocol 2; what torch puts in them is in its `torch/csrc/jit/serialization`.
"""

from __future__ import annotations

import itertools
import math
import pickletools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from termwise.server.inference.torchscript.refusals import unsafe, unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Of all pickles of an archive; a BERT with 24 layers takes a tenth of them.
MOST_STEPS: Final = 2_000_000
# Far beyond any model's; products of sizes stay within 64 bits.
_MOST_ELEMENTS: Final = 1 << 40
_MOST_DIMENSIONS: Final = 64
_STORES: Final = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
}
"""Bytes of an element by the name that a pickle gives its store."""
_SCHEMES: Final = {"per_tensor_affine", "per_channel_affine"}
_LISTS: Final = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"}
# What a package's weights are held by in the int8 packages; the one class outside the archive's own code.
PACKED: Final = "__torch__.torch.classes.quantized.LinearPackedParamsBase"
_OWN: Final = re.compile(r"__torch__(\.[A-Za-z_][A-Za-z0-9_]*)*")
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor by what a pickle says of it; `dtype` is the name of its store. It lies inside that store.

    `offset` and `stride` count elements. `scale` is what a tensor in 8 bits stands for: kind, scales, zeros and axis.
    """

    dtype: str
    key: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    scale: tuple[Any, ...] = ()

    @property
    def count(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


@dataclass(slots=True, eq=False)
class Made:
    """An object of a class that the archive's code defines, with its attributes."""

    kind: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Global:
    module: str
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class _Store:
    dtype: str
    key: str
    elements: int


@dataclass(frozen=True, slots=True, eq=False)
class _New:
    """An object without its state, which for torch is none yet."""

    kind: str


_MARK: Final = object()


def read_pickle(raw: bytes, name: str, stored: Callable[[str], int], steps: Iterator[int] | None = None) -> Any:
    """Walk a pickle and give what it makes: plain values, `Made`, `Tensor`.

    Args:
        raw: the pickle.
        name: how to call it in errors.
        stored: gives the bytes of a store by its key, -1 where there is none.
        steps: counts what all of an archive's pickles take; None for one that stands alone.

    Raises:
        FailedPreconditionError: it is broken, or says what torch does not write.

    """
    machine = _Machine(name, stored)
    counter = itertools.count() if steps is None else steps
    try:
        for opcode, argument, _ in pickletools.genops(raw):
            if next(counter) > MOST_STEPS:
                raise unsafe(f"its pickles have more than {MOST_STEPS} steps")
            if opcode.name == "STOP":
                return machine.result()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, EOFError, OverflowError) as error:
        raise unusable(f"{name} of its archive is broken; download it again") from error
    raise unusable(f"{name} of its archive is incomplete; download it again")


class _Machine:
    """The stack and the memo of a pickle that is walked. Python's errors mean that it is broken."""

    def __init__(self, name: str, stored: Callable[[str], int]) -> None:
        self._name = name
        self._stored = stored
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        (value,) = self._stack
        return value

    def step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        if opcode in _VALUES:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode]())
        elif opcode in {"BINPUT", "LONG_BINPUT"}:
            if stack[-1] is _MARK:
                raise ValueError(opcode)
            self._memo[argument] = stack[-1]
        elif opcode in {"BINGET", "LONG_BINGET"}:
            stack.append(self._memo[argument])
        elif opcode == "MARK":
            stack.append(_MARK)
        elif opcode == "GLOBAL":
            stack.append(self._global(argument))
        elif opcode in _HANDLERS:
            _HANDLERS[opcode](self)
        elif opcode != "PROTO":
            raise unsafe(f"{self._name} holds the opcode {opcode}, which TorchScript does not have")

    def _global(self, argument: str) -> _Global:
        module, _, name = argument.partition(" ")
        known = (
            (module == "torch" and name in {*_STORES, *_SCHEMES})
            or (module == "torch._utils" and name in {"_rebuild_tensor_v2", "_rebuild_qtensor"})
            or (module == "torch.jit._pickle" and name in {*_LISTS, "restore_type_tag"})
            or argument == "collections OrderedDict"
            or (_OWN.fullmatch(module) and _WORD.fullmatch(name))
        )
        full = f"{module}.{name}"
        if not known or (full.startswith("__torch__.torch.classes.") and full != PACKED):
            raise unsafe(f"{self._name} names {full[:80]!a}, which TorchScript does not need")
        return _Global(module, name)

    def _since_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        values.reverse()
        return values

    def tuple_since_mark(self) -> None:
        self._stack.append(tuple(self._since_mark()))

    def tuple_of(self, count: int) -> None:
        values = tuple(self._stack[-count:])
        if len(values) < count or _MARK in values:
            raise ValueError(count)
        del self._stack[-count:]
        self._stack.append(values)

    def _pop(self) -> Any:
        """Take a value; torch keeps its marks elsewhere and would take what lies below one."""
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError(value)
        return value

    def append(self) -> None:
        value = self._pop()
        self._list().append(value)

    def appends(self) -> None:
        values = self._since_mark()
        self._list().extend(values)

    def _list(self) -> list[Any]:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError(target)
        return target

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._enter(self._dict(), key, value)

    def set_items(self) -> None:
        values = self._since_mark()
        target = self._dict()
        for key, value in zip(values[::2], values[1::2], strict=True):
            self._enter(target, key, value)

    def _enter(self, target: dict[Any, Any], key: Any, value: Any) -> None:
        if type(key) not in {str, int, float}:
            raise TypeError(key)
        # 1 and 1.0 are one key for Python and two for torch.
        if key in target:
            raise unsafe(f"{self._name} enters {ascii(key)[:40]} twice")
        target[key] = value

    def _dict(self) -> dict[Any, Any]:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError(target)
        return target

    def new_object(self) -> None:
        arguments, made = self._pop(), self._pop()
        if arguments != () or not isinstance(made, _Global) or not made.module.startswith("__torch__"):
            raise unsafe(f"{self._name} makes an object of what is not a class of its code")
        self._stack.append(_New(f"{made.module}.{made.name}"))

    def build(self) -> None:
        state, new = self._pop(), self._pop()
        if not isinstance(new, _New):
            raise TypeError(new)
        target = Made(new.kind)
        self._stack.append(target)
        if target.kind == PACKED:
            # The one with a way of its own to come to life: a weight in 8 bits and a bias.
            weight, bias = state
            if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
                raise unsafe(f"{self._name} fills packed weights with something else")
            target.state = {"weight": weight, "bias": bias}
        elif not isinstance(state, dict) or any(not isinstance(key, str) for key in state):
            raise unsafe(f"{self._name} gives an object a state of its own making")
        else:
            target.state = state

    def persistent(self) -> None:
        word, dtype, key, _, elements = self._pop()
        if word != "storage" or not isinstance(dtype, _Global) or dtype.name not in _STORES:
            raise unsafe(f"{self._name} refers to what is not a store of tensors")
        held = self._stored(key) if isinstance(key, str) else -1
        if held < 0:
            raise unusable(f"its archive lacks the tensors {str(key)[:40]!a} of {self._name}; download it again")
        _natural(elements)
        if elements * _STORES[dtype.name] > held:
            raise unsafe(f"{self._name} says that a tensor is longer than what is stored of it")
        self._stack.append(_Store(dtype.name, key, elements))

    def reduce(self) -> None:
        arguments, called = self._pop(), self._pop()
        if not isinstance(called, _Global) or not isinstance(arguments, tuple):
            raise TypeError(called)
        if called.module == "collections":
            made: Any = {}
        elif called.name in {"_rebuild_tensor_v2", "_rebuild_qtensor"}:
            made = self._tensor(called.name, *arguments)
        elif called.name in _LISTS:
            (made,) = arguments
        elif called.name == "restore_type_tag":
            made, _tag = arguments
        else:
            raise unsafe(f"{self._name} calls {called.name!a}")
        self._stack.append(made)

    def _tensor(self, made_by: str, store: Any, offset: Any, shape: Any, stride: Any, *others: Any) -> Tensor:
        if not isinstance(store, _Store):
            raise TypeError(store)
        # A store in 8 bits is one of a tensor with scales, and the other way round.
        if (made_by == "_rebuild_qtensor") != store.dtype.startswith("Q"):
            raise unsafe(f"{self._name} makes a tensor of a store of another kind")
        scale: tuple[Any, ...] = ()
        if made_by == "_rebuild_qtensor":
            self._check_scales(others[0], shape)
            scale = (others[0][0].name, *others[0][1:])
        _natural(offset)
        if len(shape) != len(stride) or len(shape) > _MOST_DIMENSIONS:
            raise ValueError(shape)
        last = offset
        for size, step in zip(shape, stride, strict=True):
            _natural(size)
            _natural(step)
            last += (size - 1) * step
        if math.prod(shape) > _MOST_ELEMENTS or max(shape, default=0) > _MOST_ELEMENTS:
            raise unsafe(f"{self._name} says that a tensor has more than {_MOST_ELEMENTS} elements")
        if 0 not in shape and last >= store.elements:
            raise unsafe(f"{self._name} says that a tensor reaches beyond what is stored of it")
        return Tensor(store.dtype, store.key, offset, tuple(shape), tuple(stride), scale)

    def _check_scales(self, scheme: Any, shape: Any) -> None:
        kind, scales, zeros, *axis = scheme
        if kind.name == "per_tensor_affine":
            fits = isinstance(scales, float | int) and isinstance(zeros, int) and not axis
        else:
            fits = isinstance(scales, Tensor) and isinstance(zeros, Tensor) and axis[0] in range(len(shape))
            fits = fits and scales.shape == zeros.shape == (shape[axis[0]],)
        if not fits:
            raise unsafe(f"{self._name} says that a tensor in 8 bits has other scales than it has rows")


def _natural(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(value)


_VALUES: Final = frozenset(
    {"BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT", "BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "FLOAT"}
)
_CONSTANTS: Final[dict[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_HANDLERS: Final[dict[str, Callable[[_Machine], None]]] = {
    "TUPLE": _Machine.tuple_since_mark,
    "TUPLE1": lambda machine: machine.tuple_of(1),
    "TUPLE2": lambda machine: machine.tuple_of(2),
    "TUPLE3": lambda machine: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.reduce,
}


def walk(root: Any) -> Iterator[tuple[str, Any]]:
    """Give every object and tensor below an object, by its path ("" for the object itself); each one once."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Made | list | tuple | dict):
            if id(value) in seen:
                continue
            seen.add(id(value))
        if isinstance(value, Made | Tensor):
            yield path, value
        inner: list[tuple[str, Any]] = []
        if isinstance(value, Made):
            inner = list(value.state.items())
        elif isinstance(value, dict):
            inner = [(str(key), each) for key, each in value.items()]
        elif isinstance(value, list | tuple):
            inner = [(str(place), each) for place, each in enumerate(value)]
        waiting.extend((f"{path}.{key}" if path else key, each) for key, each in reversed(inner))
