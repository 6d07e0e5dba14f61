"""Whether what an archive's pickles hold is what its code declares.

torch compiles `self.layer` to the place that a class's field has, and at run time takes whatever is at that place: it
does not look again of which class an object is. An object of another class than the one declared, with fewer fields,
makes it read and call what lies behind the object. The same holds for a tuple that is too short.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, Final

from termwise.server.inference.torchscript.pickles import PACKED, Made, Tensor
from termwise.server.inference.torchscript.refusals import unsafe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from termwise.server.inference.torchscript.expressions import Definitions

_PLAIN: Final[dict[str, type]] = {
    "Tensor": Tensor,
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "NoneType": type(None),
}
_FORMAT: Final = "FORMAT_WITH_STRING_TABLE"
_TRIPLE: Final = 3


def check_objects(pickled: Mapping[str, Any], definitions: Definitions) -> None:
    """Check all that an archive's pickles make.

    Args:
        pickled: what each makes, by the names of the members.
        definitions: what the archive's code defines.

    Raises:
        FailedPreconditionError: an object is not what its holder's class says of it.

    """
    model = pickled["data.pkl"]
    if not isinstance(model, Made) or model.kind not in definitions.classes:
        raise unsafe("data.pkl does not hold an object of a class of its code")
    _Checker(definitions).check(model, model.kind)
    constants = pickled["constants.pkl"]
    if not isinstance(constants, tuple | list) or not all(map(_is_constant, constants)):
        raise unsafe("constants.pkl holds something else than tensors")
    for name, value in pickled.items():
        if name.endswith(".debug_pkl") and not _are_lines(value):
            raise unsafe(f"{name} does not hold lines of code as torch notes them down")


def _is_constant(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Made) and value.kind == PACKED)


class _Checker:
    """Compares values with types as the code writes them."""

    def __init__(self, definitions: Definitions) -> None:
        self._classes = definitions.classes
        self._types: dict[str, ast.expr] = {}
        # Pairs that were compared, or wait for it; an object may be held by several others.
        self._seen: set[tuple[int, str]] = set()
        self._waiting: list[tuple[Any, str, str]] = []

    def check(self, value: Any, kind: str) -> None:
        self._wait(value, kind, "the model")
        while self._waiting:
            value, kind, place = self._waiting.pop()
            if not self._fits(value, kind, place):
                raise unsafe(f"data.pkl holds something else at {place[:80]!a} than the code declares ({kind[:80]})")

    def _wait(self, value: Any, kind: str, place: str) -> None:
        key = (id(value), kind)
        if key not in self._seen:
            self._seen.add(key)
            self._waiting.append((value, kind, place))

    def _fits(self, value: Any, kind: str, place: str) -> bool:
        """Compare a value itself; what it holds waits."""
        if kind in _PLAIN:
            # bool is an int for Python, and not for torch.
            return type(value) is _PLAIN[kind]
        if kind == PACKED:
            return isinstance(value, Made) and value.kind == PACKED
        if kind in self._classes:
            return self._fits_class(value, kind)
        node = self._parse(kind)
        if not isinstance(node, ast.Subscript):
            return False
        return self._fits_container(value, ast.unparse(node.value), node.slice, place)

    def _fits_class(self, value: Any, kind: str) -> bool:
        known = self._classes[kind]
        if known.named_tuple:
            if not isinstance(value, tuple) or len(value) != len(known.fields):
                return False
            for (name, field), each in zip(known.fields.items(), value, strict=True):
                self._wait(each, field, name)
            return True
        if not isinstance(value, Made) or value.kind != kind or not known.fields.keys() <= value.state.keys():
            return False
        for name, field in known.fields.items():
            self._wait(value.state[name], field, name)
        return True

    def _fits_container(self, value: Any, kind: str, inner: ast.expr, place: str) -> bool:
        kinds = [ast.unparse(each) for each in (inner.elts if isinstance(inner, ast.Tuple) else [inner])]
        if kind == "Optional":
            if value is not None:
                self._wait(value, kinds[0], place)
            return len(kinds) == 1
        if kind == "List":
            pairs = [(each, kinds[0]) for each in value] if isinstance(value, list) and len(kinds) == 1 else None
        elif kind == "Tuple":
            pairs = list(zip(value, kinds, strict=True)) if _is_tuple(value, len(kinds)) else None
        elif kind == "Dict" and isinstance(value, dict) and kinds[1:]:
            pairs = [(key, kinds[0]) for key in value] + [(each, kinds[1]) for each in value.values()]
        else:
            pairs = None
        for each, wanted in pairs or ():
            self._wait(each, wanted, place)
        return pairs is not None

    def _parse(self, kind: str) -> ast.expr:
        if kind not in self._types:
            self._types[kind] = ast.parse(kind, mode="eval").body
        return self._types[kind]


def _is_tuple(value: Any, length: int) -> bool:
    return isinstance(value, tuple) and len(value) == length


def _are_lines(value: Any) -> bool:
    """Tell whether a value notes down which line an operator came from: places in a table of texts."""
    if not _is_tuple(value, _TRIPLE) or value[0] != _FORMAT:
        return False
    _, texts, lines = value
    if not all(isinstance(each, tuple) for each in (texts, lines)) or not all(isinstance(each, str) for each in texts):
        return False
    return all(_is_line(line, len(texts)) for line in lines)


def _is_line(line: Any, texts: int) -> bool:
    if not _is_tuple(line, _TRIPLE) or not _is_tuple(line[1], _TRIPLE) or not _is_tuple(line[1][0], _TRIPLE):
        return False
    (pieces, file, first), start, end = line[1]
    if not isinstance(pieces, list) or any(type(each) is not int for each in (file, first, start, end, line[0])):
        return False
    # The last part tells what the line is of, and is a number where it tells anything.
    return type(line[2]) is int and all(type(each) is int and 0 <= each < texts for each in (*pieces, file))
