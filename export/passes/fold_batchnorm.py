"""Fold BatchNormalization into the convolution or Gemm before it.

Requires: canonical graph. Ensures: no BatchNormalization whose only input is a layer read by nobody else.
Exact: y = γ (x − μ) / √(v + ε) + β is affine per channel, so the layer's rows are scaled by s = γ/√(v + ε)
and its bias becomes s (b − μ) + β; computed in float64. Idempotent.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graphs import array, drop_unused_initializers, input_at, own_input, remove_node
from ..layers import gemm_kernel, is_layer, is_plain_gemm


def fold_batchnorm(model: ir.Model) -> int:
    """Fold in place; returns how many were folded."""
    folded = [node for node in list(model.graph) if _is_foldable(node)]
    for node in folded:
        _fold(node)
    drop_unused_initializers(model.graph)
    return len(folded)


def scale_and_shift(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """A BatchNormalization as y = scale·x + shift, per channel, in float64.

    (ONNX BatchNormalization at inference; Ioffe & Szegedy 2015, algorithm 2.)
    """
    gamma, beta, mean, variance = (_float64(node, index) for index in range(1, 5))
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return scale, beta - scale * mean


def is_inference_batchnorm(node: ir.Node) -> bool:
    """Whether the node is a BatchNormalization with constant statistics, in inference mode."""
    if node.op_type != "BatchNormalization" or node.domain or node.attributes.get_int("training_mode", 0):
        return False
    return all(array(input_at(node, index)) is not None for index in range(1, 5))


def _is_foldable(node: ir.Node) -> bool:
    source = input_at(node, 0)
    layer = source.producer() if source is not None else None
    if not is_inference_batchnorm(node) or source is None or layer is None or not is_layer(layer):
        return False
    bias = input_at(layer, 2)
    return (
        (layer.op_type == "Conv" or (layer.op_type == "Gemm" and is_plain_gemm(layer)))
        and len(source.uses()) == 1
        and not source.is_graph_output()
        and (bias is None or array(bias) is not None)
    )


def _fold(node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None, f"node {node.name!r} has no input"
    layer = source.producer()
    assert layer is not None, f"input of {node.name!r} has no producer"
    scale, shift = scale_and_shift(node)
    weight = array(layer.inputs[1])
    assert weight is not None, f"layer {layer.name!r} has no constant weight"
    bias = array(input_at(layer, 2))
    shift = shift + scale * (0.0 if bias is None else bias.astype(np.float64))
    kernel = (gemm_kernel(layer) if layer.op_type == "Gemm" else weight).astype(np.float64)
    kernel = kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))
    stored = kernel.T if layer.op_type == "Gemm" and not layer.attributes.get_int("transB", 0) else kernel
    own_input(layer, 1, stored.astype(weight.dtype), f"{layer.name}.weight")
    own_input(layer, 2, shift.astype(weight.dtype), f"{layer.name}.bias")
    remove_node(node, source)


def _float64(node: ir.Node, index: int) -> np.ndarray:
    numbers = array(node.inputs[index])
    assert numbers is not None, f"input {index} of {node.name!r} is not constant"
    return numbers.astype(np.float64)
