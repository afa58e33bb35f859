"""Which channels carry a constant whatever the input is: propagated forward, in float64, operator by operator.

A value's channels are an array over axis 1: the constant, or NaN where the channel is alive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .coupling import BINARY, POOLING, REDUCTIONS, UNARY, reduced_axes
from .graphs import array, input_at, sizes
from .layers import gemm_kernel, has_padding, is_layer, is_plain_gemm
from .passes.fold_batchnorm import is_inference_batchnorm, scale_and_shift
from .reference import evaluate_node

Channels = NDArray[np.float64]
Known = dict[ir.Value, Channels]


def channel_constants(graph: ir.Graph, opset: int) -> Known:
    """Constants of every value of a canonical graph that has any known channel axis."""
    known: Known = {}
    for node in graph:
        rule = None if node.domain else RULES.get(node.op_type)
        channels = None if rule is None else rule(node, known, opset)
        if channels is not None:
            known[node.outputs[0]] = channels
    return known


def of(known: Mapping[ir.Value, Channels], value: ir.Value | None) -> Channels | None:
    """The channels of a value: all alive unless something is known; None if their number is not."""
    if value is not None and value in known:
        return known[value]
    shape = sizes(value)
    size = shape[1] if len(shape) > 1 else None
    return None if size is None else np.full(size, np.nan)


def absorbed(node: ir.Node, constants: Channels) -> Channels:
    """What constant input channels (NaN: alive, ignored) add to each output of a Conv or Gemm.

    Exact where no zero padding cuts into the kernel.
    """
    return _taps(node) @ np.nan_to_num(constants)


def _taps(node: ir.Node) -> Channels:
    """o×i sums of the kernel's taps, in float64."""
    weight = gemm_kernel(node) if node.op_type == "Gemm" else array(node.inputs[1])
    assert weight is not None, f"node {node.name!r} has no constant weight"
    return weight.astype(np.float64).sum(axis=tuple(range(2, weight.ndim)))


def _touched(node: ir.Node) -> NDArray[np.bool_]:
    """o×i: whether any tap of the kernel is not zero."""
    weight = gemm_kernel(node) if node.op_type == "Gemm" else array(node.inputs[1])
    assert weight is not None, f"node {node.name!r} has no constant weight"
    return (weight != 0).any(axis=tuple(range(2, weight.ndim)))


def _bias(node: ir.Node, size: int) -> Channels | None:
    value = input_at(node, 2)
    if value is None:
        return np.zeros(size)
    bias = array(value)
    return None if bias is None or bias.shape != (size,) else bias.astype(np.float64)


def _layer(node: ir.Node, known: Known, opset: int) -> Channels | None:
    """An output is constant if every input it touches is, and no border makes a difference."""
    if not is_layer(node) or (node.op_type == "Gemm" and not is_plain_gemm(node)):
        return None
    source, touched = of(known, node.inputs[0]), _touched(node)
    bias = _bias(node, len(touched))
    groups = node.attributes.get_int("group", 1)
    if source is None or bias is None:
        return None
    if groups > 1:
        return _depthwise(node, source, touched, bias) if groups == len(source) == len(touched) else None
    alive = np.isnan(source) | (has_padding(node) & (np.nan_to_num(source) != 0))
    return np.where((touched & alive).any(axis=1), np.nan, bias + absorbed(node, source))


def _depthwise(node: ir.Node, source: Channels, touched: NDArray[np.bool_], bias: Channels) -> Channels:
    alive = np.isnan(source) | (has_padding(node) & (source != 0))
    return np.where(touched[:, 0] & alive, np.nan, bias + _taps(node)[:, 0] * np.nan_to_num(source))


def _batchnorm(node: ir.Node, known: Known, opset: int) -> Channels | None:
    source = of(known, node.inputs[0])
    if source is None or not is_inference_batchnorm(node):
        return None
    scale, shift = scale_and_shift(node)
    return np.where(scale == 0, shift, scale * source + shift)


def _elementwise(node: ir.Node, known: Known, opset: int) -> Channels | None:
    """Run the operator on the constants themselves, as n×c×1×1 of the output's rank."""
    output = of({}, node.outputs[0])
    rank = len(sizes(node.outputs[0]))
    inputs = [_as_operand(value, known, rank) for value in node.inputs]
    if output is None or any(one is None and value is not None for one, value in zip(inputs, node.inputs, strict=True)):
        return None
    stand_ins = [None if one is None else np.where(np.isnan(one), 1.0, one) for one in inputs]
    result = evaluate_node(node, opset, stand_ins)
    if result.shape != (1, len(output), *[1] * (rank - 2)):
        return None
    alive = np.zeros(result.shape, bool)
    for one in inputs:
        alive |= False if one is None else np.isnan(one)
    if node.op_type == "Mul":  # zero times anything finite
        for one in inputs:
            alive &= True if one is None else ~(one == 0)
    return np.where(alive, np.nan, result).reshape(-1)


def _as_operand(value: ir.Value | None, known: Known, rank: int) -> Channels | None:
    constant = array(value)
    if constant is not None:
        return constant.astype(np.float64)
    channels = of(known, value)
    if channels is None or len(sizes(value)) != rank:
        return None
    return channels.reshape(1, -1, *[1] * (rank - 2))


def _pool(node: ir.Node, known: Known, opset: int) -> Channels | None:
    """A constant stays one under pooling, but for an average that counts padded zeros."""
    channels = of(known, node.inputs[0])
    counts_zeros = (
        node.op_type == "AveragePool" and has_padding(node) and node.attributes.get_int("count_include_pad", 0)
    )
    if channels is None or not counts_zeros:
        return channels
    return np.where(channels == 0, 0.0, np.nan)


def _reduce(node: ir.Node, known: Known, opset: int) -> Channels | None:
    axes = reduced_axes(node)
    return of(known, node.inputs[0]) if axes and min(axes) > 1 else None


def _flatten(node: ir.Node, known: Known, opset: int) -> Channels | None:
    channels, features = of(known, node.inputs[0]), of({}, node.outputs[0])
    if channels is None or features is None or len(channels) == 0 or node.attributes.get_int("axis", 1) != 1:
        return None
    return np.repeat(channels, len(features) // len(channels))


RULES: Mapping[str, Callable[[ir.Node, Known, int], Channels | None]] = {
    "Conv": _layer,
    "Gemm": _layer,
    "BatchNormalization": _batchnorm,
    "Flatten": _flatten,
    **dict.fromkeys((*UNARY, *BINARY), _elementwise),
    **dict.fromkeys(POOLING, _pool),
    **dict.fromkeys(REDUCTIONS, _reduce),
}
