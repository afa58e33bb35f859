"""Scales move from one layer to the next, exactly; and only where nothing between them minds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from rankfold.export.graphs import array, refresh_shapes, serialize
from rankfold.export.layers import name_layers
from rankfold.export.parity import exact_check, original
from rankfold.export.passes.equalize import equalize, pairs_of

from ..nets import Net


def convolutions(net: Net) -> str:
    x = net.op("Relu", net.conv("input", "a", 8))
    return net.conv(net.conv(x, "b", 6, (1, 1), bias=False), "c", 8)


def products(net: Net) -> str:
    x = net.op("Relu", net.gemm("input", "a", 3, 8))
    return net.gemm(net.gemm(x, "b", 8, 6, trans=0), "c", 6, 5)


def matrices(net: Net) -> str:
    """A bias is added between the last two."""
    rng = np.random.default_rng(0)
    a, b = (net.weight(f"{name}.weight", rng.normal(size=size)) for name, size in (("a", (3, 8)), ("b", (8, 6))))
    x = net.op("MatMul", net.op("LeakyRelu", net.op("MatMul", "input", a)), b)
    return net.matmul(net.op("Add", x, net.weight("shift", np.ones(6))), "c", 6, 5)


def clipped(net: Net) -> str:
    return net.conv(net.op("Clip", net.conv("input", "a", 8), net.weight("low", np.zeros(())), ""), "b", 6)


def read_twice(net: Net) -> str:
    x = net.conv("input", "a", 8)
    return net.op("Add", net.conv(x, "b", 8), x)


def depthwise(net: Net) -> str:
    return net.conv(net.conv("input", "a", 8), "b", 8, group=8)


def shared(net: Net) -> str:
    """One weight in two places."""
    x = net.conv("input", "a", 3)
    net.nodes.append(net.nodes[-1].__class__.FromString(net.nodes[-1].SerializeToString()))
    net.nodes[-1].input[0], net.nodes[-1].output[0] = x, "again"
    return "again"


CASES = [
    (convolutions, (6, 5), ["a", "b"]),
    (products, (), ["a", "b"]),
    (matrices, (), ["a"]),
    (clipped, (6, 5), []),
    (read_twice, (6, 5), []),
    (depthwise, (6, 5), []),
    (shared, (6, 5), ["a"]),
]


def _opened(build: Callable[[Net], str], spatial: tuple[int, ...]) -> ir.Model:
    net = Net(channels=3, spatial=spatial, seed=3)
    model = ir.from_proto(net.model(build(net)))
    refresh_shapes(model)
    name_layers(model)
    return model


@pytest.mark.parametrize(("build", "spatial", "firsts"), CASES, ids=[case[0].__name__ for case in CASES])
def test_exact_wherever_it_is_done(build, spatial, firsts):
    model = _opened(build, spatial)
    before = serialize(model)
    pairs = pairs_of(model)
    assert [pair.first.name for pair in pairs] == firsts
    rng = np.random.default_rng(0)
    equalize(pairs, {pair.between: np.exp(rng.normal(0, 3, len(pair.first.kernel))) for pair in pairs})
    after = serialize(model)
    assert (after != before) == bool(firsts)
    check = exact_check(original(before, 3), after, build.__name__)
    assert check.passed, check.relative


def test_channels_and_weights_become_as_large_as_each_other():
    model = _opened(convolutions, (6, 5))
    first, second = pairs_of(model)
    carried = np.array([1.0, 4.0, 9.0, 16.0, 0.0, 1.0])
    weights = np.abs(second.second.kernel).max(axis=(0, 2, 3))
    equalize([second], {second.between: carried})
    after = array(second.second.node.inputs[1])
    assert after is not None
    found = np.abs(after).max(axis=(0, 2, 3))
    scales = found / weights
    live = carried > 0
    assert scales[~live] == 1
    ratio = (carried / scales)[live] / found[live]
    assert ratio == pytest.approx(ratio[0])
    assert np.log(scales).sum() == pytest.approx(0, abs=1e-5)
    assert first.first.name == "a"
