"""Norms, softmax, reductions: the numbers along an axis depend on each other, so that it lives as a whole."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graphs import array, input_at, sizes
from .classes import CHANNEL_AXIS, Coupling, Kept

REDUCTIONS = (
    *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
)


def reduction(node: ir.Node, coupling: Coupling) -> bool:
    """The axes that are summed over stay, the others pass."""
    source, output = node.inputs[0], node.outputs[0]
    axes, keeps = reduced_axes(node), node.attributes.get_int("keepdims", 1)
    if axes is None:
        return False
    after = 0
    for axis in range(len(sizes(source))):
        if axis in axes:
            coupling.freeze(coupling.ids(source, axis), f"summed over by '{node.name}' ({node.op_type})")
        else:
            coupling.tie(coupling.ids(source, axis), coupling.ids(output, after))
        after += axis not in axes or bool(keeps)
    return True


def softmax(node: ir.Node, coupling: Coupling) -> bool:
    """Over one axis; before opset 13 over all from there on."""
    rank = len(sizes(node.inputs[0]))
    opset = node.version or _opset(node)
    axis = node.attributes.get_int("axis", -1 if opset >= 13 else 1) % rank
    return _mix(node, range(axis, rank if opset < 13 else axis + 1), coupling)


def layernorm(node: ir.Node, coupling: Coupling) -> bool:
    """Over all axes from `axis` on; scale and shift have their shape."""
    rank = len(sizes(node.inputs[0]))
    for value in (*node.inputs[1:], *node.outputs[1:]):
        coupling.freeze_value(value, f"tied by '{node.name}' ({node.op_type})")
    return _mix(node, range(node.attributes.get_int("axis", -1) % rank, rank), coupling)


def across_channels(node: ir.Node, coupling: Coupling) -> bool:
    """Local response normalisation: neighbours see each other."""
    return _mix(node, range(CHANNEL_AXIS, len(sizes(node.inputs[0]))), coupling)


def groupnorm(node: ir.Node, coupling: Coupling) -> bool:
    """A group lives as a whole; `num_groups` counts those that stay."""
    source, output = node.inputs[0], node.outputs[0]
    channels, groups = coupling.ids(source, CHANNEL_AXIS), node.attributes.get_int("num_groups", 1)
    if channels is None or groups < 1 or len(channels) % groups:
        return False
    heads = np.repeat(channels.reshape(groups, -1)[:, 0], len(channels) // groups)
    coupling.tie(heads, channels)
    _mix(node, range(2, len(sizes(source))), coupling)
    for vector in node.inputs[1:]:
        ids = coupling.ids(vector, 0)
        per_group = ids is not None and len(ids) == groups != len(channels)
        coupling.tie(channels.reshape(groups, -1)[:, 0] if per_group else channels, ids)
    size = len(channels) // groups

    def count(kept: Kept) -> None:
        node.attributes["num_groups"] = ir.AttrInt64("num_groups", int(kept(channels).sum()) // size)

    coupling.rewrites.append(count)
    return output is not None


def reduced_axes(node: ir.Node) -> list[int] | None:
    """Axes that a Reduce node sums over (an attribute before opset 18), non-negative; None if not constant."""
    given = node.attributes.get_ints("axes", None)
    if given is None:
        constant = array(input_at(node, 1))
        given = None if constant is None else constant.tolist()
    rank = len(sizes(node.inputs[0]))
    return None if not given or not rank else [axis % rank for axis in given]


def _mix(node: ir.Node, axes: range, coupling: Coupling) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    for axis in range(len(sizes(source))):
        pair = coupling.ids(source, axis), coupling.ids(output, axis)
        if axis not in axes:
            coupling.tie(*pair)
            continue
        for ids in pair:
            coupling.freeze(ids, f"an axis that '{node.name}' ({node.op_type}) ties as a whole")
    return True


def _opset(node: ir.Node) -> int:
    graph = node.graph
    return graph.opset_imports.get("", 1) if isinstance(graph, ir.Graph) else 1


RULES = {
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    "LayerNormalization": layernorm,
    "RMSNormalization": layernorm,
    "LRN": across_channels,
    "GroupNormalization": groupnorm,
}
