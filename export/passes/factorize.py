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
from ..decompose import Factors, plain_factors
from ..forms import AnyForm, resolve_any
from ..graphs import add_initializer, drop_unused_initializers, input_at, refresh_shapes, remove_node
from ..layers import Layer, layers_of, name_layers

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
        layer, ranks = layers[name], wanted[name].ranks
        form = form_of(layer, wanted[name])
        replace(layer, form, plain_factors(layer.kernel, form, ranks))
    drop_unused_initializers(model.graph)
    refresh_shapes(model)
    return replaced


def name_factors(model: ir.Model, decisions: Mapping[str, LayerDecision]) -> None:
    """Factors that were trained in torch (`conv1.0`, `conv1.1` of a Sequential) under the names that they have here."""
    names = {}
    for name, decision in decisions.items():
        if decision.form != "dense":
            suffixes = _SUFFIXES[len(decision.ranks) + 1]
            names |= {f"{name}.{number}": f"{name}_{suffix}" for number, suffix in enumerate(suffixes)}
    for node in model.graph:
        for value in node.inputs:
            layer, _, kind = (value.name or "").rpartition(".") if value is not None else ("", "", "")
            if value is not None and value.is_initializer() and layer in names:
                value.name = f"{names[layer]}.{kind}"
    name_layers(model)


def form_of(layer: Layer, decision: LayerDecision) -> AnyForm:
    """The form of a decision, for the layer's kernel. Raises InputError for what the layer cannot have."""
    if layer.obstacle:
        raise InputError(f"layer '{layer.name}': {layer.obstacle}; plan it dense")
    form = resolve_any(decision.form, layer.shape)
    most, ranks = form.most(layer.shape), decision.ranks
    if len(ranks) != len(most) or not all(1 <= rank <= limit for rank, limit in zip(ranks, most, strict=True)):
        expected = f"one rank from 1 to {most[0]}" if len(most) == 1 else f"two ranks, up to {most[0]} and {most[1]}"
        raise InputError(f"layer '{layer.name}': expected {expected}, found {ranks}; plan it again")
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


def _node(layer: Layer, suffix: str, kernel: NDArray, axes: frozenset[str], source: ir.Value | None) -> ir.Node:
    """One factor as a node like the layer's own, with the stride and padding of `axes` only."""
    name, graph = f"{layer.name}_{suffix}", layer.node.graph
    assert isinstance(graph, ir.Graph), f"layer {layer.name!r} is in no graph"
    operator, stored = layer.node.op_type, layer.stored(kernel)
    if operator == "Conv":
        attributes = _conv_attributes(layer.node, stored, axes)
    else:
        attributes = {"transB": layer.node.attributes.get_int("transB", 0)} if operator == "Gemm" else {}
    weight = add_initializer(graph, f"{name}.weight", stored)
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
