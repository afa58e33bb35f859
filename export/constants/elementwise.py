"""Arithmetic on constants, and what pooling, resizing and reductions leave of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..coupling.elementwise import BINARY, UNARY
from ..coupling.mixing import REDUCTIONS, reduced_axes
from ..graphs import array, sizes
from ..layers import has_padding
from ..reference import evaluate_node
from .known import Channels, Found, Known, along, full, placed

_STAND_IN = 1.0  # for numbers that are alive: any will do, the result is not looked at
_LEVEL = ("ReduceMean", "ReduceMax", "ReduceMin")  # reductions that leave a constant as it is


def _elementwise(node: ir.Node, known: Known, opset: int) -> Found:
    """Run the operator on the constants themselves."""
    if not any(value in known or array(value) is not None for value in node.inputs if value is not None):
        return None
    inputs = [None if value is None else full(known, value) for value in node.inputs]
    stand_ins = [None if one is None else np.where(np.isnan(one), _STAND_IN, one) for one in inputs]
    present = [one for one in inputs if one is not None]
    alive = np.zeros([1] * len(sizes(node.outputs[0])), bool)
    for one in present:
        alive = alive | np.isnan(one)
    if node.op_type == "Mul":  # zero times anything finite
        for one in present:
            alive = alive & (one != 0)
    if alive.all():
        return None
    result: Channels = evaluate_node(node, opset, stand_ins)
    return {node.outputs[0]: np.where(alive, np.nan, result)}


def _identity(node: ir.Node, known: Known, opset: int) -> Found:
    value = node.inputs[0]
    return {node.outputs[0]: known[value]} if value in known else None


def _pool(node: ir.Node, known: Known, opset: int) -> Found:
    """A constant stays one, but for averages that count padded zeros and for norms; zero is always left alone."""
    channels = along(known, node.inputs[0], 1)
    counts_zeros = node.op_type == "AveragePool" and (
        node.attributes.get_int("count_include_pad", 0)
        and (has_padding(node) or node.attributes.get_int("ceil_mode", 0))
    )
    if channels is None:
        return None
    if counts_zeros or node.op_type.endswith("LpPool"):
        channels = np.where(channels == 0, 0.0, np.nan)
    return {node.outputs[0]: placed(channels, len(sizes(node.inputs[0])), 1)}


def _reduce(node: ir.Node, known: Known, opset: int) -> Found:
    """Axes along which nothing varies: means and extremes stay, sums and norms of zero are zero."""
    axes, channels = reduced_axes(node), full(known, node.inputs[0])
    if not axes or any(channels.shape[axis] != 1 for axis in axes):
        return None
    if node.op_type not in _LEVEL:
        if node.op_type in ("ReduceLogSum", "ReduceLogSumExp", "ReduceProd"):
            return None
        channels = np.where(channels == 0, 0.0, np.nan)
    keeps = node.attributes.get_int("keepdims", 1)
    return {node.outputs[0]: channels if keeps else np.squeeze(channels, axis=tuple(axes))}


def _resize(node: ir.Node, known: Known, opset: int) -> Found:
    """Interpolation between equal numbers; beyond the picture only `tf_crop_and_resize` puts others."""
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    before, after, channels = sizes(node.inputs[0]), sizes(node.outputs[0]), full(known, node.inputs[0])
    stays = [one == other for one, other in zip(before, after, strict=True)]
    varies = any(size != 1 and not same for size, same in zip(channels.shape, stays, strict=True))
    return None if varies else {node.outputs[0]: channels}


RULES = {
    **dict.fromkeys((*UNARY, *BINARY), _elementwise),
    **dict.fromkeys(("Identity", "Dropout"), _identity),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _pool),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Expand": _identity,
}
