"""Layers and norms: an output is constant if every input it touches is, and no border makes a difference."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graphs import input_at, sizes
from ..kernels import absorbed, bias_vector, has_border, is_foldable_layer, touched
from ..passes.fold_batchnorm import is_inference_batchnorm, scale_and_shift
from .known import Channels, Found, Known, along, full, placed


def _layer(node: ir.Node, known: Known, opset: int) -> Found:
    if not is_foldable_layer(node):
        return _matmul_of_activations(node, known) if node.op_type == "MatMul" else None
    axis = -1 if node.op_type in ("Gemm", "MatMul") else 1
    source, used = along(known, node.inputs[0], axis), touched(node)
    if source is None or source.size != used.shape[0] * used.shape[2]:
        return None
    bias = bias_vector(node, used.shape[0] * used.shape[1])
    assert bias is not None, f"the bias of {node.name!r} is not constant"
    alive = np.isnan(source) | (has_border(node) & (np.nan_to_num(source) != 0))
    moves = (used & alive.reshape(len(used), 1, -1)).any(axis=-1).reshape(-1)
    rows = np.where(moves, np.nan, bias + absorbed(node, source))
    return {node.outputs[0]: placed(rows, len(sizes(node.outputs[0])), axis)}


def _matmul_of_activations(node: ir.Node, known: Known) -> Found:
    """Zero where a whole column of the second factor is zero, or a whole row of the first."""
    first, second = full(known, node.inputs[0]), full(known, node.inputs[1])
    if min(first.ndim, second.ndim) < 2:
        return None
    zero = (first == 0).all(axis=-1, keepdims=True) | (second == 0).all(axis=-2, keepdims=True)
    return {node.outputs[0]: np.where(zero, 0.0, np.nan)}


def _batchnorm(node: ir.Node, known: Known, opset: int) -> Found:
    source = along(known, node.inputs[0], 1)
    if source is None or not is_inference_batchnorm(node):
        return None
    scale, shift = scale_and_shift(node)
    rows = np.where(scale == 0, shift, scale * source + shift)
    return {node.outputs[0]: placed(rows, len(sizes(node.inputs[0])), 1)}


def _instance_norm(node: ir.Node, known: Known, opset: int) -> Found:
    """A constant is its own mean: what is left of it is the shift."""
    source = along(known, node.inputs[0], 1)
    return _shifted(node, known, 1, None if source is None else ~np.isnan(source))


def _group_norm(node: ir.Node, known: Known, opset: int) -> Found:
    source, groups = along(known, node.inputs[0], 1), node.attributes.get_int("num_groups", 1)
    if source is None or source.size % groups:
        return None
    blocks = source.reshape(groups, -1)
    return _shifted(node, known, 1, np.repeat((blocks == blocks[:, :1]).all(axis=1), blocks.shape[1]))


def _layer_norm(node: ir.Node, known: Known, opset: int) -> Found:
    rank = len(sizes(node.inputs[0]))
    if node.attributes.get_int("axis", -1) % rank != rank - 1:
        return None
    source = along(known, node.inputs[0], -1)
    found = None if source is None else np.broadcast_to((source == source[:1]).all(), source.shape)
    return _shifted(node, known, -1, found)


def _shifted(node: ir.Node, known: Known, axis: int, level: np.ndarray | None) -> Found:
    """The shift where what is normalised is level, or its scale is zero; both constants, one number per channel."""
    scale = full(known, node.inputs[1]).reshape(-1)
    value = input_at(node, 2)
    shift: Channels = np.zeros(scale.size) if value is None else full(known, value).reshape(-1)
    if level is None or not scale.size == shift.size == level.size:
        return None
    rows = np.where(level | (scale == 0), shift, np.nan)
    return {node.outputs[0]: placed(rows, len(sizes(node.inputs[0])), axis)}


RULES = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), _layer),
    "BatchNormalization": _batchnorm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
}
