"""What a layer sees and puts out over calibration data, as second moments: one layer's at a time in memory.

The layer's input comes from the compressed network so far, its wanted output from the original (design §3:
sequential). Rows are a seeded sample of output positions; sums are float64.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from .aware import Moments
from .calibration import Feed, Samples
from .graphs import sizes
from .layers import Layer
from .reference import padding_of, reach_of, windows_of
from .sessions import InferenceSession, session

Array = NDArray[np.float64]
BATCH = 32
ROWS_PER_INPUT = 48  # sampled output positions for each row of the covariance: its error is then a few per cent
_LEAST_ROWS = 32768
_SEED = 0


class Values:
    """Runs a graph as far as one of its values."""

    def __init__(self, proto: onnx.ModelProto, value: str) -> None:
        self._value = value
        self._is_input = value in {entry.name for entry in proto.graph.input}
        self._session: InferenceSession | None = None
        if not self._is_input:
            self._session = session(cut(proto, value).SerializeToString(), f"the model up to '{value}'")
            self._names = {entry.name for entry in self._session.get_inputs()}

    def __call__(self, feed: Feed) -> NDArray:
        """The value for one batch of inputs."""
        if self._session is None:
            return feed[self._value]
        outputs = self._session.run(None, {name: array for name, array in feed.items() if name in self._names})
        return np.asarray(outputs[0])


def cut(proto: onnx.ModelProto, value: str) -> onnx.ModelProto:
    """The part of a graph that `value` needs, with `value` as its only output."""
    needed, nodes = {value}, []
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            needed.update(_captured(node))
    part = onnx.ModelProto()
    part.CopyFrom(onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import))
    part.functions.extend(proto.functions)
    part.graph.name = proto.graph.name or "part"
    part.graph.node.extend(reversed(nodes))
    part.graph.input.extend(entry for entry in proto.graph.input if entry.name in needed)
    part.graph.initializer.extend(entry for entry in proto.graph.initializer if entry.name in needed)
    part.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    return part


def _captured(node: onnx.NodeProto) -> list[str]:
    """Names that the node's subgraphs read; those of their own values do no harm."""
    graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [name for graph in graphs for inner in graph.node for name in (*inner.input, *_captured(inner))]


def collect(layer: Layer, current: onnx.ModelProto, original: onnx.ModelProto, samples: Samples) -> Moments:
    """The layer's moments: inputs in `current`, outputs in `original`."""
    node = layer.node
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None, f"layer {layer.name!r} has no input"
    seen, wanted = Values(current, source.name or ""), Values(original, output.name or "")
    generator = np.random.default_rng(_SEED)
    width = int(np.prod(layer.kernel.shape[1:]))
    share = _share(layer, samples.count, width)
    sums = _Sums(width, layer.kernel.shape[0])
    for feed, _ in samples.batches(BATCH):
        rows, kept = patches(seen(feed), layer, generator, share)
        sums.add(rows, _positions(wanted(feed), layer)[kept])
    return sums.moments()


def patches(
    inputs: NDArray, layer: Layer, generator: np.random.Generator, share: float = 1.0
) -> tuple[Array, NDArray[np.intp]]:
    """What each output position sees, positions × (i h w), and which positions (all images in a row) were taken."""
    if layer.node.op_type in ("Gemm", "MatMul"):
        flat = inputs.reshape(-1, inputs.shape[-1])
        kept = _sampled(len(flat), share, generator)
        return flat[kept].astype(np.float64), kept
    spatial = inputs.ndim - 2
    attributes, taps = layer.node.attributes, sizes(layer.node.inputs[1])[2:]
    kernel = [int(size or 1) for size in taps]
    strides = attributes.get_ints("strides", [1] * spatial)
    dilations = attributes.get_ints("dilations", [1] * spatial)
    auto_pad = attributes.get_string("auto_pad", "NOTSET")
    padding = padding_of(
        inputs.shape[2:], reach_of(kernel, dilations), strides, attributes.get_ints("pads", [0] * 2 * spatial), auto_pad
    )
    windows = windows_of(np.pad(inputs, [(0, 0), (0, 0), *padding]), kernel, strides, dilations)
    positions = np.moveaxis(windows, 1, 1 + spatial)  # n × out… × c × kernel…
    count = int(np.prod(positions.shape[: 1 + spatial]))
    kept = _sampled(count, share, generator)
    chosen = positions[np.unravel_index(kept, positions.shape[: 1 + spatial])]
    return chosen.reshape(len(kept), -1).astype(np.float64), kept


def _positions(outputs: NDArray, layer: Layer) -> Array:
    if layer.node.op_type in ("Gemm", "MatMul"):
        return outputs.reshape(-1, outputs.shape[-1]).astype(np.float64)
    return np.moveaxis(outputs, 1, -1).reshape(-1, outputs.shape[1]).astype(np.float64)


def _share(layer: Layer, count: int, width: int) -> float:
    pixels = 1 if layer.pixels is None else layer.pixels.out_h * layer.pixels.out_w
    return min(1.0, max(_LEAST_ROWS, ROWS_PER_INPUT * width) / (pixels * count))


def _sampled(count: int, share: float, generator: np.random.Generator) -> NDArray[np.intp]:
    if share >= 1:
        return np.arange(count)
    return np.sort(generator.choice(count, max(1, round(share * count)), replace=False))


class _Sums:
    """Running sums, shifted by the first batch's means so that no digits are lost."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self._count = 0
        self._shift: tuple[Array, Array] | None = None
        self._x, self._y = np.zeros(inputs), np.zeros(outputs)
        self._xx, self._yx, self._yy = np.zeros((inputs, inputs)), np.zeros((outputs, inputs)), 0.0

    def add(self, x: Array, y: Array) -> None:
        if self._shift is None:
            self._shift = x.mean(axis=0), y.mean(axis=0)
        x, y = x - self._shift[0], y - self._shift[1]
        self._count += len(x)
        self._x += x.sum(axis=0)
        self._y += y.sum(axis=0)
        self._xx += x.T @ x
        self._yx += y.T @ x
        self._yy += float(np.vdot(y, y))

    def moments(self) -> Moments:
        assert self._shift is not None, "no calibration data was seen"
        n, x, y = self._count, self._x / self._count, self._y / self._count
        return Moments(
            covariance=self._xx / n - np.outer(x, x),
            cross=self._yx / n - np.outer(y, x),
            power=self._yy / n - float(np.vdot(y, y)),
            mean_in=self._shift[0] + x,
            mean_out=self._shift[1] + y,
        )
