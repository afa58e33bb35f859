"""Small ONNX networks, built without torch: a zoo of topologies with channels that are truly dead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rankfold.export.parity import Original, exact_check, original

from .nets import DEAD, Net


@dataclass(frozen=True)
class Case:
    """A model, how many channels each group keeps at tile 1, and words its reasons must contain."""

    model: onnx.ModelProto
    kept: dict[str, int]
    reasons: dict[str, str] = field(default_factory=dict)


def chain() -> Case:
    net = Net()
    x = net.block("input", "a", 8, dead=DEAD)
    x = net.block(x, "b", 6, dead=(0,))
    return Case(net.model(net.head(x)), {"a": 6, "b": 5, "fc": 5}, {"fc": "graph output"})


def separable() -> Case:
    """The DecomposeMe pattern: k×1, 1×k, BatchNorm and ReLU after each, pooling between."""
    net = Net(channels=1, spatial=(16, 16))
    x = net.block(net.block("input", "a", 8, (5, 1), dead=DEAD), "b", 8, (1, 5))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.block(net.block(x, "c", 12, (3, 1)), "d", 12, (1, 3), dead=(0, 11))
    return Case(net.model(net.head(x)), {"a": 6, "b": 8, "c": 12, "d": 10, "fc": 5})


def residual() -> Case:
    """Channel 1 is dead in the whole stream, 4 only on the way in; 0 is dead inside the block."""
    net = Net()
    stem = net.block("input", "stem", 8, dead=DEAD)
    inner = net.block(stem, "one", 8, dead=(0,))
    branch = net.bn(net.conv(inner, "two", 8, bias=False), "bn_two", dead=(1,))
    x = net.op("Relu", net.op("Add", stem, branch))
    x = net.block(x, "three", 6)
    return Case(net.model(net.head(x)), {"stem": 7, "one": 7, "three": 6, "fc": 5})


def constant_without_padding() -> Case:
    """Dead channels that carry 0.5 into a 1×1 convolution: its bias takes them over."""
    net = Net()
    x = net.op("Relu", net.bn(net.conv("input", "a", 8), "bn", dead=DEAD, beta_of_dead=0.5))
    x = net.conv(x, "b", 6, (1, 1), bias=False)
    return Case(net.model(net.head(net.op("Sigmoid", x))), {"a": 6, "b": 6, "fc": 5})


def constant_before_padding() -> Case:
    """The same in front of zero padding: the border would differ, so they stay, with the reason."""
    net = Net()
    x = net.op("Relu", net.bn(net.conv("input", "a", 8), "bn", dead=DEAD, beta_of_dead=0.5))
    x = net.conv(x, "b", 6)
    return Case(net.model(net.head(x)), {"a": 8, "b": 6, "fc": 5}, {"a": "2 kept: a constant 0.5 in front of"})


def sigmoid_of_dead() -> Case:
    """A dead filter leaves σ(0) = 0.5 behind, which the average pool hands on to the classifier."""
    net = Net()
    x = net.op("Sigmoid", net.conv("input", "a", 8, dead=DEAD))
    return Case(net.model(net.head(x)), {"a": 6, "fc": 5})


def border_of_a_constant() -> Case:
    """Filter 0 sees constants only, but also the zeros around them: it is not constant."""
    net = Net()
    x = net.op("Sigmoid", net.conv("input", "a", 8, dead=DEAD))
    x = net.conv(x, "b", 6, bias=False)
    net.weights["b.weight"][0, [0, 2, 3, 5, 6, 7]] = 0
    return Case(net.model(net.head(x)), {"a": 8, "b": 6, "fc": 5}, {"a": "2 kept: a constant 0.5 in front of"})


def average_of_padding() -> Case:
    """An average that counts padded zeros turns the constant 0.5 into a border; zeros it leaves alone."""
    net = Net(spatial=(6, 5))
    half = net.op("Sigmoid", net.conv("input", "a", 8, dead=DEAD))
    zero = net.op("Relu", net.conv("input", "b", 8, dead=DEAD))
    pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    half, zero = (net.op("AveragePool", x, **pool) for x in (half, zero))
    x = net.op("Add", net.conv(half, "c", 6, (1, 1)), net.conv(zero, "d", 6, (1, 1)))
    return Case(net.model(net.head(x)), {"a": 8, "b": 6, "c": 6, "fc": 5})


def shared_bias() -> Case:
    """Simplifiers merge equal vectors; the two layers have nothing to do with each other."""
    net = Net()
    x = net.op("Relu", net.conv("input", "a", 8, bias=False, dead=DEAD))
    x = net.op("Relu", net.conv(x, "b", 8, bias=False))
    shared = net.weight("zeros", np.zeros(8))
    for node in net.nodes[::2]:
        node.input.append(shared)
    return Case(net.model(net.head(x)), {"a": 6, "b": 8, "fc": 5})


def all_dead() -> Case:
    net = Net()
    x = net.block("input", "a", 4, dead=range(4))
    x = net.op("Relu", net.conv(x, "b", 6))
    return Case(net.model(net.head(x)), {"a": 1, "b": 1, "fc": 5}, {"a": "one channel has to stay"})


def grouped() -> Case:
    """Each group of `b` loses one input; of its outputs only the first group has a dead one."""
    net = Net()
    x = net.block("input", "a", 8, dead=DEAD)
    x = net.op("Relu", net.conv(x, "b", 8, group=2, dead=(0,)))
    reasons = {"a": "2 dead channels folded", "b": "groups must stay equally wide"}
    return Case(net.model(net.head(x)), {"a": 6, "b": 8, "fc": 5}, reasons)


def depthwise() -> Case:
    net = Net()
    x = net.block("input", "a", 8, (1, 1), dead=DEAD)
    x = net.op("Clip", net.conv(x, "dw", 8, group=8, bias=False), net.weight("low", np.array(0.0)))
    return Case(net.model(net.head(net.conv(x, "b", 6, (1, 1)))), {"a": 6, "b": 6, "fc": 5})


def squeeze_excite() -> Case:
    net = Net()
    x = net.block("input", "a", 8, dead=DEAD)
    squeezed = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), "down", 4, (1, 1), dead=(2,)))
    gate = net.op("Sigmoid", net.conv(squeezed, "up", 8, (1, 1)))
    x = net.conv(net.op("Mul", x, gate), "b", 6)
    return Case(net.model(net.head(x)), {"a": 6, "down": 3, "b": 6, "fc": 5})


def flattened() -> Case:
    """Every channel owns a block of the classifier's columns."""
    net = Net(spatial=(6, 5))
    x = net.block("input", "a", 8, dead=DEAD)
    x = net.op("Reshape", x, net.weight("shape", np.array([0, -1])), channels=240)
    return Case(net.model(net.gemm(x, "fc", 240, 5)), {"a": 6, "fc": 5})


def gemms() -> Case:
    net = Net(channels=7, spatial=())
    x = net.op("Relu", net.gemm("input", "a", 7, 9, dead=DEAD))
    x = net.op("Relu", net.gemm(x, "b", 9, 8, dead=(0,), trans=0))
    return Case(net.model(net.gemm(x, "fc", 8, 5)), {"a": 7, "b": 7, "fc": 5})


def one_dimensional() -> Case:
    net = Net(spatial=(20,))
    x = net.block("input", "a", 8, (5,), dead=DEAD)
    x = net.op("AveragePool", x, kernel_shape=[3], strides=[2], pads=[1, 1])
    x = net.op("Relu", net.conv(x, "b", 6, (3,), pads=[2, 1], strides=[2]))
    x = net.op("Flatten", net.op("GlobalMaxPool", x))
    return Case(net.model(net.gemm(x, "fc", 6, 5)), {"a": 6, "b": 6, "fc": 5})


def pre_activation() -> Case:
    """BatchNorm that cannot be folded backwards stays, and loses its dead channels."""
    net = Net()
    stem = net.conv("input", "stem", 8)
    x = net.op("Relu", net.bn(stem, "bn", dead=DEAD))
    x = net.op("Add", net.conv(x, "a", 8), net.conv(stem, "b", 8, (1, 1)))
    return Case(net.model(net.head(x)), {"stem": 8, "a": 8, "fc": 5})


def not_understood() -> Case:
    net = Net()
    x = net.block("input", "a", 8, dead=DEAD)
    x = net.op("CumSum", x, net.weight("axis", np.array(1)))
    return Case(net.model(net.head(x)), {"a": 8, "fc": 5}, {"a": "(CumSum) is not understood"})


ZOO: tuple[Callable[[], Case], ...] = (
    chain,
    separable,
    residual,
    constant_without_padding,
    constant_before_padding,
    sigmoid_of_dead,
    border_of_a_constant,
    average_of_padding,
    shared_bias,
    all_dead,
    grouped,
    depthwise,
    squeeze_excite,
    flattened,
    gemms,
    one_dimensional,
    pre_activation,
    not_understood,
)


@pytest.fixture(params=ZOO, ids=lambda build: build.__name__)
def case(request) -> Case:
    return request.param()


@pytest.fixture
def chain_case() -> Case:
    return chain()


@pytest.fixture
def net() -> type[Net]:
    return Net


@pytest.fixture
def assert_exact():
    """Parity of a rewritten model at batch 1 and 3, and a proof that the inputs would show a difference."""

    def check(before: onnx.ModelProto, after: ir.Model) -> None:
        for batch in (1, 3):
            truth: Original = original(before.SerializeToString(), batch, seed=batch)
            verdict = exact_check(truth, ir.to_proto(after).SerializeToString(), "rewrite")
            assert verdict.passed, verdict
            assert max(np.ptp(output) for output in truth.outputs) > 0

    return check
