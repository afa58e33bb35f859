"""Share out the scales between two layers in a row, channel by channel, so that int8 serves all channels between them.

Requires: canonical graph. Ensures: channel r between the two is divided by s_r, by the weights and bias of the first
layer, and the weights of the second are multiplied by it; nothing nonlinear lies between but Relu or LeakyRelu, which a
positive factor passes through. Exact but for rounding, and free. Idempotent up to rounding.

Cross-layer equalisation (Nagel et al. 2019, arXiv 1906.04721, eq. 10) with what the channel carries in the place of the
first layer's weights: those have a scale a channel here, the values between share one (SmoothQuant, Xiao et al. 2022,
arXiv 2211.10438, eq. 4 with α = 1/2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graphs import array, input_at, only_reader, own_input
from ..layers import Layer, layers_of

_LINEAR = ("Relu", "LeakyRelu")  # for positive factors


@dataclass(frozen=True)
class Pair:
    """Two layers in a row; `between` is the value that the second one reads."""

    first: Layer
    second: Layer
    between: str

    @property
    def axis(self) -> int:
        """Of the channels in `between`."""
        return -1 if self.second.node.op_type == "MatMul" else 1


def pairs_of(model: ir.Model) -> list[Pair]:
    """All pairs, in the graph's order."""
    layers = {layer.node: layer for layer in layers_of(model) if not layer.obstacle}
    found = []
    for node, layer in layers.items():
        value, reader = node.outputs[0], only_reader(node.outputs[0])
        while reader is not None and reader.op_type in _LINEAR:
            value, reader = reader.outputs[0], only_reader(reader.outputs[0])
        second = layers.get(reader) if reader is not None and reader.inputs[0] is value else None
        if second is not None and second.node.op_type == node.op_type:
            found.append(Pair(layer, second, value.name or ""))
    return found


def equalize(pairs: Sequence[Pair], largest: Mapping[str, NDArray]) -> None:
    """In place; `largest` has for each pair's `between` the largest magnitude in each of its channels."""
    for pair in pairs:
        # by the second's weights as they are in the graph: a layer between two pairs is changed twice
        weight = _by_channel(pair.second.node, inputs=True)
        scales = _scales(largest[pair.between], np.abs(weight).max(axis=1))
        _multiply(pair.second.node, scales, inputs=True)
        _multiply(pair.first.node, 1 / scales, inputs=False)
        bias = array(input_at(pair.first.node, 2))
        if bias is not None:
            own_input(pair.first.node, 2, (bias / scales).astype(bias.dtype), f"{pair.first.name}.bias")


def _scales(values: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """√(values / weights), 1 on the geometric mean; 1 too for a channel that carries nothing or is not read."""
    values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    live = (values > 0) & (weights > 0)
    scales = np.ones(len(values))
    if live.any():
        logs = np.log(values[live] / weights[live]) / 2
        scales[live] = np.exp(logs - logs.mean())
    return scales


def _axis(node: ir.Node, *, inputs: bool) -> int:
    """Of a weight: the one of its inputs, or of its outputs."""
    outputs_first = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1)
    return int(inputs) if outputs_first else int(not inputs)


def _by_channel(node: ir.Node, *, inputs: bool) -> NDArray:
    weight = array(node.inputs[1])
    assert weight is not None, "a layer has a constant weight"
    moved = np.moveaxis(weight, _axis(node, inputs=inputs), 0)
    return moved.reshape(len(moved), -1)


def _multiply(node: ir.Node, scales: NDArray, *, inputs: bool) -> None:
    weight, axis = array(node.inputs[1]), _axis(node, inputs=inputs)
    assert weight is not None, "a layer has a constant weight"
    shape = [-1 if position == axis else 1 for position in range(weight.ndim)]
    own_input(node, 1, (weight * scales.reshape(shape)).astype(weight.dtype), f"{node.name}.weight")
