"""Networks that choosing is measured on, written without torch: published shapes, random weights with decaying spectra.

A kernel is U diag(k^−decay) Vᵀ as the channel form sees it, (i h w) × o: what trained networks have and white noise has
not, so that ranks matter. Nothing is learned from these weights but how a choice goes by kernels and by time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from .folding import Layers

DECAY = 0.5  # the published ResNet-20's channel matricisations fall with an exponent of this size
BEFORE_RELU, ALONE, BRANCH = 2.0, 1.0, 0.2  # variance of an output / mean square of an input (He et al., ICCV 2015)
_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def decaying(generator: np.random.Generator, shape: tuple[int, ...], gain: float) -> NDArray[np.float64]:
    """A kernel of `shape`, its k-th singular value in proportion to k^−DECAY, with `gain` times the mean square of its
    inputs as its outputs' variance, on average.
    """
    out, rows = shape[0], int(np.prod(shape[1:]))
    left, right = (_orthogonal(generator, size, min(rows, out)) for size in (rows, out))
    values = np.arange(1.0, 1.0 + min(rows, out)) ** -DECAY
    values *= np.sqrt(gain * out / np.square(values).sum())
    return ((right * values) @ left.T).reshape(shape)


def _orthogonal(generator: np.random.Generator, rows: int, columns: int) -> NDArray[np.float64]:
    return np.linalg.qr(generator.standard_normal((rows, columns)))[0]


class Shaped(Layers):
    """Nodes and weights of a network of convolutions, each with its BatchNormalization."""

    def conv(
        self, x: str, name: str, shape: tuple[int, ...], stride: int = 1, groups: int = 1, gain: float = BEFORE_RELU
    ) -> str:
        """Convolution and BatchNormalization."""
        weight = self.constant(f"{name}.weight", decaying(self.generator, shape, gain))
        pads = [taps // 2 for taps in shape[2:]] * 2
        y = self.op("Conv", x, weight, strides=[stride] * 2, pads=pads, group=groups)
        parts = {"weight": np.ones, "bias": np.zeros, "mean": np.zeros, "var": np.ones}
        return self.op(
            "BatchNormalization", y, *(self.constant(f"{name}.bn.{key}", of(shape[0])) for key, of in parts.items())
        )

    def relu(self, x: str) -> str:
        """ReLU."""
        return self.op("Relu", x)

    def relu6(self, x: str) -> str:
        """ReLU cut off at 6."""
        return self.op("Clip", x, *(self.constant(f"{x}.{bound}", np.array(bound)) for bound in (0, 6)))

    def classes(self, x: str, channels: int, count: int) -> str:
        """Mean over the pixels, then one score a class."""
        weight = self.constant("fc.weight", decaying(self.generator, (count, channels), ALONE))
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.op("Gemm", pooled, weight, self.constant("fc.bias", np.zeros(count)), transB=1)


def resnet18(size: int = 224) -> onnx.ModelProto:
    """He et al., CVPR 2016: two 3×3 convolutions a block."""
    return _resnet((2, 2, 2, 2), 1, _basic, size)


def resnet50(size: int = 224) -> onnx.ModelProto:
    """He et al., CVPR 2016: bottlenecks, their stride in the 3×3 convolution as in all published weights since 2017."""
    return _resnet((3, 4, 6, 3), 4, _bottleneck, size)


def _resnet(depths: tuple[int, ...], widening: int, branch: Callable[..., str], size: int) -> onnx.ModelProto:
    net = Shaped()
    x = net.relu(net.conv("input", "stem", (64, 3, 7, 7), 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    before = 64
    for stage, blocks in enumerate(depths):
        inner = 64 << stage
        out = inner * widening
        for block in range(blocks):
            name, stride = f"stage{stage}.{block}", 2 if stage and not block else 1
            y = branch(net, x, name, before, inner, stride)
            short = x
            if stride > 1 or before != out:
                short = net.conv(x, f"{name}.short", (out, before, 1, 1), stride, gain=ALONE)
            x, before = net.relu(net.op("Add", y, short)), out
    return net.model(net.classes(x, before, 1000), size)


def _basic(net: Shaped, x: str, name: str, before: int, inner: int, stride: int) -> str:
    y = net.relu(net.conv(x, f"{name}.one", (inner, before, 3, 3), stride))
    return net.conv(y, f"{name}.two", (inner, inner, 3, 3), gain=BRANCH)


def _bottleneck(net: Shaped, x: str, name: str, before: int, inner: int, stride: int) -> str:
    y = net.relu(net.conv(x, f"{name}.one", (inner, before, 1, 1)))
    y = net.relu(net.conv(y, f"{name}.two", (inner, inner, 3, 3), stride))
    return net.conv(y, f"{name}.three", (4 * inner, inner, 1, 1), gain=BRANCH)


def mobilenetv2(size: int = 224) -> onnx.ModelProto:
    """Sandler et al., CVPR 2018: a depthwise 3×3 convolution between two 1×1, added to where sizes agree."""
    net = Shaped()
    x, before = net.relu6(net.conv("input", "stem", (32, 3, 3, 3), 2)), 32
    for stage, (widening, out, blocks, first) in enumerate(_INVERTED):
        for block in range(blocks):
            name, stride, inner = f"stage{stage}.{block}", 1 if block else first, before * widening
            y = x
            if widening > 1:
                y = net.relu6(net.conv(x, f"{name}.wide", (inner, before, 1, 1)))
            y = net.relu6(net.conv(y, f"{name}.depthwise", (inner, 1, 3, 3), stride, groups=inner))
            added = stride == 1 and before == out
            y = net.conv(y, f"{name}.narrow", (out, inner, 1, 1), gain=BRANCH if added else ALONE)
            x, before = net.op("Add", x, y) if added else y, out
    x = net.relu6(net.conv(x, "last", (1280, before, 1, 1)))
    return net.model(net.classes(x, 1280, 1000), size)


def dec3(size: int = 32) -> onnx.ModelProto:
    """Alvarez & Petersson, arXiv 1606.05426: k×1 and 1×k convolutions in turn (`train.models.decomposeme`)."""
    net = Shaped()
    x, before = "input", 3
    for number, (out, taps) in enumerate(((64, 5), (128, 5), (256, 3)), 1):
        x = net.relu(net.conv(x, f"conv{number}v", (out, before, taps, 1)))
        x = net.relu(net.conv(x, f"conv{number}h", (out, out, 1, taps)))
        if number < 3:
            x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        before = out
    return net.model(net.classes(x, before, 36), size)


SHAPES: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "dec3": dec3,
    "resnet18": resnet18,
    "mobilenetv2": mobilenetv2,
    "resnet50": resnet50,
}
