"""What a layer sees and puts out over calibration data, as second moments: one layer's at a time in memory.

The layer's input comes from the compressed network so far, its wanted output from the original (design §3:
sequential). Rows are a seeded sample of output positions; sums are float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .aware import Moments
from .graphs import sizes
from .layers import Layer
from .reference import padding_of, reach_of, windows_of
from .walk import Walk

Array = NDArray[np.float64]
ROWS_PER_INPUT = 48  # sampled output positions for each row of the covariance: its error is then a few per cent
_LEAST_ROWS = 32768
_SEED = 0


def collect(layer: Layer, current: Walk, original: Walk, kept: Sequence[int] | None = None) -> Moments:
    """The layer's moments: inputs in `current`, outputs in `original`; both walks stand before the layer then.

    `kept` are the original's output channels that the layer still has, where it is narrower.
    """
    node = layer.node
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None, f"layer {layer.name!r} has no input"
    seen = current.move_to(source.name or "")
    if original is not current:
        original.move_to(source.name or "")
    generator = np.random.default_rng(_SEED)
    width = int(np.prod(layer.kernel.shape[1:]))
    share = _share(layer, current.samples.count, width)
    sums = _Sums(width, layer.kernel.shape[0])
    for inputs, (outputs,) in zip(seen, original.peek([output.name or ""]), strict=True):
        rows, taken = patches(inputs, layer, generator, share)
        wanted = _positions(outputs, layer)[taken]
        sums.add(rows, wanted if kept is None else wanted[:, kept])
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
