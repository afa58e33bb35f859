"""A layer's weight as groups × out × in, whichever operator it belongs to, and what constants it turns into.

out and in are counted within a group: a plain layer has one group, a depthwise convolution one per channel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .graphs import array, input_at
from .layers import has_padding, is_layer, is_plain_gemm

Taps = NDArray[np.float64]


def is_foldable_layer(node: ir.Node) -> bool:
    """Whether channels can be told apart in the node: constant weight, no scaling, a bias per output or none."""
    if not is_layer(node) or (node.op_type == "Gemm" and not is_plain_gemm(node)):
        return False
    weight, bias = array(node.inputs[1]), input_at(node, 2)
    if weight is None or weight.size == 0 or (node.op_type == "MatMul" and weight.ndim != 2):
        return False
    return bias is None or bias_vector(node, out_channels(node)) is not None


def groups_of(node: ir.Node) -> int:
    """The `group` attribute of a convolution, 1 for everything else."""
    return node.attributes.get_int("group", 1)


def out_channels(node: ir.Node) -> int:
    """Output channels, all groups together."""
    weight = array(node.inputs[1])
    assert weight is not None, f"node {node.name!r} has no constant weight"
    if node.op_type == "ConvTranspose":
        return weight.shape[1] * groups_of(node)
    by_rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0)
    return weight.shape[0] if by_rows else weight.shape[-1]


def weight_blocks(node: ir.Node) -> NDArray:
    """The weight as a view, groups × out × in × taps."""
    weight = array(node.inputs[1])
    assert weight is not None, f"node {node.name!r} has no constant weight"
    groups = groups_of(node)
    if node.op_type == "ConvTranspose":
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).swapaxes(1, 2)
    if node.op_type == "Conv":
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    by_rows = node.op_type == "Gemm" and node.attributes.get_int("transB", 0)
    return (weight if by_rows else weight.T)[None, ..., None]


def tap_sums(node: ir.Node) -> Taps:
    """groups × out × in: the sum of each kernel's taps, in float64."""
    return weight_blocks(node).sum(axis=-1, dtype=np.float64)


def touched(node: ir.Node) -> NDArray[np.bool_]:
    """groups × out × in: whether any tap of the kernel is not zero."""
    return (weight_blocks(node) != 0).any(axis=-1)


def absorbed(node: ir.Node, constants: NDArray[np.float64]) -> NDArray[np.float64]:
    """What constant input channels (NaN: alive, ignored) add to each output, exact where `has_border` is not so."""
    taps = tap_sums(node)
    grouped = np.nan_to_num(constants).reshape(len(taps), -1)
    return np.einsum("goi,gi->go", taps, grouped).reshape(-1)


def has_border(node: ir.Node) -> bool:
    """Whether a constant other than zero leaves something else behind than a constant.

    Zero padding cuts into kernels at the border; a transposed convolution overlaps unevenly everywhere.
    """
    return node.op_type == "ConvTranspose" or (node.op_type == "Conv" and has_padding(node))


def bias_vector(node: ir.Node, size: int) -> NDArray[np.float64] | None:
    """The bias of each output channel in float64, zeros where there is none, None where it is not constant."""
    value = input_at(node, 2)
    bias = np.zeros(size) if value is None else array(value)
    if bias is None or bias.size not in (1, size) or bias.shape[-1:] not in ((), (1,), (bias.size,)):
        return None
    return np.broadcast_to(bias.reshape(-1).astype(np.float64), (size,))
