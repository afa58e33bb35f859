"""Compute what does not depend on the input, once.

Requires: canonical graph, shapes inferred. Ensures: no node of the main graph has constant inputs only, but for
random ones, those with subgraphs, and those whose result is larger than what it is made from: a file must not
grow by folding (a Cast of float16 weights, a filled shape). The shape of a value that is wholly known is a
constant too; with a symbolic batch it is not. Exact, in the constants' own types. Idempotent.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graphs import array, drop_unused_initializers, set_array, sizes
from ..reference import compute_node

_SMALL_BYTES = 1 << 16  # shapes, axes and indices, which may grow
_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
# Results that are larger than the inputs by as much as the inputs' numbers say.
_GROWING = ("ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Upsample", "Pad", "OneHot", "EyeLike")


def fold_constants(model: ir.Model) -> int:
    """Fold in place; returns how many nodes went."""
    opset = model.opset_imports.get("", 1)
    folded = sum([_fold(node, opset) for node in list(model.graph)])
    drop_unused_initializers(model.graph)
    return folded


def _fold(node: ir.Node, opset: int) -> bool:
    output, graph = node.outputs[0], node.graph
    if node.domain or len(node.outputs) != 1 or output.is_graph_output() or not isinstance(graph, ir.Graph):
        return False
    result = _known_shape(node) if node.op_type == "Shape" else _computed(node, opset)
    if result is None:
        return False
    constant = ir.Value(name=output.name, const_value=ir.tensor(result))
    set_array(constant, result)
    output.name = f"{output.name}_folded"
    output.replace_all_uses_with(constant)
    graph.remove(node, safe=True)
    graph.register_initializer(constant)
    return True


def _known_shape(node: ir.Node) -> NDArray | None:
    """Shape of a value with no open axis (ONNX Shape-15: start and end cut it)."""
    source = node.inputs[0]
    if source is None or source.shape is None or None in sizes(source):
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    return np.array(sizes(source)[start:end], np.int64)


def _computed(node: ir.Node, opset: int) -> NDArray | None:
    constants = [array(value) for value in node.inputs]
    absent = [value is None for value in node.inputs]
    if not constants or any(one is None and not gone for one, gone in zip(constants, absent, strict=True)):
        return None
    if node.op_type in _RANDOM or any(one.type in _SUBGRAPHS for one in node.attributes.values()):
        return None
    most = max(sum(one.nbytes for one in constants if one is not None), _SMALL_BYTES)
    if not _is_small(node, most):
        return None
    result = compute_node(node, opset, constants)
    return None if result is None or result.nbytes > most or result.dtype.kind not in "fiub" else result


_SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _is_small(node: ir.Node, most_bytes: int) -> bool:
    """Whether the result's shape says that it may be computed at all."""
    shape, output = sizes(node.outputs[0]), node.outputs[0]
    if output.shape is None or None in shape or output.dtype is None:
        return node.op_type not in _GROWING
    return prod(size or 0 for size in shape) * output.dtype.bitwidth / 8 <= most_bytes
