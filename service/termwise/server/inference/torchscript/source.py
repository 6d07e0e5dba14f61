"""The code of a TorchScript archive, read as text before torch compiles any of it.

torch prints TorchScript in a small part of Python's grammar. Whatever is outside that part is refused, not only what
is known to be bad: an archive may be written by hand. This matters before loading, since loading runs code in two
places: `__setstate__`, and the default value of an argument or a class's constant.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import TYPE_CHECKING, Final

from termwise.server.inference.torchscript.expressions import ROOTS, Body, Definitions, Klass
from termwise.server.inference.torchscript.refusals import unsafe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# torch writes an empty list of annotations where the first name is none of Python's.
_LISTINGS: Final = (
    "__parameters__",
    "__buffers__",
    "__constants__",
    "__annotations__",
    "__forward_hooks__",
    "__forward_pre_hooks__",
)
_NO_HOOKS: Final = ("__forward_hooks__", "__forward_pre_hooks__")
_SPECIAL: Final = ("__len__", "__contains__")
_BASES: Final = ("Module", "NamedTuple")
_MOST_NESTING: Final = 150
# A BERT with 24 layers has a quarter of it; read, it takes some 200 times as much memory.
_MOST_BYTES: Final = 2 << 20
_FILE: Final = re.compile(r"code(/\w+)+\.py", re.ASCII)
# What torch's reader and Python's make different things of.
_ODD: Final = re.compile(r"[^\n\x20-\x7e]")
_STRING: Final = re.compile(r'"(?:[^"\\\n]|\\[\\"\'ntrabfv0-9x])*"')


def check_source(code: Mapping[str, bytes]) -> Definitions:
    """Check all of an archive's code; gives what it defines.

    Args:
        code: source by the member's name, such as `code/__torch__/torch/nn/modules/linear.py`.

    Raises:
        FailedPreconditionError: it holds what a model does not need; the message names the file and the thing.

    """
    if sum(map(len, code.values())) > _MOST_BYTES:
        raise unsafe(f"its code has more than {_MOST_BYTES} bytes")
    trees = {name: _parse(name, raw) for name, raw in code.items()}
    definitions = Definitions()
    bodies: list[tuple[str, Body]] = []
    for name, tree in trees.items():
        if not _FILE.fullmatch(name):
            raise unsafe(f"{name[:80]} is not a name that torch gives a file of code")
        module = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
        for statement in tree.body:
            bodies += [(name, body) for body in _define(name, module, statement, definitions)]
    for name, body in bodies:
        body.check(definitions, name)
    return definitions


def _parse(name: str, raw: bytes) -> ast.Module:
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise unsafe(f"{name} holds letters that TorchScript does not have") from error
    if _ODD.search(text):
        raise unsafe(f"{name} holds control characters")
    try:
        _check_tokens(name, text, tokenize.generate_tokens(io.StringIO(text).readline))
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise unsafe(f"{name} is not TorchScript as torch writes it") from error
    _check_nesting(name, tree)
    return tree


def _check_tokens(name: str, text: str, tokens: Iterable[tokenize.TokenInfo]) -> None:
    """Refuse what lets text be code for one reader and none for the other."""
    backslashes = text.count("\\")
    for token in tokens:
        if token.type == tokenize.COMMENT:
            raise unsafe(f"{name} holds a comment, which torch does not write")
        if token.type == tokenize.STRING:
            if not _STRING.fullmatch(token.string):
                raise unsafe(f"{name} holds a string that torch does not write")
            backslashes -= token.string.count("\\")
    if backslashes:
        raise unsafe(f"{name} continues a line, which torch does not do")


def _check_nesting(name: str, tree: ast.Module) -> None:
    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > _MOST_NESTING:
            raise unsafe(f"{name} is nested more than {_MOST_NESTING} levels deep")
        waiting.extend((child, depth + 1) for child in ast.iter_child_nodes(node))


def _define(name: str, module: str, statement: ast.stmt, definitions: Definitions) -> list[Body]:
    """Enter what a statement at the top of a file defines; gives the bodies of its functions."""
    if isinstance(statement, ast.FunctionDef):
        body = _function(name, statement)
        definitions.add_function(f"{module}.{statement.name}", body)
        return [body]
    if isinstance(statement, ast.ClassDef):
        return _class(name, f"{module}.{statement.name}", statement, definitions)
    raise unsafe(f"{name} holds a statement outside of classes and functions")


def _class(name: str, full: str, statement: ast.ClassDef, definitions: Definitions) -> list[Body]:
    bases = [base.id for base in statement.bases if isinstance(base, ast.Name)]
    if (
        len(statement.bases) != 1
        or not bases
        or bases[0] not in _BASES
        or statement.decorator_list + statement.keywords
    ):
        raise unsafe(f"{name} defines {statement.name}, which is not a module")
    made = Klass(named_tuple=bases[0] == "NamedTuple")
    for part in statement.body:
        if isinstance(part, ast.FunctionDef):
            if part.name in made.methods:
                raise unsafe(f"{name} defines {part.name[:80]} of {statement.name[:80]} twice")
            made.methods[part.name] = _function(name, part)
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            _class_field(name, part.target.id, part, made)
        elif isinstance(part, ast.Assign) and len(part.targets) == 1:
            _class_assignment(name, part.targets[0], part.value, made)
        elif not isinstance(part, ast.Pass):
            raise unsafe(f"{name} holds a statement in a class that torch does not write")
    definitions.add_class(full, made)
    return list(made.methods.values())


def _class_field(name: str, called: str, part: ast.AnnAssign, made: Klass) -> None:
    check_type(name, part.annotation)
    if called in made.fields or called in made.constants or called.startswith("__"):
        raise unsafe(f"{name} declares {called[:80]} in a way that torch does not write")
    if part.value is None:
        made.fields[called] = ast.unparse(part.annotation)
    else:
        _check_literal(name, part.value)
        made.constants.add(called)


def _class_assignment(name: str, target: ast.expr, value: ast.expr, made: Klass) -> None:
    if isinstance(target, ast.Name) and target.id in _LISTINGS:
        _check_literal(name, value)
        if target.id in _NO_HOOKS and getattr(value, "elts", None):
            raise unsafe(f"{name} has hooks, which run unseen; export the model without them")
        return
    field = target.slice if isinstance(target, ast.Subscript) else None
    if (
        not isinstance(field, ast.Constant)
        or not isinstance(field.value, str)
        or ast.unparse(target) != f"__annotations__[{field.value!r}]"
    ):
        raise unsafe(f"{name} holds a statement in a class that torch does not write")
    check_type(name, value)
    if field.value in made.fields or field.value in made.constants:
        raise unsafe(f"{name} declares {field.value[:80]!a} in a way that torch does not write")
    made.fields[field.value] = ast.unparse(value)


def _function(name: str, statement: ast.FunctionDef) -> Body:
    called = statement.name
    if called in {"__setstate__", "__getstate__"}:
        raise unsafe(f"{name} defines {called}, which would run while the model is loaded; export it without")
    if called.startswith("__") and called not in _SPECIAL:
        raise unsafe(f"{name} defines {called}")
    arguments = statement.args
    if statement.decorator_list or arguments.vararg or arguments.kwarg or arguments.posonlyargs:
        raise unsafe(f"{name} defines {called} in a way that torch does not write")
    for default in [*arguments.defaults, *(each for each in arguments.kw_defaults if each is not None)]:
        # A default is computed while the model is loaded.
        _check_literal(name, default)
    every = [*arguments.args, *arguments.kwonlyargs]
    for argument in every:
        if argument.arg in ROOTS:
            raise unsafe(f"{name} gives {argument.arg} another meaning")
        if argument.annotation is not None:
            check_type(name, argument.annotation)
    if statement.returns is not None:
        check_type(name, statement.returns)
    kinds = {each.arg: ast.unparse(each.annotation) for each in every if each.annotation is not None}
    return Body(statement.body, {each.arg for each in every}, kinds)


def _check_literal(name: str, value: ast.expr) -> None:
    """Check that a value is written down and not computed."""
    for node in ast.walk(value):
        written = isinstance(
            node, ast.Constant | ast.Tuple | ast.List | ast.UnaryOp | ast.USub | ast.Load | ast.Dict
        ) or (isinstance(node, ast.Name) and node.id in {"inf", "nan"})
        if not written:
            raise unsafe(f"{name} computes a default or a constant while the model is loaded")


def check_type(name: str, kind: ast.expr) -> None:
    """Check that what stands for a type is one."""
    for node in ast.walk(kind):
        if not isinstance(
            node, ast.Name | ast.Attribute | ast.Subscript | ast.Tuple | ast.Constant | ast.Load | ast.List
        ):
            raise unsafe(f"{name} holds a type that torch does not write")
