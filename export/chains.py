"""Factor chains, whoever made them: layers with nothing between them that together equal one dense layer.

Requires: a canonical graph, shapes inferred. Ensures: what is found can be put back dense exactly (`undo`) and cut to
fewer channels (`cut`). Padding, stride and dilation must be those of one convolution: zeros around a map that has
already been summed over taps or shifted by a bias, and a strided tap in front of wide ones, are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .decompose import Array, Factors, truncated
from .forms import Pixels, dense_macs
from .graphs import (
    add_initializer,
    drop_unused_initializers,
    input_at,
    only_reader,
    own_input,
    refresh_shapes,
    replace_node,
    runs,
    sizes,
    unique,
)
from .kernels import bias_vector
from .layers import Layer, layers_of
from .reference import padding_of, reach_of

MOST = 4  # layers of a chain
# conv1_v, conv1_u here; conv1.0, conv1.1 of a torch Sequential; /conv1/conv1.0/Conv where its exporter names nodes
_FACTOR = re.compile(r"(.+)(?:_[vcu]|\.\d+)(?:/(?:Conv|Gemm|MatMul))?")


@dataclass(frozen=True)
class Chain:
    """Layers in the place of one, in the order they run; `ranks` are the channels between them.

    MACs are for one image, None where the spatial sizes are unknown.
    """

    name: str
    layers: tuple[str, ...]
    ranks: tuple[int, ...]
    macs: int | None
    macs_dense: int | None


def chains(model: ir.Model) -> list[Chain]:
    """All chains in the graph's order, as long as they can be, by unique names.

    One chain ends and another begins where the channels are no fewer than what the layers on both sides could pass on,
    unless the names say that they belong together.
    """
    found: list[Chain] = []
    for run in _runs({layer.node: layer for layer in layers_of(model) if _is_factor(layer)}):
        while len(run) > 1:
            size = next((size for size in range(min(len(run), MOST), 1, -1) if _is_chain(run[:size])), 1)
            if size > 1:
                found.append(_chain(run[:size], {chain.name for chain in found}))
            run = run[size:]
    return found


def kernel_of(model: ir.Model, chain: Chain) -> Array:
    """The dense kernel o×i×h×w that the layers compose to, in float64."""
    return _factors(_members(model, chain)).to_dense()


def undo(model: ir.Model, chain: Chain) -> str:
    """Put the one dense layer that it equals in the chain's place, in place; returns the layer's name."""
    layers = _members(model, chain)
    last, dense = layers[-1], _dense(layers)
    assert dense is not None, f"the layers of {chain.name!r} are no longer one"
    name, stored = unique(chain.name, {node.name for node in model.graph}), last.stored(_factors(layers).to_dense())
    inputs = [layers[0].node.inputs[0], add_initializer(model.graph, f"{name}.weight", stored)]
    if dense.bias.any() or input_at(last.node, 2) is not None:
        inputs.append(add_initializer(model.graph, f"{name}.bias", dense.bias.astype(np.float32)))
    attributes = dense.attributes(last.node, stored.shape[2:])
    replace_node(last.node, ir.node(last.node.op_type, inputs, attributes, name=name, version=last.node.version))
    drop_unused_initializers(model.graph)
    refresh_shapes(model)
    return name


def cut(model: ir.Model, chain: Chain, ranks: Sequence[int]) -> float:
    """Fewer channels between the layers, in place, nearest to the kernel K they have; returns ‖ΔK‖/‖K‖ (Frobenius).

    The bias, all of it, goes to the last layer and stays what it was. Raises ValueError for ranks that the chain does
    not have (`decompose.truncated`).
    """
    layers, before = _members(model, chain), kernel_of(model, chain)
    smaller, dense = truncated(_factors(layers), ranks), _dense(layers)
    assert dense is not None, f"the layers of {chain.name!r} are no longer one"
    for layer, kernel in zip(layers, smaller.kernels, strict=True):
        own_input(layer.node, 1, layer.stored(kernel), f"{layer.name}.weight")
        if input_at(layer.node, 2) is not None:
            own_input(layer.node, 2, np.zeros(len(kernel), np.float32), f"{layer.name}.bias")
    if dense.bias.any():
        own_input(layers[-1].node, 2, dense.bias.astype(np.float32), f"{layers[-1].name}.bias")
    refresh_shapes(model)
    size = float(np.linalg.norm(before))
    return float(np.linalg.norm(kernel_of(model, chain) - before)) / size if size else 0.0


# --- which layers follow each other -------------------------------------------------------------------------


def _is_factor(layer: Layer) -> bool:
    return layer.obstacle is None and _dense([layer]) is not None


def _runs(factors: Mapping[ir.Node, Layer]) -> Iterator[list[Layer]]:
    """Factors that belong together, each read by the next one alone."""
    following = {
        node: reader
        for node, layer in factors.items()
        if (reader := only_reader(node.outputs[0])) is not None
        and reader in factors
        and _belong(layer, factors[reader])
    }
    for run in runs(factors, following):
        yield [factors[node] for node in run]


def _belong(one: Layer, two: Layer) -> bool:
    """Whether a convolution meets a convolution, or a matrix another, as factors of the same layer."""
    if (one.node.op_type == "Conv") != (two.node.op_type == "Conv"):
        return False
    name = _whole(one.name)
    return (name is not None and name == _whole(two.name)) or _is_narrow([one, two])


def _is_chain(layers: Sequence[Layer]) -> bool:
    return _is_narrow(layers) and _dense(layers) is not None


def _is_narrow(layers: Sequence[Layer]) -> bool:
    """Whether some rank is below the full one of the product's shape: min(in, out), each times its side's taps."""
    taps = [prod(layer.shape[2:]) for layer in layers]
    into, out = layers[0].shape[1], layers[-1].shape[0]
    return any(
        layer.shape[0] < min(into * prod(taps[:at]), out * prod(taps[at:])) for at, layer in enumerate(layers[:-1], 1)
    )


def _chain(layers: Sequence[Layer], taken: set[str]) -> Chain:
    first, last, names = layers[0], layers[-1], {_whole(layer.name) for layer in layers}
    macs = [layer.macs for layer in layers]
    known = [count for count in macs if count is not None]
    heights, widths = ([layer.shape[axis] for layer in layers] for axis in (2, 3))
    shape = last.shape[0], first.shape[1], prod(heights), prod(widths)
    whole = names.pop() if len(names) == 1 else None
    pixels = first.pixels and last.pixels and Pixels(*first.pixels[:2], *last.pixels[2:])
    return Chain(
        name=unique(whole or first.name, taken),
        layers=tuple(layer.name for layer in layers),
        ranks=tuple(layer.shape[0] for layer in layers[:-1]),
        macs=sum(known) if len(known) == len(macs) else None,
        macs_dense=dense_macs(shape, pixels) if pixels else None,
    )


def _whole(name: str) -> str | None:
    """The layer that a factor's name says it is of."""
    match = _FACTOR.fullmatch(name)
    return match and match[1]


def _members(model: ir.Model, chain: Chain) -> list[Layer]:
    layers = {layer.name: layer for layer in layers_of(model)}
    return [layers[name] for name in chain.layers]


def _factors(layers: Sequence[Layer]) -> Factors:
    return Factors(tuple(layer.kernel for layer in layers))


# --- what they compose to -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """How a convolution walks one spatial axis, with `before` and `after` zeros around it."""

    taps: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0

    def then(self, other: _Axis) -> _Axis | None:
        """Both in one: y[j] = x[s·j − p] into y[s'·m + d'·k − p'] is x[s·s'·m + s·d'·k − s·p' − p]."""
        if self.taps > 1 and (other.taps > 1 or other.before or other.after):
            return None
        if other.taps > 1 and self.stride > 1:
            return None
        return _Axis(
            taps=self.taps * other.taps,
            stride=self.stride * other.stride,
            dilation=max((self, other), key=lambda one: one.taps).dilation,
            before=self.before + self.stride * other.before,
            after=self.after + self.stride * other.after,
        )


@dataclass(frozen=True)
class _Dense:
    """The one layer that several are: its way along both axes, and its bias (o)."""

    axes: tuple[_Axis, _Axis]
    bias: NDArray[np.float64]

    def attributes(self, like: ir.Node, taps: Sequence[int]) -> dict[str, int | list[int]]:
        """Those of a node like the last one, of a kernel of these taps."""
        if like.op_type != "Conv":
            return {"transB": like.attributes.get_int("transB", 0)} if like.op_type == "Gemm" else {}
        walked = self.axes[: len(taps)]
        return {
            "kernel_shape": list(taps),
            "strides": [axis.stride for axis in walked],
            "dilations": [axis.dilation for axis in walked],
            "pads": [*(axis.before for axis in walked), *(axis.after for axis in walked)],
        }


def _dense(layers: Sequence[Layer]) -> _Dense | None:
    """None where they are not one layer, a bias would be surrounded by zeros, or the last has no place for it."""
    height, width = _Axis(), _Axis()
    bias = np.zeros(layers[0].shape[1])
    for layer in layers:
        axes, own = _axes(layer), bias_vector(layer.node, layer.shape[0])
        if axes is None or own is None or (bias.any() and any(axis.before or axis.after for axis in axes)):
            return None
        height, width = height.then(axes[0]), width.then(axes[1])
        if height is None or width is None:
            return None
        bias = own + layer.kernel.sum(axis=(2, 3)) @ bias
    return None if bias.any() and layers[-1].node.op_type == "MatMul" else _Dense((height, width), bias)


def _axes(layer: Layer) -> tuple[_Axis, _Axis] | None:
    """Height and width; None where padding depends on sizes that are unknown."""
    node = layer.node
    if node.op_type != "Conv":
        return _Axis(), _Axis()
    taps = layer.shape[2 : len(sizes(node.inputs[1]))]
    strides, dilations = (list(node.attributes.get_ints(key, [1] * len(taps))) for key in ("strides", "dilations"))
    how, extent = node.attributes.get_string("auto_pad", "NOTSET"), sizes(node.inputs[0])[2:]
    known = [size for size in extent if size is not None]
    if how.startswith("SAME") and len(known) < len(taps):
        return None
    pads = padding_of(known, reach_of(taps, dilations), strides, node.attributes.get_ints("pads", None), how)
    ways = zip(taps, strides, dilations, pads, strict=True)
    walked = [_Axis(size, stride, dilation, *ends) for size, stride, dilation, ends in ways]
    return walked[0], (walked[1] if len(walked) > 1 else _Axis())
