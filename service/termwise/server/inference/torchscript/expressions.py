"""What the functions of an archive's code may say, and what they come to when their calls are unfolded."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Final

from termwise.server.inference.torchscript.operators import ALLOWED, DORMANT
from termwise.server.inference.torchscript.pickles import PACKED
from termwise.server.inference.torchscript.refusals import unsafe

_OPERATORS: Final = ALLOWED | DORMANT
_STATEMENTS: Final = (
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Return,
    ast.If,
    ast.For,
    ast.While,
    ast.Pass,
    ast.Expr,
    ast.Break,
    ast.Continue,
    ast.Assert,
)
_EXPRESSIONS: Final = (
    ast.Attribute,
    ast.BinOp,
    ast.BoolOp,
    ast.Call,
    ast.Compare,
    ast.Constant,
    ast.Dict,
    ast.IfExp,
    ast.List,
    ast.Name,
    ast.Slice,
    ast.Subscript,
    ast.Tuple,
    ast.UnaryOp,
)
# Calls by a bare name whose first argument is a type, and all that may be called so.
_TYPED: Final = ("annotate", "unchecked_cast", "uninitialized")
_BUILTINS: Final = frozenset(
    {*_TYPED, "getattr", "hasattr", "isinstance", "range", "len", "int", "float", "bool", "str", "min", "max", "abs"}
    | {"tuple", "list", "round", "zip", "enumerate", "complex", "hash", "ord", "chr"}
)
_NAMES: Final = frozenset(["inf", "nan", "infj", "nanj", "self"])
ROOTS: Final = ("torch", "ops", "__torch__", "CONSTANTS")
"""What dotted names begin with that mean something from outside a function; nothing in it may be called so."""
_DEEPEST_CALLS: Final = 60


@dataclass(slots=True)
class Klass:
    """A class of the archive: its fields' types as they are written, and its methods.

    `fields` are those that an object of it holds, `constants` the names of those that the class itself does.
    """

    named_tuple: bool = False
    fields: dict[str, str] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    methods: dict[str, Body] = field(default_factory=dict)


@dataclass(slots=True)
class Definitions:
    """All that an archive's code defines, by full names."""

    classes: dict[str, Klass] = field(default_factory=dict)
    functions: dict[str, Body] = field(default_factory=dict)

    # By their names alone, over all classes.
    _fields: set[str] = field(default_factory=set)
    _methods: dict[str, list[Body]] = field(default_factory=dict)

    def add_class(self, name: str, made: Klass) -> None:
        """Enter a class.

        Raises:
            FailedPreconditionError: there is one of that name; which of them torch takes is not for us to guess.

        """
        if name in self.classes:
            raise unsafe(f"its code defines {name[:80]} twice")
        self.classes[name] = made
        self._fields |= made.fields.keys() | made.constants
        for each, body in made.methods.items():
            self._methods.setdefault(each, []).append(body)

    def add_function(self, name: str, body: Body) -> None:
        """Enter a function; errors as `add_class`."""
        if name in self.functions:
            raise unsafe(f"its code defines {name[:80]} twice")
        self.functions[name] = body

    def methods(self, name: str) -> list[Body]:
        """Give all methods of a name; it is the same list each time."""
        return self._methods.get(name, [])

    def has_field(self, name: str) -> bool:
        """Tell whether any class has a field of that name."""
        return name in self._fields

    def largest(self) -> int:
        """Give the size of the largest `forward` with all its calls unfolded, in nodes of the source."""
        sizes: dict[int, int] = {}
        return _largest(self.methods("forward"), sizes, 0)


def _largest(choice: list[Body], sizes: dict[int, int], depth: int) -> int:
    """Give the size of the largest of some functions; `sizes` are those known, of functions and of such choices."""
    if id(choice) not in sizes:
        sizes[id(choice)] = max((_size(each, sizes, depth) for each in choice), default=0)
    return sizes[id(choice)]


def _size(body: Body, sizes: dict[int, int], depth: int) -> int:
    if depth > _DEEPEST_CALLS:
        raise unsafe("a function of its code calls itself, or calls are nested too deep")
    known = sizes.get(id(body))
    if known is None:
        called = sum(_largest(choice, sizes, depth + 1) for choice in body.calls)
        known = sizes[id(body)] = body.nodes + called
    return known


@dataclass(slots=True)
class Body:
    """A function's statements; `bound` are names that it may use, `kinds` the types of those that have one."""

    statements: list[ast.stmt]
    bound: set[str]
    kinds: dict[str, str]
    nodes: int = 0
    # For each call of the archive's own code, which functions it may mean.
    calls: list[list[Body]] = field(default_factory=list)

    def check(self, definitions: Definitions, file: str) -> None:
        """Check all that the function says, and find what it calls.

        Raises:
            FailedPreconditionError: it says what a model does not need.

        """
        for statement in self.statements:
            for node in ast.walk(statement):
                self.nodes += 1
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    if node.id in ROOTS:
                        raise unsafe(f"{file} gives {node.id} another meaning")
                    self.bound.add(node.id)
        reader = _Reader(self, definitions, file)
        for statement in self.statements:
            reader.statement(statement)


class _Reader:
    """Walks one function's body in the order in which it is written."""

    def __init__(self, body: Body, definitions: Definitions, file: str) -> None:
        self._body = body
        self._known = definitions
        self._file = file
        # Local names of the archive's free functions.
        self._functions: dict[str, Body] = {}

    def statement(self, node: ast.stmt) -> None:
        if not isinstance(node, _STATEMENTS):
            raise self._refuse(f"a statement ({type(node).__name__})")
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            self._learn(node.targets[0].id, node.value)
        for name, value in ast.iter_fields(node):
            if name == "annotation":
                continue
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.stmt):
                    self.statement(each)
                elif isinstance(each, ast.expr):
                    self._expression(each)

    def _learn(self, name: str, value: ast.expr) -> None:
        """Note what a local name stands for, where it is one of the archive's functions or objects."""
        called = self._known.functions.get(ast.unparse(value)) if isinstance(value, ast.Attribute) else None
        if called is not None:
            self._functions[name] = called
        kind = self._kind(value)
        if kind:
            self._body.kinds[name] = kind

    def _kind(self, node: ast.expr) -> str:
        """Give the class of an expression; "" where it is not known."""
        if isinstance(node, ast.Name):
            return self._body.kinds.get(node.id, "")
        field_name, owner = "", None
        if isinstance(node, ast.Attribute):
            field_name, owner = node.attr, node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            last = node.args[-1]
            if isinstance(last, ast.Constant):
                field_name, owner = str(last.value), node.args[0]
        holder = self._known.classes.get(self._kind(owner)) if owner is not None else None
        return holder.fields.get(field_name, "") if holder else ""

    def _expression(self, node: ast.expr) -> None:
        if not isinstance(node, _EXPRESSIONS):
            raise self._refuse(f"an expression ({type(node).__name__})")
        if isinstance(node, ast.Name):
            if node.id not in self._body.bound and node.id not in _NAMES:
                raise self._refuse(f'the name "{node.id[:40]}"')
        elif isinstance(node, ast.Attribute):
            self._attribute(node)
        elif isinstance(node, ast.Call):
            self._call(node)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self._expression(child)

    def _attribute(self, node: ast.Attribute) -> None:
        path = _dotted(node)
        root = path[0] if path else ""
        if root in ROOTS:
            self._global(root, path)
        elif (
            isinstance(node.ctx, ast.Store)
            or self._known.has_field(node.attr)
            or self._known.methods(node.attr)
            or f"aten::{node.attr}" in _OPERATORS
            or f"prim::{node.attr}" in _OPERATORS
        ):
            self._expression(node.value)
        else:
            raise self._refuse(f'the attribute "{node.attr[:40]}"')

    def _global(self, root: str, path: list[str]) -> None:
        full = ".".join(path)
        if root == "torch":
            operator = f"aten::{'.'.join(path[1:])}"
        elif root == "ops":
            operator = f"{path[1]}::{'.'.join(path[2:])}"
        elif root == "CONSTANTS" or full in self._known.functions or full in self._known.classes or full == PACKED:
            return
        else:
            raise self._refuse(f'"{full[:80]}"')
        if operator not in _OPERATORS:
            raise self._refuse(f"the operator {operator[:80]}")

    def _call(self, node: ast.Call) -> None:
        called, arguments = node.func, node.args
        if isinstance(called, ast.Name):
            if called.id in self._functions:
                self._body.calls.append([self._functions[called.id]])
            elif called.id not in _BUILTINS or called.id in self._body.bound:
                raise self._refuse(f'a call of "{called.id[:40]}"')
            if called.id in _TYPED:
                arguments = arguments[1:]
            elif called.id == "isinstance":
                arguments = arguments[:1]
        else:
            self._expression(called)
            self._note(called)
        for argument in arguments:
            self._expression(argument)
        for keyword in node.keywords:
            self._expression(keyword.value)

    def _note(self, called: ast.expr) -> None:
        """Note a call of the archive's own code."""
        if not isinstance(called, ast.Attribute):
            raise self._refuse("a call of what an expression gives")
        free = self._known.functions.get(".".join(_dotted(called)))
        holder = self._known.classes.get(self._kind(called.value))
        if free is not None:
            self._body.calls.append([free])
        elif holder is not None and called.attr in holder.methods:
            self._body.calls.append([holder.methods[called.attr]])
        elif _dotted(called)[:1] not in (["torch"], ["ops"]):
            self._body.calls.append(self._known.methods(called.attr))

    def _refuse(self, what: str) -> Exception:
        return unsafe(f"{self._file} holds {what}, which is not among what a model may use")


def _dotted(node: ast.expr) -> list[str]:
    """Give the parts of a dotted name; none where it does not begin with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []
