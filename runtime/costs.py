"""Count multiply-accumulates (MACs) and parameters of an ONNX graph. 1 MAC is 2 FLOPs; batch 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from ..errors import InputError
from .onnxfile import read, skeleton

Shape = list[int | None]
Shapes = dict[str, Shape]
FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}


@dataclass(frozen=True)
class LayerCost:
    """One convolution or matrix product: `macs` is None where its shapes are not known."""

    macs: int | None
    parameters: int


@dataclass(frozen=True)
class Costs:
    """A whole graph: `macs` is None when any node's could not be counted, rather than a sum too small."""

    macs: int | None
    parameters: int
    layers: dict[str, LayerCost]


def load(path: Path | str) -> onnx.ModelProto:
    """Read and check an ONNX file; InputError when it is missing, truncated or something else."""
    try:
        model = read(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except DecodeError as error:
        raise InputError(f"{path}: not an ONNX file, or cut short; export or copy it again") from error
    except onnx.checker.ValidationError as error:
        what = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a valid ONNX model: {what}; export it again") from error
    return model


def count(model: Path | str | onnx.ModelProto) -> Costs:
    """MACs and parameters of a model, and of each convolution and matrix product by node name.

    A node without a name goes by its first output. An open first dimension of an input is the batch and
    counts as 1; other open dimensions leave what depends on them None. Parameters are the elements of
    floating-point initialisers that nodes use, shared ones once. Elementwise nodes count no MACs.
    """
    graph = _inferred(model if isinstance(model, onnx.ModelProto) else load(model)).graph
    shapes = dict(_shapes(graph))
    sizes = {i.name: math.prod(i.dims) for i in graph.initializer if i.data_type in FLOATS}
    used = {name for node in _all_nodes(graph) for name in node.input}
    layers = {
        node.name or node.output[0]: LayerCost(
            macs=_RULES[node.op_type](node, *(shapes.get(name, [None]) for name in (*node.input[:2], node.output[0]))),
            parameters=sum(sizes.get(name, 0) for name in node.input),
        )
        for node in graph.node
        if node.op_type in _RULES and _is_standard(node)
    }
    return Costs(
        macs=None if any(map(_is_uncountable, graph.node)) else _total(layer.macs for layer in layers.values()),
        parameters=sum(size for name, size in sizes.items() if name in used),
        layers=layers,
    )


# --- MACs of a node from the shapes of its first two inputs and its output ----------------------------------


def _convolution(_: onnx.NodeProto, __: Shape, weight: Shape, output: Shape) -> int | None:
    """Each output element takes one filter, (in / groups) × kernel (weight: out, in / groups, kernel…)."""
    return _product([*output, *weight[1:]])


def _transposed_convolution(_: onnx.NodeProto, image: Shape, weight: Shape, __: Shape) -> int | None:
    """Each input element is spread by (out / groups) × kernel (weight: in, out / groups, kernel…)."""
    return _product([*image, *weight[1:]])


def _gemm(node: onnx.NodeProto, a: Shape, _: Shape, output: Shape) -> int | None:
    transposed = any(x.name == "transA" and x.i for x in node.attribute)
    return _product([*output, a[0 if transposed else -1]])


def _matmul(_: onnx.NodeProto, a: Shape, __: Shape, output: Shape) -> int | None:
    return _product([*output, a[-1]])


_RULES: dict[str, Callable[[onnx.NodeProto, Shape, Shape, Shape], int | None]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
# Standard operators that multiply matrices by rules not written here.
_NO_RULE = {
    "Attention", "ConvInteger", "DeformConv", "DFT", "Einsum", "GRU", "LSTM", "MatMulInteger", "QLinearConv",
    "QLinearMatMul", "RNN",
}  # fmt: skip


def _is_standard(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")


def _is_uncountable(node: onnx.NodeProto) -> bool:
    """Whether a node may hold MACs that no rule counts: another domain's operator, a loop or a branch."""
    return not _is_standard(node) or node.op_type in _NO_RULE or any(True for _ in _subgraphs(node))


# --- shapes -------------------------------------------------------------------------------------------------


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with batch 1 and all shapes that follow from it; those stored in the file are not trusted."""
    copy = skeleton(model)
    del copy.graph.value_info[:]
    weights = {i.name for i in copy.graph.initializer}
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return copy  # an inconsistent graph: its shapes are unknown, and so are its MACs


def _shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, Shape]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            yield value.name, [d.dim_value if d.HasField("dim_value") else None for d in dims]
    for tensor in graph.initializer:
        yield tensor.name, list(tensor.dims)


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for subgraph in _subgraphs(node):
            yield from _all_nodes(subgraph)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _product(dims: Iterable[int | None]) -> int | None:
    known = list(dims)
    return None if None in known else math.prod(d for d in known if d is not None)


def _total(numbers: Iterable[int | None]) -> int | None:
    known = list(numbers)
    return None if None in known else sum(n for n in known if n is not None)
