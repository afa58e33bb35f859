"""Layers: a filter is one with its bias and its output channel; input channels are read by a sum."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graphs import array, input_at, own_input, sizes
from ..kernels import groups_of, is_foldable_layer, out_channels
from ..passes.fold_batchnorm import is_inference_batchnorm
from .classes import CHANNEL_AXIS, Coupling, Ids, Kept, Read


def convolution(node: ir.Node, coupling: Coupling) -> bool:
    """Conv and ConvTranspose, which differ in the order of their weight's axes."""
    if not is_foldable_layer(node):
        return False
    source, output, groups = node.inputs[0], node.outputs[0], groups_of(node)
    channels, rows = coupling.ids(source, CHANNEL_AXIS), coupling.ids(output, CHANNEL_AXIS)
    if channels is None or rows is None or len(rows) != out_channels(node) or len(channels) % groups:
        return False
    if groups > 1 and len(channels) != groups and not _is_own_weight(node):
        return False
    _tie_around(node, coupling)
    coupling.produce(node, rows)
    _tie_bias(node, rows, coupling)
    if groups == 1:
        _plain(node, channels, rows, coupling)
    elif groups == len(channels):
        _depthwise(node, channels, rows, coupling)
    else:
        _grouped(node, channels, rows, coupling)
    return True


def gemm(node: ir.Node, coupling: Coupling) -> bool:
    """Gemm with a constant B."""
    if not is_foldable_layer(node) or len(sizes(node.inputs[0])) != 2:
        return False
    return _matrix(node, 0 if node.attributes.get_int("transB", 0) else 1, coupling)


def matmul(node: ir.Node, coupling: Coupling) -> bool:
    """x·W over the last axis, or a product of two activations, whose inner axis stays."""
    if is_foldable_layer(node) and len(sizes(node.inputs[0])) > 1:
        return _matrix(node, 1, coupling)
    return _matmul_of_activations(node, coupling)


def batchnorm(node: ir.Node, coupling: Coupling) -> bool:
    """One left unfolded: a scale and a shift per channel."""
    source, output = node.inputs[0], node.outputs[0]
    if not is_inference_batchnorm(node) or len(sizes(source)) < 2:
        return False
    for axis in range(len(sizes(source))):
        coupling.tie(coupling.ids(source, axis), coupling.ids(output, axis))
    for value in node.inputs[1:]:
        coupling.tie(coupling.ids(source, CHANNEL_AXIS), coupling.ids(value, 0))
    return True


def _plain(node: ir.Node, channels: Ids, rows: Ids, coupling: Coupling) -> None:
    out, into = (1, 0) if node.op_type == "ConvTranspose" else (0, 1)
    coupling.tie(rows, coupling.ids(node.inputs[1], out))
    coupling.tie(channels, coupling.ids(node.inputs[1], into))
    coupling.reads.append(Read(node, _source(node), CHANNEL_AXIS, channels, rows))
    coupling.hits[f"plain {node.op_type}"] += 1


def _depthwise(node: ir.Node, channels: Ids, rows: Ids, coupling: Coupling) -> None:
    """A channel is its own filter, or owns the `multiplier` next to each other."""
    repeated = np.repeat(channels, len(rows) // len(channels))
    coupling.tie(repeated, rows)
    transposed = node.op_type == "ConvTranspose"
    coupling.tie(channels if transposed else rows, coupling.ids(node.inputs[1], 0))
    coupling.rewrites.append(lambda kept: _set_int(node, "group", int(kept(channels).sum())))
    coupling.hits[f"depthwise {node.op_type}"] += 1


def _grouped(node: ir.Node, channels: Ids, rows: Ids, coupling: Coupling) -> None:
    """Each group has its own channels; every group must keep equally many, whichever they are."""
    groups = groups_of(node)
    coupling.balanced += [channels.reshape(groups, -1), rows.reshape(groups, -1)]
    coupling.reads.append(Read(node, _source(node), CHANNEL_AXIS, channels, rows))
    coupling.rewrites.append(lambda kept: _slice_groups(node, channels, rows, kept))
    coupling.hits[f"grouped {node.op_type}"] += 1


def _slice_groups(node: ir.Node, channels: Ids, rows: Ids, kept: Kept) -> None:
    weight, groups = array(node.inputs[1]), groups_of(node)
    assert weight is not None, f"node {node.name!r} has no constant weight"
    into, out = (kept(ids).reshape(groups, -1) for ids in (channels, rows))
    if into.all() and out.all():
        return
    first, second = (into, out) if node.op_type == "ConvTranspose" else (out, into)
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    parts = [blocks[g][first[g]][:, second[g]] for g in range(groups)]
    own_input(node, 1, np.concatenate(parts), f"{node.name}.weight")


def _matrix(node: ir.Node, out: int, coupling: Coupling) -> bool:
    """The last axis of the source is summed over; `out` is the weight's axis of outputs."""
    source, output = _source(node), node.outputs[0]
    channels, rows = coupling.ids(source, -1), coupling.ids(output, -1)
    if channels is None or rows is None or len(sizes(source)) != len(sizes(output)):
        return False
    for axis in range(len(sizes(source)) - 1):
        coupling.tie(coupling.ids(source, axis), coupling.ids(output, axis))
    coupling.tie(rows, coupling.ids(node.inputs[1], out))
    coupling.tie(channels, coupling.ids(node.inputs[1], 1 - out))
    coupling.produce(node, rows)
    coupling.reads.append(Read(node, source, len(sizes(source)) - 1, channels, rows))
    _tie_bias(node, rows, coupling)
    return True


def _matmul_of_activations(node: ir.Node, coupling: Coupling) -> bool:
    first, second, output = node.inputs[0], node.inputs[1], node.outputs[0]
    rank = len(sizes(output))
    if rank < 2 or not len(sizes(first)) == len(sizes(second)) == rank:
        return False
    reason = f"multiplied by each other in '{node.name}' (MatMul)"
    for axis in range(rank - 2):
        _tie_broadcast(first, output, axis, coupling, reason)
        _tie_broadcast(second, output, axis, coupling, reason)
    coupling.tie(coupling.ids(first, rank - 2), coupling.ids(output, rank - 2))
    coupling.tie(coupling.ids(second, rank - 1), coupling.ids(output, rank - 1))
    coupling.freeze(coupling.ids(first, rank - 1), reason)
    coupling.freeze(coupling.ids(second, rank - 2), reason)
    return True


def _tie_broadcast(value: ir.Value | None, output: ir.Value, axis: int, coupling: Coupling, reason: str) -> None:
    if sizes(value)[axis] == 1 and sizes(output)[axis] != 1:
        coupling.freeze(coupling.ids(value, axis), reason)
    else:
        coupling.tie(coupling.ids(value, axis), coupling.ids(output, axis))


def _tie_around(node: ir.Node, coupling: Coupling) -> None:
    """The batch passes through a convolution, its pixels are mixed."""
    source, output = node.inputs[0], node.outputs[0]
    coupling.tie(coupling.ids(source, 0), coupling.ids(output, 0))
    for axis in range(2, len(sizes(output))):
        for value in (source, output):
            coupling.freeze(coupling.ids(value, axis), f"mixed by '{node.name}' ({node.op_type})")


def _tie_bias(node: ir.Node, rows: Ids, coupling: Coupling) -> None:
    """A bias for each output goes with it; one number for all has nothing to lose."""
    bias = input_at(node, 2)
    if bias is not None and (sizes(bias) or [1])[-1] == len(rows):
        coupling.tie(rows, coupling.ids(bias, -1))


def _is_own_weight(node: ir.Node) -> bool:
    weight = node.inputs[1]
    return weight is not None and len(weight.uses()) == 1


def _source(node: ir.Node) -> ir.Value:
    source = node.inputs[0]
    assert source is not None, f"node {node.name!r} has no input"
    return source


def _set_int(node: ir.Node, name: str, number: int) -> None:
    node.attributes[name] = ir.AttrInt64(name, number)


RULES = {
    "Conv": convolution,
    "ConvTranspose": convolution,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batchnorm,
}
