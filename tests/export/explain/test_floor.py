"""A network without its layers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from rankfold.export.explain.floor import without_layers
from rankfold.export.graphs import serialize
from rankfold.export.parity import run
from rankfold.runtime.costs import count

from ..nets import Net
from .test_matching import opened


def residual() -> ir.Model:
    net = Net(channels=3, spatial=(8, 8))
    stem = net.block("input", "a", 16)
    inner = net.bn(net.conv(net.block(stem, "b", 16), "c", 16, bias=False), "bn_c")
    return opened(net.model(net.head(net.op("Relu", net.op("Add", stem, inner)))))


def test_what_is_left_is_what_was_never_a_layer_and_runs():
    made = without_layers(residual(), sums=False)
    assert made is not None
    found, idle = made
    assert [node.op_type for node in found.graph] == ["Add", "Relu", "ReduceMean", "Flatten"]
    assert not count(ir.to_proto(found)).macs
    feed = {value.name or "": np.ones([1, 16, 8, 8], np.float32) for value in found.graph.inputs}
    assert len(feed) == 2, "what `a` and `c` put out; `b` is read by a layer alone"
    (wanted,), (nothing,) = (run(serialize(model), feed) for model in (found, idle))
    assert wanted.shape == nothing.shape == (1, 16)


def test_a_sum_is_computed_with_its_layer_in_the_blocked_layout():
    made = without_layers(residual(), sums=True)
    assert made is not None
    assert [node.op_type for node in made[0].graph] == ["ReduceMean", "Flatten"]


def test_of_layers_alone_nothing_is_left():
    net = Net(channels=3, spatial=(8, 8))
    model = net.model(net.op("Relu", net.conv(net.op("Relu", net.conv("input", "a", 8)), "b", 8)))
    assert without_layers(opened(model), sums=False) is None
