"""Operators that treat every channel for itself: arithmetic with broadcasting, pooling, resizing."""

from __future__ import annotations

import onnx_ir as ir

from ..graphs import array, input_at, own_input, sizes
from .classes import CHANNEL_AXIS, Coupling, Ids, Kept

# Operators that map every number by itself, with broadcasting; all but the last line map floats to floats.
UNARY = (
    *("Relu", "LeakyRelu", "ThresholdedRelu", "Clip", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "HardSigmoid"),
    *("HardSwish", "Softplus", "Softsign", "Gelu", "Mish", "Swish", "Erf", "Abs", "Neg", "Exp", "Log", "Sqrt"),
    *("Reciprocal", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Identity"),
)
BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Max", "Min", "Sum", "Mean")
OTHER = ("Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Cast", "Dropout")
POOLING = (
    *("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
    "InstanceNormalization",
)


def elementwise(node: ir.Node, coupling: Coupling) -> bool:
    """Axes aligned from the right, as ONNX broadcasts; an axis of size 1 is repeated and stays."""
    output = node.outputs[0]
    for value in node.inputs:
        offset = len(sizes(output)) - len(sizes(value))
        for axis, size in enumerate(sizes(value)):
            ids = coupling.ids(value, axis)
            if size == 1 and sizes(output)[axis + offset] != 1:
                coupling.freeze(ids, f"broadcast by '{node.name}' ({node.op_type})")
            else:
                coupling.tie(ids, coupling.ids(output, axis + offset))
    return True


def pooling(node: ir.Node, coupling: Coupling) -> bool:
    """Batch and channels pass, pixels are mixed; vectors (InstanceNormalization's) go with the channels."""
    source, output = node.inputs[0], node.outputs[0]
    channels = coupling.ids(source, CHANNEL_AXIS)
    if len(sizes(source)) < 3 or any(extra.uses() for extra in node.outputs[1:]):
        return False
    for axis in range(len(sizes(source))):
        pair = coupling.ids(source, axis), coupling.ids(output, axis)
        if axis <= CHANNEL_AXIS:
            coupling.tie(*pair)
        else:
            _freeze(node, coupling, *pair)
    for vector in node.inputs[1:]:
        coupling.tie(channels, coupling.ids(vector, 0))
    return True


def resize(node: ir.Node, coupling: Coupling) -> bool:
    """Axes that keep their size pass; `sizes`, where it is given, counts the channels that stay."""
    source, output = node.inputs[0], node.outputs[0]
    wanted = input_at(node, 3)
    crops = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    given = [value for value in node.inputs[1:] if value is not None]
    if crops or any(array(value) is None for value in given) or "axes" in node.attributes:
        return False
    for axis in range(len(sizes(source))):
        pair = coupling.ids(source, axis), coupling.ids(output, axis)
        if axis <= CHANNEL_AXIS and sizes(source)[axis] == sizes(output)[axis]:
            coupling.tie(*pair)
        else:
            _freeze(node, coupling, *pair)
    channels = coupling.ids(output, CHANNEL_AXIS)
    if wanted is not None and channels is not None:
        coupling.rewrites.append(lambda kept: _count(node, channels, kept))
    return True


def expand(node: ir.Node, coupling: Coupling) -> bool:
    """Broadcasting to a constant shape, in which a 1 leaves an axis as it is."""
    target = array(input_at(node, 1))
    if target is None:
        return False
    source, output = node.inputs[0], node.outputs[0]
    offset, tied = len(sizes(output)) - len(sizes(source)), []
    for axis, size in enumerate(sizes(source)):
        pair = coupling.ids(source, axis), coupling.ids(output, axis + offset)
        if size == 1 and sizes(output)[axis + offset] != 1:
            _freeze(node, coupling, *pair)
        else:
            coupling.tie(*pair)
            tied.append(axis + offset - len(sizes(output)) + len(target))
    for axis in range(offset):
        _freeze(node, coupling, coupling.ids(output, axis))
    ones = target.copy()
    ones[[axis for axis in tied if axis >= 0]] = 1
    coupling.rewrites.append(lambda kept: own_input(node, 1, ones, f"{node.name}.shape"))
    return True


def _count(node: ir.Node, channels: Ids, kept: Kept) -> None:
    wanted = array(input_at(node, 3))
    assert wanted is not None, f"sizes of {node.name!r} are not constant"
    numbers = wanted.copy()
    numbers[CHANNEL_AXIS] = kept(channels).sum()
    own_input(node, 3, numbers, f"{node.name}.sizes")


def _freeze(node: ir.Node, coupling: Coupling, *several: Ids | None) -> None:
    for ids in several:
        coupling.freeze(ids, f"mixed by '{node.name}' ({node.op_type})")


RULES = {
    **dict.fromkeys((*UNARY, *BINARY, *OTHER), elementwise),
    **dict.fromkeys(POOLING, pooling),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "Expand": expand,
}
