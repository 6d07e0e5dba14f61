"""A loaded model's graph, checked before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from termwise.server.inference.torchscript.operators import ALLOWED, CHANCE
from termwise.server.inference.torchscript.refusals import unsafe

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKED: Final = frozenset({"Tensor", "int", "float", "bool", "str", "number", "NoneType"})
MOST_NODES: Final = 1_000_000
"""Most nodes of a graph with its calls unfolded."""


def check_graph(graph: Any) -> bool:
    """Check every node of a graph (`torch.Graph`, its calls unfolded) and of the blocks inside it.

    Returns:
        Whether it asks the random generator.

    Raises:
        FailedPreconditionError: it uses an operator that it may not, or is too large.

    """
    chance = False
    for count, node in enumerate(_nodes(graph)):
        kind = node.kind()
        if count >= MOST_NODES:
            raise unsafe(f"its graph has more than {MOST_NODES} nodes")
        if kind not in ALLOWED:
            raise unsafe(f"its forward uses the operator {kind}, which is not among what a model may use")
        if kind == "prim::unchecked_cast" and not _may_cast(node):
            raise unsafe(f"its forward takes {_kind_of(node.inputs())} for {_kind_of(node.outputs())}, unseen")
        chance = chance or kind in CHANCE
    return chance


def _may_cast(node: Any) -> bool:
    """Tell whether a cast, which nothing checks at run time, only says that an optional value is there.

    Plain kinds may be meant too: each operator looks at those that it is given. It does not at the class of an object,
    the length of a tuple, or what a list holds.
    """
    told = _kind_of(node.outputs())
    return told in _CHECKED or _kind_of(node.inputs()) == f"Optional[{told}]"


def _kind_of(values: Any) -> str:
    """Give the type of a node's one value, as code writes it."""
    (value,) = values
    return str(value.type().annotation_str)


def _nodes(graph: Any) -> Iterator[Any]:
    waiting = [graph]
    while waiting:
        for node in waiting.pop().nodes():
            yield node
            waiting.extend(node.blocks())
