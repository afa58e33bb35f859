"""The small models that the latency table times: a layer as it is, as it could be, and what stands around it.

A layer is timed between two depthwise 1×1 convolutions, so that its input comes in the layout and from the caches that
the layer before it would leave, and its output goes where the next one would take it; with the activation that follows
it in the network, which the runtime fuses. The same without the layer is taken off. Weights are made by the runtime
from one number each: the time does not depend on them, and the files stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir

from .forms import KernelShape, Pixels, outputs_after, resolve_any
from .graphs import serialize, sizes
from .layers import Layer
from .tile import up_to_tile

OPSET = 13  # the first in which what is used here has the form it still has
_WEIGHT = 0.01  # of every weight; no product of a few of them is denormal
FUSED = ("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid")  # activations that the runtime fuses


@dataclass(frozen=True)
class Place:
    """Where a layer stands: all of it that its time depends on. Layers alike are timed once."""

    operator: str
    shape: KernelShape
    pixels: Pixels
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    activation: str | None
    biased: bool


@dataclass(frozen=True)
class Way:
    """A way to write a layer: dense (no ranks), or a form with its ranks; with `channels` (out, in) where they are
    fewer.
    """

    form: str
    ranks: tuple[int, ...] = ()
    channels: tuple[int, int] | None = None

    @property
    def is_dense(self) -> bool:
        """Whether the layer stays one."""
        return self.form == "dense"


DENSE = Way("dense")


def place_of(layer: Layer) -> Place:
    """The place of a layer that is not closed."""
    assert layer.pixels is not None, f"the sizes of layer {layer.name!r} are unknown"
    node = layer.node
    axes = len(sizes(node.inputs[1])) - 2 if node.op_type == "Conv" else 0
    readers = [use.node.op_type for use in node.outputs[0].uses()]
    after = readers[0] if len(readers) == 1 else None
    return Place(
        operator=node.op_type,
        shape=layer.shape,
        pixels=layer.pixels,
        strides=tuple(node.attributes.get_ints("strides", [1] * axes)),
        dilations=tuple(node.attributes.get_ints("dilations", [1] * axes)),
        pads=_pads(layer, axes),
        activation=after if after in FUSED else None,
        biased=len(node.inputs) > 2 and node.inputs[2] is not None,
    )


def _pads(layer: Layer, axes: int) -> tuple[int, ...]:
    """Explicit pads; those of auto_pad, near enough, where it is used."""
    node = layer.node
    if node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID"):
        return tuple(node.attributes.get_ints("pads", [0] * 2 * axes))
    half = [(size - 1) // 2 for size in layer.shape[2 : 2 + axes]]
    return (*half, *half)


def narrowed(place: Place, channels: tuple[int, int] | None) -> Place:
    """The place with so many channels out and in."""
    return place if channels is None else replace(place, shape=(*channels, *place.shape[2:]))


@cache
def model_of(place: Place, way: Way) -> bytes:
    """The layer written in that way, between its neighbours."""
    place = narrowed(place, way.channels)
    graph = Graph(place, len(place.strides))
    o, i, *_ = place.shape
    if place.operator != "Conv":
        x = graph.input([place.pixels.in_h, i] if place.operator == "MatMul" else [1, i])
        for shape, last in _factors(place, way):
            x = graph.product(x, shape, biased=last and place.biased)
        return graph.finish(x)
    x = graph.neighbour(graph.input([1, i, *_spatial(place.pixels, graph.axes, 0)]), i)
    for shape, walked, last in _walked_factors(place, way):
        x = graph.convolution(x, shape, walked, biased=last and place.biased)
    return graph.finish(graph.neighbour(graph.activation(x), o))


@cache
def frames_of(place: Place, channels: tuple[int, int] | None = None) -> tuple[bytes, ...]:
    """What is around a layer, without it: on its input's side and on its output's; their mean is taken off."""
    place = narrowed(place, channels)
    o, i, *_ = place.shape
    if place.operator != "Conv":
        graph = Graph(place, 0)
        return (graph.finish(graph.node("Relu", [graph.input([1, i])])),)
    found = []
    for count, side in ((i, 0), (o, 2)):
        graph = Graph(place, len(place.strides))
        x = graph.neighbour(graph.input([1, count, *_spatial(place.pixels, graph.axes, side)]), count)
        found.append(graph.finish(graph.neighbour(x, count)))
    return tuple(dict.fromkeys(found))


def _spatial(pixels: Pixels, axes: int, side: int) -> list[int]:
    return list(pixels[side : side + axes])


def padded_work(place: Place, way: Way, tile: int) -> tuple[float, float, float, float]:
    """What a way's time should go by: 1, MACs in 1×1 kernels and in larger ones with channels rounded up to the tile,
    numbers written.
    """
    place = narrowed(place, way.channels)
    small = large = written = 0.0
    factors = _walked_factors(place, way)
    outputs = outputs_after([walked for _, walked, _ in factors], place.pixels)
    for (shape, *_), (height, width) in zip(factors, outputs, strict=True):
        out, into = (up_to_tile(count, tile) for count in shape[:2])
        macs = float(out * into * shape[2] * shape[3] * height * width)
        small, large = (small + macs, large) if shape[2:] == (1, 1) else (small, large + macs)
        written += out * height * width
    return 1.0, small, large, written


def _factors(place: Place, way: Way) -> list[tuple[KernelShape, bool]]:
    if way.is_dense:
        return [(place.shape, True)]
    form = resolve_any(way.form, place.shape)
    shapes = form.shapes_at(place.shape, way.ranks)
    return [(shape, index == len(shapes) - 1) for index, shape in enumerate(shapes)]


def _walked_factors(place: Place, way: Way) -> list[tuple[KernelShape, frozenset[str], bool]]:
    walked: Sequence[frozenset[str]] = (frozenset("hw"),)
    if not way.is_dense:
        walked = resolve_any(way.form, place.shape).walked
    return [(shape, axes, last) for (shape, last), axes in zip(_factors(place, way), walked, strict=True)]


class Graph:
    """A graph of one path, its names the same for the same path."""

    def __init__(self, place: Place, axes: int) -> None:
        self.axes, self.place = axes, place
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._constants: list[ir.Value] = []

    def input(self, shape: Sequence[int]) -> ir.Value:
        """The graph's input."""
        value = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        self._inputs.append(value)
        return value

    def node(self, operator: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        """The output of one more node."""
        made = ir.node(operator, list(inputs), attributes, name=f"n{len(self._nodes)}")
        made.outputs[0].name = f"v{len(self._nodes)}"
        self._nodes.append(made)
        return made.outputs[0]

    def weights(self, *shape: int) -> ir.Value:
        """An array that the runtime fills when it loads the model."""
        return self.filled(np.float32(_WEIGHT), *shape)

    def filled(self, number: np.generic, *shape: int) -> ir.Value:
        """An array of one number; a scalar without a shape."""
        sizes = self.constant(np.array(shape, np.int64))
        return self.node("ConstantOfShape", [sizes], value=ir.tensor(np.array([number])))

    def constant(self, numbers: np.ndarray) -> ir.Value:
        """A stored array."""
        value = ir.Value(name=f"s{len(self._constants)}", const_value=ir.tensor(numbers))
        self._constants.append(value)
        return value

    def neighbour(self, x: ir.Value, channels: int) -> ir.Value:
        """A depthwise 1×1 convolution."""
        return self.node("Conv", [x, self.weights(channels, 1, *[1] * self.axes)], group=channels)

    def convolution(self, x: ir.Value, shape: KernelShape, walked: frozenset[str], *, biased: bool) -> ir.Value:
        """A factor with the layer's stride, dilation and padding along the axes it walks."""
        mine = [axis in walked for axis in "hw"[: self.axes]]
        inputs = [x, self.weights(*shape[: 2 + self.axes]), *([self.weights(shape[0])] if biased else [])]

        def own(values: Sequence[int], other: int) -> list[int]:
            return [value if has else other for value, has in zip(values, mine * 2, strict=False)]

        place = self.place
        return self.node(
            "Conv", inputs, strides=own(place.strides, 1), dilations=own(place.dilations, 1), pads=own(place.pads, 0)
        )

    def product(self, x: ir.Value, shape: KernelShape, *, biased: bool) -> ir.Value:
        """A matrix product as the layer has it."""
        o, i, *_ = shape
        if self.place.operator == "MatMul":
            return self.node("MatMul", [x, self.weights(i, o)])
        return self.node("Gemm", [x, self.weights(o, i), *([self.weights(o)] if biased else [])], transB=1)

    def activation(self, x: ir.Value) -> ir.Value:
        """The layer's, where the runtime would fuse it."""
        name = self.place.activation
        if name == "Clip":
            return self.node("Clip", [x, *(self.filled(np.float32(number)) for number in (0.0, 6.0))])
        return x if name is None else self.node(name, [x])

    def finish(self, y: ir.Value) -> bytes:
        """The model as bytes."""
        y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
        y.shape = ir.Shape([None] * len(self._inputs[0].shape or ()))
        graph = ir.Graph(
            self._inputs,
            [y],
            nodes=self._nodes,
            initializers=self._constants,
            opset_imports={"": OPSET},
            name="candidate",
        )
        return serialize(ir.Model(graph, ir_version=8))
