"""The layers of a graph: every Conv and Gemm with its kernel and its geometry, under one stable name."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import InputError
from .forms import KernelShape, Pixels, dense_macs, kernel_shape
from .graphs import array, input_at, set_array, sizes, unique

LAYER_OPERATORS = ("Conv", "Gemm", "ConvTranspose", "MatMul")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\-/]+")


@dataclass(frozen=True)
class Layer:
    """A node with a constant weight, as the forms see it.

    `kernel` is o×i×h×w in float64 (`i` input channels of one group); `obstacle` says why the layer cannot be
    factorised, None where it can; `pixels` is None when the graph does not tell the spatial sizes.
    """

    name: str
    node: ir.Node
    kernel: NDArray[np.float64]
    pixels: Pixels | None
    obstacle: str | None

    @property
    def shape(self) -> KernelShape:
        """o×i×h×w."""
        return kernel_shape(self.kernel.shape)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates for one image, None when the spatial sizes are unknown."""
        return None if self.pixels is None else dense_macs(self.shape, self.pixels)

    @property
    def closed(self) -> str | None:
        """Why there is nothing to plan for the layer, None where there is."""
        return self.obstacle or ("its spatial sizes are not known" if self.pixels is None else None)

    def stored(self, kernel: NDArray) -> NDArray[np.float32]:
        """Any o×i×h×w kernel as the node's own operator stores its weight."""
        operator = self.node.op_type
        if operator in ("Gemm", "MatMul"):
            matrix = kernel.reshape(kernel.shape[:2])
            as_is = operator == "Gemm" and self.node.attributes.get_int("transB", 0)
            return np.ascontiguousarray(matrix if as_is else matrix.T, np.float32)
        spatial = len(sizes(self.node.inputs[1])) - 2
        return np.ascontiguousarray(kernel.reshape(kernel.shape[: 2 + spatial]), np.float32)


def name_layers(model: ir.Model) -> None:
    """Name every layer's node after its weight (`conv1.weight` → `conv1`), stable, safe and unique.

    A weight whose name does not end in `.weight` leaves the node its own name, where it has one. Other nodes
    keep their names, or get a unique one.
    """
    taken: set[str] = set()
    layer_nodes = [node for node in model.graph if is_layer(node)]
    for node in layer_nodes:
        node.name = unique(_UNSAFE.sub("_", _wanted_name(node)).strip("_") or "layer", taken)
        taken.add(node.name)
        for index, suffix in ((1, "weight"), (2, "bias")):
            _rename(node, index, f"{node.name}.{suffix}")
    for node in model.graph:
        if not is_layer(node):
            node.name = unique(_UNSAFE.sub("_", node.name or node.op_type), taken)
            taken.add(node.name)


def is_layer(node: ir.Node) -> bool:
    """Whether the node multiplies its input with a constant weight."""
    if node.domain or node.op_type not in LAYER_OPERATORS:
        return False
    weight = array(input_at(node, 1))
    return weight is not None and weight.ndim >= 2


def layers_of(model: ir.Model) -> list[Layer]:
    """All layers in the graph's order; shapes must have been inferred, names given (`name_layers`)."""
    return [_layer(node) for node in model.graph if is_layer(node)]


def require_known(names: Collection[str], layers: Collection[str]) -> None:
    """Raises InputError where a name is not among those of the layers."""
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise InputError(f"unknown layer '{unknown[0]}'; the model has {', '.join(layers)}")


def is_plain_gemm(node: ir.Node) -> bool:
    """Whether a Gemm is x·Bᵀ + c or x·B + c: no scaling, x not transposed."""
    scales = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    return scales == (1.0, 1.0) and node.attributes.get_int("transA", 0) == 0


def has_padding(node: ir.Node) -> bool:
    """Whether a convolution or pooling sees zeros around its input."""
    if node.attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return True
    return any(node.attributes.get_ints("pads", ()))


def gemm_kernel(node: ir.Node) -> NDArray:
    """A Gemm's weight as o×i, whichever way it is stored."""
    weight = array(node.inputs[1])
    assert weight is not None, f"node {node.name!r} has no constant weight"
    return weight if node.attributes.get_int("transB", 0) else weight.T


def _rename(node: ir.Node, index: int, name: str) -> None:
    value = input_at(node, index)
    if value is None or not value.is_initializer() or len(value.uses()) > 1 or node.graph is None:
        return
    initializers = node.graph.initializers if isinstance(node.graph, ir.Graph) else {}
    numbers = array(value)
    if name not in initializers and numbers is not None:
        set_array(value, numbers)  # a tensor that is still the caller's protobuf would be renamed there too
        value.name = name


def _wanted_name(node: ir.Node) -> str:
    weight = node.inputs[1]
    name = (weight.name if weight is not None else None) or ""
    return name.removesuffix(".weight") if name.endswith(".weight") else node.name or name or node.op_type


def _layer(node: ir.Node) -> Layer:
    weight = gemm_kernel(node) if node.op_type == "Gemm" else array(node.inputs[1])
    assert weight is not None, f"node {node.name!r} has no constant weight"
    obstacle = _obstacle(node, weight)
    if node.op_type == "MatMul" and not obstacle:
        weight = weight.T
    if weight.ndim > 4 or (node.op_type in ("ConvTranspose", "MatMul") and obstacle):
        return Layer(node.name or "", node, np.zeros((1, 1, 1, 1)), None, obstacle)
    kernel = weight.astype(np.float64).reshape(kernel_shape(weight.shape))
    return Layer(node.name or "", node, kernel, _pixels(node), obstacle)


def _obstacle(node: ir.Node, weight: NDArray) -> str | None:
    if node.op_type == "ConvTranspose":
        return "a ConvTranspose is not factorised"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return "a MatMul with a batch of weights is not factorised"
    if weight.dtype != np.float32:
        return f"{weight.dtype} weights are not factorised"
    if node.op_type == "MatMul":
        return None
    if node.op_type == "Gemm":
        return None if is_plain_gemm(node) else "a Gemm with alpha, beta or transA is not factorised"
    if weight.ndim > 4:
        return "a 3-D convolution is not factorised"
    groups = node.attributes.get_int("group", 1)
    return None if groups == 1 else f"a convolution of {groups} groups is not factorised along them"


def _pixels(node: ir.Node) -> Pixels | None:
    if node.op_type == "Gemm":
        return Pixels(1, 1, 1, 1)
    if node.op_type == "MatMul":
        rows = sizes(node.inputs[0])[1:-1]
        known = [size for size in rows if size is not None]
        return Pixels(prod(known), 1, prod(known), 1) if len(known) == len(rows) else None
    spatial = [*_spatial(node.inputs[0]), *_spatial(node.outputs[0])]
    known = [size for size in spatial if size is not None]
    return Pixels(*known) if len(known) == len(spatial) == 4 else None


def _spatial(value: ir.Value | None) -> list[int | None]:
    return [*sizes(value)[2:], 1][:2]
