"""int8 candidates of the latency table: a layer as static quantisation writes it, between the neighbours it would have.

As in `candidates`, between two depthwise 1×1 convolutions, which are int8 where the layers around it would be: the data
stays in int8 then, in the layout of int8 kernels. Where a neighbour is float the layer pays for the way in or out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import numpy as np
import onnx
import onnx_ir as ir

from ..runtime.latency import Contest, Stopwatch, key_of
from .candidates import DENSE, Graph, Place, frames_of, model_of, place_of
from .layers import Layer
from .reporting import Report, silent

COMPUTING = ("Conv", "Gemm", "MatMul", "Add")  # what is computed in int8
_VANISHING = ("Relu", "Clip")  # in the range of the layer before them
_SCALE, _ZERO = np.float32(0.02), np.uint8(128)  # of activations; times do not depend on them
_WEIGHT, _STEP = np.int8(1), np.float32(0.01)


@dataclass(frozen=True)
class Sides:
    """Whether the data is int8 before the layer, and whether it is after it."""

    before: bool
    after: bool


ALL_SIDES = tuple(Sides(before, after) for before in (False, True) for after in (False, True))


@dataclass(frozen=True)
class Around:
    """The int8 nodes around one: what made its inputs and what reads its output, by name; None for anything else."""

    sources: tuple[str | None, ...]
    readers: tuple[str | None, ...]

    def sides(self, floats: Collection[str]) -> Sides:
        """With these nodes in float."""
        before, *after = (name is not None and name not in floats for name in (self.sources[0], *self.readers))
        return Sides(before, bool(after) and all(after))


@dataclass(frozen=True)
class Times:
    """Seconds of a layer without what is around it: as it is, and as int8 between such neighbours."""

    float_s: float
    int8_s: Mapping[Sides, float]


def surroundings(proto: onnx.ModelProto) -> dict[str, Around]:
    """Of every int8 node of a quantised graph, by name."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def is_int8(node: onnx.NodeProto | None) -> bool:
        if node is None or node.op_type not in COMPUTING:
            return False
        sources = [makers.get(name) for name in node.input[:2]]
        return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in sources)

    def named(node: onnx.NodeProto | None) -> str | None:
        return node.name if node is not None and is_int8(node) else None

    def source(name: str) -> onnx.NodeProto | None:
        """What made a value, before it was quantised."""
        before = makers.get(makers[name].input[0])
        return None if before is None else makers.get(before.input[0])

    def ends(name: str) -> list[onnx.NodeProto]:
        """What reads a value, once it is quantised."""
        found = []
        for reader in readers.get(name, []):
            on_the_way = reader.op_type in ("QuantizeLinear", "DequantizeLinear")
            found += ends(reader.output[0]) if on_the_way else [reader]
        return found

    return {
        node.name: Around(
            tuple(named(source(name)) for name in node.input[: 2 if node.op_type == "Add" else 1]),
            tuple(named(end) for end in ends(node.output[0])),
        )
        for node in proto.graph.node
        if is_int8(node)
    }


def timed_layers(layers: Sequence[Layer], watch: Stopwatch, report: Report = silent) -> dict[str, Times]:
    """The times of each layer, from the latency table, which gets what it lacks."""
    places = {layer.name: place_of(layer) for layer in layers}
    distinct = list(dict.fromkeys(places.values()))
    watch.fill(
        [Contest(model_of(place, DENSE), _models(place)) for place in distinct],
        lambda done, total: report("timing int8 layers", done, total),
    )
    known = {place: _times(place, watch) for place in distinct}
    return {name: known[place] for name, place in places.items()}


def _models(place: Place) -> list[bytes]:
    int8 = [model for sides in ALL_SIDES for model in int8_models_of(place, sides)]
    return list(dict.fromkeys([*frames_of(place), *int8]))


def _times(place: Place, watch: Stopwatch) -> Times:
    table = watch.table.known(model_of(place, DENSE))

    def own(ratio: float, frames: Sequence[bytes]) -> float:
        """Seconds of what stands between the neighbours."""
        around = fmean(table[key_of(frame)].ratio for frame in frames)
        return max(ratio - around, 1e-6) * table[key_of(frames[0])].reference_s

    int8 = {}
    for sides in ALL_SIDES:
        layer, *frames = int8_models_of(place, sides)
        int8[sides] = own(table[key_of(layer)].ratio, frames)
    return Times(own(1.0, frames_of(place)), int8)


def with_additions(floats: Collection[str], around: Mapping[str, Around]) -> set[str]:
    """With the Adds whose branches are all float then."""
    found = set(floats)
    for name, one in around.items():
        if len(one.sources) > 1 and all(source is None or source in found for source in one.sources):
            found.add(name)
    return found


def fastest_floats(times: Mapping[str, Times], around: Mapping[str, Around], kept: Collection[str]) -> set[str]:
    """The layers that had better stay float, beside those that are `kept` so: from all in int8, the run of layers that
    saves most is changed, and again, until none saves any.
    """
    names = [name for name in times if name in around and name not in kept]

    def total(floats: set[str]) -> float:
        spread = with_additions(floats, around)
        return sum(
            one.float_s if name in floats or name not in around else one.int8_s[around[name].sides(spread)]
            for name, one in times.items()
        )

    floats = set(kept)
    least = total(floats)
    while True:
        runs = [set(names[first:last]) for first in range(len(names)) for last in range(first + 1, len(names) + 1)]
        best = min((floats ^ run for run in runs), key=total, default=floats)
        if total(best) >= least:
            return floats - set(kept)
        floats, least = best, total(best)


@cache
def int8_models_of(place: Place, around: Sides) -> tuple[bytes, ...]:
    """The layer between its neighbours, then what is around it without it: on its input's side, on its output's."""
    o, i, *_ = place.shape
    graph = _Int8Graph(place, len(place.strides))
    if place.operator != "Conv":
        x = graph.input([place.pixels.in_h, i] if place.operator == "MatMul" else [1, i])
        return graph.finish(graph.layer(graph.levels(x))), *frames_of(place)
    sizes = list(place.pixels[: graph.axes]), list(place.pixels[2 : 2 + graph.axes])
    x = graph.beside(graph.entry([1, i, *sizes[0]], int8=around.before), i, int8=around.before)
    x = graph.layer(x if around.before else graph.levels(x))
    models = [graph.finish(graph.beside(x, o, int8=around.after))]
    for count, side, int8 in ((i, sizes[0], around.before), (o, sizes[1], around.after)):
        graph = _Int8Graph(place, graph.axes)
        x = graph.beside(graph.entry([1, count, *side], int8=int8), count, int8=int8)
        models.append(graph.finish(graph.beside(x, count, int8=int8)))
    return tuple(models)


class _Int8Graph(Graph):
    """A graph of one path with values held in int8."""

    def entry(self, shape: list[int], *, int8: bool) -> ir.Value:
        """The graph's input."""
        return self.levels(self.input(shape)) if int8 else self.input(shape)

    def levels(self, x: ir.Value) -> ir.Value:
        """Quantised and back."""
        scale, zero = (self.constant(np.array(number)) for number in (_SCALE, _ZERO))
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [x, scale, zero]), scale, zero])

    def beside(self, x: ir.Value, channels: int, *, int8: bool) -> ir.Value:
        """A depthwise 1×1 convolution."""
        if not int8:
            return self.neighbour(x, channels)
        kernel = self._kernel([channels, 1, *[1] * self.axes], 0)
        return self.levels(self.node("Conv", [x, kernel], group=channels))

    def layer(self, x: ir.Value) -> ir.Value:
        """The layer itself, of values in int8; its activation, where that does not vanish, is float."""
        place, operator = self.place, self.place.operator
        o, i, *taps = place.shape
        shape = [o, i, *taps[: self.axes]] if operator == "Conv" else [i, o] if operator == "MatMul" else [o, i]
        inputs = [x, self._kernel(shape, int(operator == "MatMul"))]
        if place.biased and operator != "MatMul":
            inputs.append(self._stored(np.int32(1), _SCALE * _STEP, [o], 0))
        if operator == "Conv":
            geometry = {"strides": place.strides, "dilations": place.dilations, "pads": place.pads}
            y = self.levels(self.node("Conv", inputs, **geometry))
        else:
            y = self.levels(self.node(operator, inputs, **({"transB": 1} if operator == "Gemm" else {})))
        return y if place.activation in (None, *_VANISHING) else self.levels(self.activation(y))

    def _kernel(self, shape: list[int], axis: int) -> ir.Value:
        return self._stored(_WEIGHT, _STEP, shape, axis)

    def _stored(self, number: np.generic, step: np.float32, shape: list[int], axis: int) -> ir.Value:
        """Whole numbers with a scale a channel."""
        scales, zeros = self.filled(step, shape[axis]), self.filled(type(number)(0), shape[axis])
        return self.node("DequantizeLinear", [self.filled(number, *shape), scales, zeros], axis=axis)
