"""Evaluate an ONNX graph in float64: the truth that float32 results are held against.

onnx's reference evaluator runs the graph with every float32 constant widened. Convolution and pooling, which it
does element by element or with large index arrays, are replaced by windows and a matrix product; it finds the
classes by their names, which are the operators'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from .transposed import ConvTranspose

Array = NDArray[np.float64]
# what onnx's reference evaluator raises for graphs that contradict themselves or operators it lacks
EVALUATION_ERRORS = (
    *(RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError, ArithmeticError),
    *(NotImplementedError, MemoryError, ImportError, RecursionError),
)
_NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def evaluate(proto: onnx.ModelProto, inputs: Mapping[str, NDArray]) -> list[NDArray]:
    """The graph's outputs in float64, for `inputs` by name (`wide`)."""
    evaluator = ReferenceEvaluator(_widened(proto), new_ops=[Conv, ConvTranspose, MaxPool, GlobalMaxPool, LRN])
    with np.errstate(all="ignore"):  # a NaN in the outputs is judged by whoever compares them
        outputs = evaluator.run(None, dict(inputs))
    assert isinstance(outputs, list), "the reference evaluator returns a list for a model"
    return outputs


def wide(numbers: NDArray) -> NDArray:
    """An input as the widened graph takes it: floats in float64, whole numbers as they are."""
    return numbers.astype(np.float64) if numbers.dtype.kind == "f" else numbers


def evaluate_node(node: ir.Node, opset: int, arrays: Sequence[Array | None]) -> Array:
    """One elementwise node's first output for float64 `arrays`, None where an input is absent."""
    proto = ir.to_proto(node)
    present = {name: numbers for name, numbers in zip(proto.input, arrays, strict=True) if numbers is not None}
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [onnx.helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in present],
        [onnx.helper.make_tensor_value_info(proto.output[0], TensorProto.DOUBLE, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    outputs = ReferenceEvaluator(model).run(None, present)
    assert isinstance(outputs, list), "the reference evaluator returns a list for a model"
    return np.asarray(outputs[0], dtype=np.float64)


def compute_node(node: ir.Node, opset: int, arrays: Sequence[NDArray | None]) -> NDArray | None:
    """One node's only output in its own types, for constant `arrays`; None where the evaluator cannot."""
    proto = ir.to_proto(node)
    present = {name: numbers for name, numbers in zip(proto.input, arrays, strict=True) if numbers is not None}
    try:
        inputs = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(numbers.dtype), None)
            for name, numbers in present.items()
        ]
        output = onnx.helper.make_tensor_value_info(proto.output[0], TensorProto.UNDEFINED, None)
        graph = onnx.helper.make_graph([proto], "node", inputs, [output])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        with np.errstate(all="ignore"):
            outputs = ReferenceEvaluator(model).run(None, present)
    except EVALUATION_ERRORS:
        return None
    first = outputs[0] if isinstance(outputs, list) else None
    return np.asarray(first) if isinstance(first, np.ndarray | np.generic) else None


def _widened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with all floating-point initialisers, Constant nodes and casts in float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    for tensor in wide.graph.initializer:
        _widen(tensor)
    for node in wide.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in _NARROW:
                attribute.i = TensorProto.DOUBLE
    return wide


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in _NARROW:
        numbers = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))


def padding_of(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str | None,
) -> list[tuple[int, int]]:
    """Zeros before and after each spatial axis (ONNX Conv-11, `auto_pad`); `kernel` includes the dilation."""
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-size // stride) - 1) * stride + taps - size, 0)
            for size, taps, stride in zip(sizes, kernel, strides, strict=True)
        ]
        small = [(total // 2, total - total // 2) for total in totals]
        return small if auto_pad == "SAME_UPPER" else [(after, before) for before, after in small]
    flat = list(pads or [0] * 2 * len(kernel))
    return list(zip(flat[: len(kernel)], flat[len(kernel) :], strict=True))


def reach_of(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """How many input positions a kernel spans on each axis."""
    return [(taps - 1) * step + 1 for taps, step in zip(kernel, dilations, strict=True)]


def windows_of(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> NDArray[np.float64]:
    """View of a padded n×c×spatial array as n×c×out…×kernel…."""
    reach = reach_of(kernel, dilations)
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, x.ndim)))
    steps = [slice(None, None, step) for step in (*strides, *dilations)]
    return view[(slice(None), slice(None), *steps)]


class Conv(OpRun):
    """Windows times kernel, one matrix product a group."""

    op_domain = ""

    def _run(  # the parameters are the operator's attributes, by name
        self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None
    ):
        spatial = w.ndim - 2
        strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
        reach = reach_of(w.shape[2:], dilations)
        padding = padding_of(x.shape[2:], reach, strides, pads, auto_pad)
        windows = windows_of(np.pad(x, [(0, 0), (0, 0), *padding]), w.shape[2:], strides, dilations)
        per_group = windows.shape[1] // (group or 1)
        axes = [1, *range(2 + spatial, 2 + 2 * spatial)]
        parts = [
            np.tensordot(windows[:, index * per_group : (index + 1) * per_group], rows, (axes, [*range(1, w.ndim)]))
            for index, rows in enumerate(np.split(w, group or 1))
        ]
        y = np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)
        return (y if b is None else y + b.reshape(1, -1, *[1] * spatial),)


class MaxPool(OpRun):
    """The largest number of each window."""

    op_domain = ""

    def _run(  # the parameters are the operator's attributes, by name
        self,
        x,
        auto_pad=None,
        ceil_mode=None,
        dilations=None,
        kernel_shape=None,
        pads=None,
        storage_order=None,
        strides=None,
    ):
        assert kernel_shape is not None, "MaxPool requires kernel_shape"
        spatial = len(kernel_shape)
        strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
        reach = reach_of(kernel_shape, dilations)
        padding = padding_of(x.shape[2:], reach, strides, pads, auto_pad)
        if ceil_mode:
            padding = [
                _reaching_over(pad, *sizes) for pad, *sizes in zip(padding, x.shape[2:], reach, strides, strict=True)
            ]
        padded = np.pad(x, [(0, 0), (0, 0), *padding], constant_values=-np.inf)
        windows = windows_of(padded, kernel_shape, strides, dilations)
        return (windows.max(axis=tuple(range(x.ndim, x.ndim + spatial))),)


def _reaching_over(pad: tuple[int, int], size: int, taps: int, stride: int) -> tuple[int, int]:
    """Padding in ceil mode; a window that would start behind the input is dropped (ONNX MaxPool-12)."""
    before, after = pad
    extra = -(size + before + after - taps) % stride
    starts_inside = size + before + after + extra - taps < size + before
    return before, after + (extra if starts_inside else 0)


class GlobalMaxPool(OpRun):
    """onnx's own (1.23) reduces the wrong axes of anything but n×c×h×w."""

    op_domain = ""

    def _run(self, x):
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class LRN(OpRun):
    """onnx's own (1.23) takes the batch for the channels."""

    op_domain = ""

    def _run(self, x, alpha=None, beta=None, bias=None, size=None):  # the operator's attributes, by name
        assert size is not None, "LRN requires size"
        around = [(0, 0)] * x.ndim
        around[1] = ((size - 1) // 2, size // 2)
        squares = np.lib.stride_tricks.sliding_window_view(np.pad(x * x, around), size, axis=1).sum(axis=-1)
        scale = 1.0 if bias is None else bias
        return (x / (scale + (1e-4 if alpha is None else alpha) / size * squares) ** (0.75 if beta is None else beta),)
