"""Bring a graph into the form that the other passes expect.

Requires: a checked model. Ensures: constants are initialisers and no graph inputs, no Identity or Dropout at
inference, vectors (biases, scales) are not shared between nodes, flattening Reshapes are Flatten nodes, others have
constant shapes where only the batch is open, channel shuffles are Gather nodes, layers are named, shapes inferred.
Exact. Idempotent.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
)

from ..graphs import array, input_at, own_input, refresh_shapes, remove_node, sizes
from ..layers import name_layers
from .gather_shuffles import gather_shuffles


def canonicalize(model: ir.Model) -> None:
    """Rewrite `model` in place; see the contract above."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    RemoveInitializersFromInputsPass()(model)
    for node in list(model.graph):
        _bypass(node)
        _unshare_vectors(node)
    refresh_shapes(model)
    changed = [_flatten(node) or _settle(node) for node in list(model.graph)]
    if any(changed):
        refresh_shapes(model)
    gather_shuffles(model)
    RemoveUnusedNodesPass()(model)
    name_layers(model)


def _bypass(node: ir.Node) -> None:
    idle = node.op_type == "Identity" or (node.op_type == "Dropout" and not _trains(node))
    source = input_at(node, 0)
    if node.domain or not idle or source is None or any(output.uses() for output in node.outputs[1:]):
        return
    direct = source.is_graph_input() or source.is_initializer() or source.is_graph_output()
    if not (direct and node.outputs[0].is_graph_output()):
        _drop(node, source)


def _drop(node: ir.Node, source: ir.Value) -> None:
    node.resize_outputs(1)
    remove_node(node, source)


def _trains(node: ir.Node) -> bool:
    return input_at(node, 2) is not None


def _unshare_vectors(node: ir.Node) -> None:
    """Simplifiers merge equal biases; channels of two layers would be tied together by it for nothing."""
    for index, value in enumerate(node.inputs):
        numbers = array(value)
        if value is not None and numbers is not None and numbers.ndim == 1 and len(value.uses()) > 1:
            own_input(node, index, numbers.copy(), value.name or "vector")


def _flatten(node: ir.Node) -> bool:
    """Reshape (n, c, …) → (n, c·…) is Flatten: no constant to keep in step when channels go.

    A Reshape keeps the count of numbers, so the features alone tell that the first axis stays as it is.
    """
    if node.op_type != "Reshape" or node.domain or node.graph is None:
        return False
    before, output = sizes(node.inputs[0]), node.outputs[0]
    features = [size for size in before[1:] if size is not None]
    if not len(features) == len(before) - 1 >= 1 or sizes(output)[1:] != [prod(features)] or not prod(features):
        return False
    flatten = ir.node("Flatten", [node.inputs[0]], {"axis": 1}, name=node.name)
    flatten.outputs[0].name, flatten.outputs[0].type = f"{output.name}_flat", output.type
    flatten.outputs[0].shape = output.shape if output.is_graph_output() else None
    node.graph.insert_before(node, flatten)
    remove_node(node, flatten.outputs[0])
    return True


def _settle(node: ir.Node) -> bool:
    """A shape computed from the batch alone (x.view(x.size(0), …)) is a constant that copies the first axis."""
    if node.op_type != "Reshape" or node.domain or node.attributes.get_int("allowzero", 0):
        return False
    target, before, after = input_at(node, 1), sizes(node.inputs[0]), sizes(node.outputs[0])
    features = [[size for size in shape[1:] if size is not None] for shape in (before, after)]
    known = min(len(before), len(after)) > 1 and len(features[0] + features[1]) == len(before) + len(after) - 2
    if target is None or array(target) is not None or not known or prod(features[0]) != prod(features[1]):
        return False
    if not prod(features[0]):
        return False
    own_input(node, 1, np.array([0, *features[1]], np.int64), f"{node.name or 'Reshape'}.shape")
    return True
