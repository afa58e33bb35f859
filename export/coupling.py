"""Which channels live and die together: a walk over the graph and one small function per operator.

Every index along a tracked axis of a value (activation or constant) is an element of a union-find. An operator
ties elements that can only be removed together (a filter, its bias, the output channel, the next layer's input
slice), and notes where channels are read by a sum over them (`Read`): only there is anything lost. What the walk
does not understand it freezes, with the node and the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .graphs import array, input_at, sizes
from .layers import is_layer, is_plain_gemm

Ids = NDArray[np.intp]
CHANNEL_AXIS = 1


@dataclass(frozen=True)
class Read:
    """A node that sums over the channels of a value: its weight's slice goes when a channel does."""

    node: ir.Node
    value: ir.Value
    ids: Ids


class Coupling:
    """Union-find over (value, axis, index), with reads and frozen elements.

    `ids(value, axis)` are the elements of an axis of known size; `roots(ids)` the class of each.
    """

    def __init__(self) -> None:
        self.reads: list[Read] = []
        self._parents: list[int] = []
        self._axes: dict[ir.Value, dict[int, Ids]] = {}
        self._frozen: dict[int, str] = {}

    def tracked(self, value: ir.Value | None) -> Mapping[int, Ids]:
        """Axes of `value` seen so far, with their elements."""
        return {} if value is None else self._axes.get(value, {})

    def values(self) -> Mapping[ir.Value, Mapping[int, Ids]]:
        """Every value with a tracked axis."""
        return self._axes

    def ids(self, value: ir.Value, axis: int) -> Ids | None:
        """Elements along an axis, made on first use; None when its size is unknown."""
        shape = sizes(value)
        size = shape[axis] if axis < len(shape) else None
        if size is None:
            return None
        axes = self._axes.setdefault(value, {})
        if axis not in axes:
            axes[axis] = np.arange(len(self._parents), len(self._parents) + size)
            self._parents.extend(range(len(self._parents), len(self._parents) + size))
        return axes[axis]

    def tie(self, first: Ids | None, second: Ids | None) -> None:
        """Element k of one lives and dies with element k of the other; None or unequal sizes freeze."""
        if first is None or second is None or len(first) != len(second):
            for ids in (first, second):
                self.freeze(ids, "its size is unknown or differs")
            return
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            self._parents[self._root(one)] = self._root(other)

    def freeze(self, ids: Ids | None, reason: str) -> None:
        """These elements stay, whatever else is found."""
        for element in [] if ids is None else ids.tolist():
            self._frozen.setdefault(element, reason)

    def freeze_all(self, node: ir.Node, reason: str) -> None:
        """Everything the node reads or writes stays."""
        for value in (*node.inputs, *node.outputs):
            for axis in range(len(sizes(value))):
                self.freeze(None if value is None else self.ids(value, axis), reason)

    def roots(self, ids: Ids) -> Ids:
        """The class of each element."""
        return np.array([self._root(element) for element in ids.tolist()], dtype=np.intp)

    def frozen(self) -> dict[int, str]:
        """Classes that stay, with the first reason given."""
        return {self._root(element): reason for element, reason in reversed(self._frozen.items())}

    def _root(self, element: int) -> int:
        parents = self._parents
        while parents[element] != element:
            parents[element] = parents[parents[element]]
            element = parents[element]
        return element


def couple(graph: ir.Graph) -> Coupling:
    """Walk a canonical graph with inferred shapes."""
    coupling = Coupling()
    for value in graph.inputs:
        coupling.freeze(coupling.ids(value, CHANNEL_AXIS), f"channels of the graph input '{value.name}'")
    for node in graph:
        rule = None if node.domain else OPERATORS.get(node.op_type)
        if rule is None or not rule(node, coupling):
            coupling.freeze_all(node, f"node '{node.name}' ({node.op_type}) is not understood")
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.graph is not graph:
            coupling.freeze_all(node, f"read inside a subgraph by '{node.name}' ({node.op_type})")
    for value in graph.outputs:
        for ids in coupling.tracked(value).values():
            coupling.freeze(ids, f"channels of the graph output '{value.name}'")
    return coupling


# One function per operator: tie and note, and return True; or return False before touching anything.


def _conv(node: ir.Node, coupling: Coupling) -> bool:
    source, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
    if not is_layer(node) or source is None or weight is None:
        return False
    filters, channels = coupling.ids(weight, 0), coupling.ids(source, CHANNEL_AXIS)
    groups = node.attributes.get_int("group", 1)
    if filters is None or channels is None or groups not in (1, len(channels)):
        return False
    if groups == 1:
        coupling.tie(channels, coupling.ids(weight, 1))
        coupling.reads.append(Read(node, source, channels))
    elif len(filters) == len(channels):
        coupling.tie(channels, filters)  # depthwise: a channel is its own filter
    else:
        return False
    _tie_rows(node, filters, output, coupling)
    return True


def _gemm(node: ir.Node, coupling: Coupling) -> bool:
    source, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
    if not is_layer(node) or not is_plain_gemm(node) or source is None or weight is None:
        return False
    bias = input_at(node, 2)
    if bias is not None and (array(bias) is None or len(sizes(bias)) != 1):
        return False
    rows, columns = (0, 1) if node.attributes.get_int("transB", 0) else (1, 0)
    filters, channels = coupling.ids(weight, rows), coupling.ids(source, CHANNEL_AXIS)
    if filters is None or channels is None:
        return False
    coupling.tie(channels, coupling.ids(weight, columns))
    coupling.reads.append(Read(node, source, channels))
    _tie_rows(node, filters, output, coupling)
    return True


def _tie_rows(node: ir.Node, filters: Ids, output: ir.Value, coupling: Coupling) -> None:
    coupling.tie(filters, coupling.ids(output, CHANNEL_AXIS))
    bias = input_at(node, 2)
    if bias is not None:
        coupling.tie(filters, coupling.ids(bias, 0))


def _batchnorm(node: ir.Node, coupling: Coupling) -> bool:
    source = node.inputs[0]
    channels = None if source is None else coupling.ids(source, CHANNEL_AXIS)
    if channels is None or any(array(value) is None for value in node.inputs[1:]):
        return False
    coupling.tie(channels, coupling.ids(node.outputs[0], CHANNEL_AXIS))
    for value in node.inputs[1:]:
        coupling.tie(channels, None if value is None else coupling.ids(value, 0))
    return True


def _elementwise(node: ir.Node, coupling: Coupling) -> bool:
    """Axes aligned from the right, as ONNX broadcasts; an axis of size 1 is repeated and says nothing."""
    output = node.outputs[0]
    target = coupling.ids(output, CHANNEL_AXIS)
    if target is None:
        return False
    for value in node.inputs:
        if value is None:
            continue
        axis = CHANNEL_AXIS - len(sizes(output)) + len(sizes(value))
        if axis < 0 or (sizes(value)[axis] == 1 and len(target) > 1):
            for ids in coupling.tracked(value).values():
                coupling.freeze(ids, f"broadcast by '{node.name}' ({node.op_type})")
        else:
            coupling.tie(target, coupling.ids(value, axis))
    return True


def _spatial(node: ir.Node, coupling: Coupling) -> bool:
    """Pooling: every channel for itself."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None or len(node.outputs) > 1:
        return False
    coupling.tie(coupling.ids(source, CHANNEL_AXIS), coupling.ids(output, CHANNEL_AXIS))
    return True


def _reduce(node: ir.Node, coupling: Coupling) -> bool:
    axes = reduced_axes(node)
    return axes is not None and min(axes, default=0) > CHANNEL_AXIS and _spatial(node, coupling)


def _flatten(node: ir.Node, coupling: Coupling) -> bool:
    """Channel c of n×c×h×w owns the h·w features from c·h·w on."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None or node.attributes.get_int("axis", 1) != CHANNEL_AXIS:
        return False
    channels, features = coupling.ids(source, CHANNEL_AXIS), coupling.ids(output, CHANNEL_AXIS)
    if channels is None or features is None or len(channels) == 0:
        return False
    coupling.tie(np.repeat(channels, len(features) // len(channels)), features)
    return True


def reduced_axes(node: ir.Node) -> list[int] | None:
    """Axes that a Reduce node sums over (an attribute before opset 18), non-negative; None if not constant."""
    given = node.attributes.get_ints("axes", None)
    if given is None:
        constant = array(input_at(node, 1))
        given = None if constant is None else constant.tolist()
    rank = len(sizes(node.inputs[0]))
    return None if given is None or not rank else [axis % rank for axis in given]


# Operators that map every number by itself (with broadcasting).
UNARY = (
    *("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "Elu", "Selu", "HardSigmoid", "HardSwish", "Softplus"),
    *("Gelu", "Mish", "Erf", "Abs", "Neg", "Exp", "Sqrt", "Identity"),
)
BINARY = ("Add", "Sub", "Mul", "Div")
POOLING = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
REDUCTIONS = ("ReduceMean", "ReduceMax")
OPERATORS: Mapping[str, Callable[[ir.Node, Coupling], bool]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "BatchNormalization": _batchnorm,
    "Flatten": _flatten,
    **dict.fromkeys((*UNARY, *BINARY), _elementwise),
    **dict.fromkeys(POOLING, _spatial),
    **dict.fromkeys(REDUCTIONS, _reduce),
}
