"""How much memory a layer's surroundings take while it runs: what peak memory is made of beside weights.

The runtime frees a value once its last reader has run, so what is held at a node is what lives across it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import onnx_ir as ir

from .candidates import Way
from .forms import KernelShape, Pixels, resolve_any
from .graphs import sizes
from .layers import Layer, layers_of

BYTES = 4  # of a float32


@dataclass(frozen=True)
class Held:
    """Bytes of values, for a batch of one: `beside` each layer while it runs, without its input and output; `floor` is
    the most that any other node sees.
    """

    beside: Mapping[str, int]
    floor: int


def held(model: ir.Model) -> Held:
    """From the shapes that are known; an open dimension counts as 1."""
    nodes = list(model.graph)
    order = {node: index for index, node in enumerate(nodes)}
    born: dict[ir.Value, int] = dict.fromkeys(model.graph.inputs, -1)
    born |= {value: index for index, node in enumerate(nodes) for value in node.outputs}
    dies = {value: max([order[use.node] for use in value.uses() if use.node in order], default=at)
            for value, at in born.items()}  # fmt: skip
    dies |= dict.fromkeys(model.graph.outputs, len(nodes))
    totals = [0] * len(nodes)
    for value, at in born.items():
        for index in range(max(at, 0), min(dies[value], len(nodes) - 1) + 1):
            totals[index] += _bytes(value)
    layers = {layer.node: layer for layer in layers_of(model) if not layer.closed}
    beside = {
        layer.name: totals[order[node]] - _bytes(node.inputs[0]) - _bytes(node.outputs[0])
        for node, layer in layers.items()
    }
    floor = max([total for node, total in zip(nodes, totals, strict=True) if node not in layers], default=0)
    return Held(beside, floor)


def own_bytes(layer: Layer, way: Way) -> int:
    """The most that a layer written in some way holds at once of input, output and what is between."""
    assert layer.pixels is not None, "closed layers are not written in other ways"
    shape = (*(way.channels or layer.shape[:2]), *layer.shape[2:])
    values = _values(shape, layer.pixels, way)
    return BYTES * max(one + other for one, other in pairwise(values))


def weight_bytes(layer: Layer, way: Way) -> int:
    """Of the kernel or the factors."""
    shape: KernelShape = (*(way.channels or layer.shape[:2]), *layer.shape[2:])
    if way.is_dense:
        return BYTES * prod(shape)
    return BYTES * sum(prod(one) for one in resolve_any(way.form, shape).shapes_at(shape, way.ranks))


def _values(shape: KernelShape, pixels: Pixels, way: Way) -> list[int]:
    """Numbers in the input, in what each factor puts out, the last being the output."""
    found = [shape[1] * pixels.in_h * pixels.in_w]
    if way.is_dense:
        return [*found, shape[0] * pixels.out_h * pixels.out_w]
    form = resolve_any(way.form, shape)
    between = zip(form.shapes_at(shape, way.ranks), form.outputs(pixels), strict=True)
    return [*found, *(factor[0] * height * width for factor, (height, width) in between)]


def _bytes(value: ir.Value | None) -> int:
    """0 for a weight, and for a value whose rank is unknown."""
    known = sizes(value)
    if value is None or value.const_value is not None or not known:
        return 0
    return BYTES * prod(size or 1 for size in known)
