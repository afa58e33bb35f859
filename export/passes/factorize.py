"""Replace the layers that a plan factorises by several convolutions or matrix products: `conv1` → `conv1_v`, `conv1_u`.

Requires: canonical graph; every factorised layer of the plan is in it, dense. Ensures: `name_v` runs first, `name_u`
last and has the bias; the core of tucker-2 is `name_c` between them. Stride, dilation and padding of an axis go to
the factor with the taps along it, those of a 1×1 kernel to the first, so that the second is a plain matrix product.
The error is that of the factors, nothing else. Idempotent: a layer that is already factorised is not in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import InputError
from ...records import LayerDecision
from ..decompose import Factors, truncated_svd, tucker2
from ..forms import AnyForm, Form, resolve_any
from ..graphs import add_initializer, drop_unused_initializers, input_at, refresh_shapes, remove_node, sizes
from ..layers import Layer, layers_of

_AXES = "hw"
_SUFFIXES = {2: ("v", "u"), 3: ("v", "c", "u")}


def factorize(model: ir.Model, decisions: Mapping[str, LayerDecision]) -> list[str]:
    """Apply the decisions whose form is not dense by plain SVD or HOOI; returns the names of the layers replaced.

    Raises InputError when a decision names no layer, or a rank or form that the layer cannot have.
    """
    layers = {layer.name: layer for layer in layers_of(model)}
    wanted = {name: decision for name, decision in decisions.items() if decision.form != "dense"}
    replaced = [name for name in wanted if not _is_done(name, layers)]
    for name in replaced:
        if name not in layers:
            raise InputError(f"the plan factorises '{name}', a layer the model does not have; plan it again")
        form = form_of(layers[name], wanted[name])
        replace(layers[name], form, _plain(layers[name], form, wanted[name].ranks))
    drop_unused_initializers(model.graph)
    refresh_shapes(model)
    return replaced


def form_of(layer: Layer, decision: LayerDecision) -> AnyForm:
    """The form of a decision, for the layer's kernel. Raises InputError for what the layer cannot have."""
    if layer.obstacle:
        raise InputError(f"layer '{layer.name}': {layer.obstacle}; plan it dense")
    form = resolve_any(decision.form, layer.shape)
    if isinstance(form, Form):
        fits = len(decision.ranks) == 1 and 1 <= decision.ranks[0] <= form.full_rank(layer.shape)
        expected = f"one rank from 1 to {form.full_rank(layer.shape)}"
    else:
        o, i = layer.shape[:2]
        fits = len(decision.ranks) == 2 and 1 <= decision.ranks[0] <= i and 1 <= decision.ranks[1] <= o
        expected = f"two ranks, up to {i} and {o}"
    if not fits:
        raise InputError(f"layer '{layer.name}': expected {expected}, found {decision.ranks}; plan it again")
    return form


def replace(layer: Layer, form: AnyForm, factors: Factors, bias: NDArray | None = None) -> None:
    """Put the factors in the layer's place; `bias` (o) replaces its own."""
    node, graph = layer.node, layer.node.graph
    assert isinstance(graph, ir.Graph), f"layer {layer.name!r} is in no graph"
    source, old, own = node.inputs[0], node.outputs[0], input_at(node, 2)
    nodes: list[ir.Node] = []
    for suffix, kernel, axes in zip(_SUFFIXES[len(factors.kernels)], factors.kernels, form.walked, strict=True):
        made = _node(layer, suffix, kernel, axes, source)
        made.outputs[0].name, made.outputs[0].type = f"{layer.name}_{suffix}_out", old.type
        nodes.append(made)
        source = made.outputs[0]
    last, name = nodes[-1], old.name
    if bias is not None or own is not None:
        _add_bias(last, own, bias, graph)
    last.outputs[0].shape = old.shape
    graph.insert_before(node, nodes)
    remove_node(node, last.outputs[0])
    last.outputs[0].name = name


def _add_bias(last: ir.Node, own: ir.Value | None, bias: NDArray | None, graph: ir.Graph) -> None:
    last.resize_inputs(3)
    if bias is not None:
        own = add_initializer(graph, f"{last.name}.bias", bias.astype(np.float32))
    last.replace_input_with(2, own)


def _is_done(name: str, layers: Mapping[str, Layer]) -> bool:
    return name not in layers and f"{name}_v" in layers and f"{name}_u" in layers


def _plain(layer: Layer, form: AnyForm, ranks: list[int]) -> Factors:
    if isinstance(form, Form):
        return truncated_svd(layer.kernel, form, ranks[0])
    return tucker2(layer.kernel, (ranks[0], ranks[1]))


def _node(layer: Layer, suffix: str, kernel: NDArray, axes: frozenset[str], source: ir.Value | None) -> ir.Node:
    """One factor as a node like the layer's own, with the stride and padding of `axes` only."""
    name, graph = f"{layer.name}_{suffix}", layer.node.graph
    assert isinstance(graph, ir.Graph), f"layer {layer.name!r} is in no graph"
    operator = layer.node.op_type
    if operator in ("Gemm", "MatMul"):
        matrix = kernel.reshape(kernel.shape[:2])
        stored, attributes = (matrix, {"transB": 1}) if operator == "Gemm" else (matrix.T, {})
    else:
        spatial = len(sizes(layer.node.inputs[1])) - 2
        stored = kernel.reshape(kernel.shape[: 2 + spatial])
        attributes = _conv_attributes(layer.node, stored, axes)
    weight = add_initializer(graph, f"{name}.weight", np.ascontiguousarray(stored, np.float32))
    return ir.node(operator, [source, weight], attributes, name=name, version=layer.node.version)


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
