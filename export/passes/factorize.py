"""Replace the layers that a plan factorises by two convolutions (or Gemms) each: `conv1` → `conv1_v`, `conv1_u`.

Requires: canonical graph; every factorised layer of the plan is in it, dense. Ensures: `name_v` has no bias and
runs first, `name_u` has the layer's bias. Stride, dilation and padding of an axis go to the factor with the
taps along it, those of a 1×1 kernel to the first, so that the second is a plain matrix product. The error is
that of the truncated SVD, nothing else. Idempotent: a layer that is already factorised is not in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ...errors import InputError
from ...records import LayerDecision
from ..decompose import Factors, truncated_svd
from ..forms import resolve
from ..graphs import add_initializer, drop_unused_initializers, input_at, refresh_shapes, remove_node, sizes
from ..layers import Layer, layers_of

_AXES = "hw"


def factorize(model: ir.Model, decisions: Mapping[str, LayerDecision]) -> list[str]:
    """Apply the decisions whose form is not dense; returns the names of the layers replaced.

    Raises InputError when a decision names no layer, or a rank or form that the layer cannot have.
    """
    layers = {layer.name: layer for layer in layers_of(model)}
    wanted = {name: decision for name, decision in decisions.items() if decision.form != "dense"}
    replaced = [name for name in wanted if not _is_done(name, layers)]
    for name in replaced:
        if name not in layers:
            raise InputError(f"the plan factorises '{name}', a layer the model does not have; plan it again")
        _replace(layers[name], wanted[name])
    drop_unused_initializers(model.graph)
    refresh_shapes(model)
    return replaced


def _is_done(name: str, layers: Mapping[str, Layer]) -> bool:
    return name not in layers and f"{name}_v" in layers and f"{name}_u" in layers


def _factors(layer: Layer, decision: LayerDecision) -> Factors:
    if layer.obstacle:
        raise InputError(f"layer '{layer.name}': {layer.obstacle}; plan it dense")
    form = resolve(decision.form, layer.shape)
    if len(decision.ranks) != 1 or not 1 <= decision.ranks[0] <= form.full_rank(layer.shape):
        raise InputError(
            f"layer '{layer.name}': expected one rank from 1 to {form.full_rank(layer.shape)}, "
            f"found {decision.ranks}; plan it again"
        )
    return truncated_svd(layer.kernel, form, decision.ranks[0])


def _replace(layer: Layer, decision: LayerDecision) -> None:
    node, graph = layer.node, layer.node.graph
    assert graph is not None, f"layer {layer.name!r} is in no graph"
    form = resolve(decision.form, layer.shape)
    factors = _factors(layer, decision)
    middle = _node(layer, "v", factors.first, form.strided, [node.inputs[0]])
    middle.outputs[0].name, middle.outputs[0].type = f"{layer.name}_v_out", node.outputs[0].type
    last = _node(layer, "u", factors.second, frozenset(_AXES) - form.strided, [middle.outputs[0], input_at(node, 2)])
    old = node.outputs[0]
    last.outputs[0].type, last.outputs[0].shape, name = old.type, old.shape, old.name
    graph.insert_before(node, [middle, last])
    remove_node(node, last.outputs[0])
    last.outputs[0].name = name


def _node(
    layer: Layer, suffix: str, kernel: np.ndarray, axes: frozenset[str], inputs: list[ir.Value | None]
) -> ir.Node:
    """One factor as a node like the layer's own, with the stride and padding of `axes` only."""
    name, graph = f"{layer.name}_{suffix}", layer.node.graph
    assert isinstance(graph, ir.Graph), f"layer {layer.name!r} is in no graph"
    spatial = 0 if layer.node.op_type == "Gemm" else len(sizes(layer.node.inputs[1])) - 2
    stored = kernel.reshape(kernel.shape[: 2 + spatial]).astype(np.float32)
    weight = add_initializer(graph, f"{name}.weight", stored)
    attributes = {"transB": 1} if spatial == 0 else _conv_attributes(layer.node, stored, axes)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return ir.node(
        layer.node.op_type, [inputs[0], weight, *inputs[1:]], attributes, name=name, version=layer.node.version
    )


def _conv_attributes(node: ir.Node, kernel: np.ndarray, axes: frozenset[str]) -> dict[str, Any]:
    spatial = kernel.ndim - 2
    mine = [axis in axes for axis in _AXES[:spatial]]

    def own(key: str, default: int, per_axis: list[bool]) -> list[int]:
        values = node.attributes.get_ints(key, [default] * len(per_axis))
        return [value if has else default for value, has in zip(values, per_axis, strict=True)]

    attributes: dict[str, Any] = {
        "kernel_shape": list(kernel.shape[2:]),
        "strides": own("strides", 1, mine),
        "dilations": own("dilations", 1, mine),
    }
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        return attributes | {"pads": own("pads", 0, mine * 2)}
    return attributes | {"auto_pad": auto_pad}  # one tap and no stride: nothing is padded on the other axis
