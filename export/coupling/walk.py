"""Walk a graph once, give every node to its rule, and freeze what has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from ..layers import is_layer
from . import elementwise, mixing, moves, multiply, reshapes
from .classes import Coupling

Rule = Callable[[ir.Node, Coupling], bool]
# A rule ties and notes, and returns True; or it returns False before it touches anything.
RULES: Mapping[str, Rule] = {
    **multiply.RULES,
    **elementwise.RULES,
    **moves.RULES,
    **reshapes.RULES,
    **mixing.RULES,
}


def couple(graph: ir.Graph) -> Coupling:
    """Couple the channels of a canonical graph with inferred shapes."""
    coupling = Coupling()
    for value in graph.inputs:
        coupling.freeze_value(value, f"channels of the graph input '{value.name}'")
    for node in graph:
        _apply(node, coupling)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.graph is not graph:
            _freeze_captured(node, graph, coupling)
    for value in graph.outputs:
        coupling.freeze_value(value, f"channels of the graph output '{value.name}'")
    return coupling


def _apply(node: ir.Node, coupling: Coupling) -> None:
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is not None and _has_shapes(node) and rule(node, coupling):
        coupling.hits[rule.__name__] += 1
        return
    reason = f"node '{node.name}' ({node.op_type}) is not understood"
    carried = (coupling.carries(ids) for value in node.inputs for ids in coupling.tracked(value).values())
    if is_layer(node) or any(carried):
        coupling.declined[node] = reason
    coupling.freeze_all(node, reason)


def _has_shapes(node: ir.Node) -> bool:
    """A rule that sees no axes would tie none; only values that nobody reads may be without a shape."""
    read = [value for value in node.inputs if value is not None]
    read += [value for value in node.outputs if value.uses() or value.is_graph_output()]
    return all(value.shape is not None for value in read)


def _freeze_captured(node: ir.Node, graph: ir.Graph, coupling: Coupling) -> None:
    for value in node.inputs:
        if value is not None and value.graph is graph:
            coupling.freeze_value(value, f"read inside a subgraph by '{node.name}' ({node.op_type})")
