"""How much memory a graph's values take for given inputs, before anybody runs it.

A wrong number in a file (a shape, a repeat count) may ask for more memory than there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import onnx

from ..errors import InputError
from ..runtime.onnxfile import skeleton

# One value above it is a mistake in the file or the shape: the largest activations of 4K detectors are 2 GiB.
MAX_VALUE_BYTES = 1 << 33
_BYTES = 4


def total_bytes(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> int:
    """float32 bytes of all intermediate values whose shape follows from the inputs'.

    Raises InputError for a value that no machine we know would hold.
    """
    found = {value.name: value.type.tensor_type.shape for value in _inferred(proto, shapes).graph.value_info}
    sizes = {name: _bytes([dim.dim_value for dim in shape.dim]) for name, shape in found.items()}
    worst = max(sizes, key=lambda name: sizes[name], default=None)
    if worst is not None and sizes[worst] > MAX_VALUE_BYTES:
        dims = [dim.dim_value for dim in found[worst].dim]
        taken = f"{sizes[worst] / 1e9:.3g} GB"
        raise InputError(f"value '{worst[:80]}' of shape {dims[:8]} takes {taken}; check the shapes")
    return sum(sizes.values())


def _bytes(dims: list[int]) -> int:
    return prod(dims) * _BYTES if all(size > 0 for size in dims) else 0


def _inferred(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The graph without the numbers of its large weights, its inputs' shapes fixed, other shapes inferred."""
    copy = skeleton(proto)
    del copy.graph.value_info[:]
    for value in copy.graph.input:
        if value.name in shapes:
            dims = [onnx.TensorShapeProto.Dimension(dim_value=size) for size in shapes[value.name]]
            del value.type.tensor_type.shape.dim[:]
            value.type.tensor_type.shape.dim.extend(dims)
    for value in copy.graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return copy  # a graph that contradicts itself: the runtime says so in its own words
