"""A loaded model's graph, checked before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from termwise.server.inference.torchscript.operators import ALLOWED, CHANCE
from termwise.server.inference.torchscript.refusals import unsafe

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        chance = chance or kind in CHANCE
    return chance


def _nodes(graph: Any) -> Iterator[Any]:
    waiting = [graph]
    while waiting:
        for node in waiting.pop().nodes():
            yield node
            waiting.extend(node.blocks())
