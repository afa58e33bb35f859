"""A walk yields what whole runs yield, whatever fits in memory, and runs no node twice where it does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from rankfold.export import walk as module
from rankfold.export.calibration import Samples
from rankfold.export.parity import run
from rankfold.export.walk import Walk, cut

from .nets import Net

INPUTS = np.random.default_rng(0).normal(size=(70, 3, 12, 10)).astype(np.float32)  # three batches, the last smaller


def samples() -> Samples:
    return Samples("noise", len(INPUTS), None, lambda start, stop: {"input": INPUTS[start:stop]})


def branched() -> tuple[onnx.ModelProto, list[str]]:
    """A residual block between two others, with the names of values on the way."""
    net = Net(channels=3, spatial=(12, 10))
    first = net.block("input", "a", 8)
    second = net.block(first, "b", 8)
    joined = net.op("Add", second, net.op("Relu", first))
    return net.model(net.head(net.block(joined, "c", 6))), [first, second, joined]


def whole(model: onnx.ModelProto, value: str) -> np.ndarray:
    return run(cut(model, [value], {}).SerializeToString(), {"input": INPUTS})[0]


@pytest.mark.parametrize("held_bytes", [0, 300_000, 1 << 30])
def test_values_are_those_of_whole_runs(held_bytes):
    model, values = branched()
    walk = Walk(model, samples(), held_bytes)
    (output,) = (entry.name for entry in model.graph.output)
    for value in ["input", *values, values[0]]:
        found = np.concatenate(list(walk.move_to(value)))
        np.testing.assert_array_equal(found, INPUTS if value == "input" else whole(model, value))
        ends = np.concatenate([row[0] for row in walk.peek([output])])
        np.testing.assert_allclose(ends, whole(model, output), atol=1e-5)
    assert len(list(walk.peek([output], count=33))) == 2


def test_no_node_runs_twice_where_memory_allows(monkeypatch):
    model, values = branched()
    ran: list[str] = []

    def counted(*arguments):
        part = cut(*arguments)
        ran.extend(node.output[0] for node in part.graph.node)
        return part

    monkeypatch.setattr(module, "cut", counted)
    walk = Walk(model, samples())
    for value in values:
        assert len(list(walk.move_to(value))) == 3
    assert len(ran) == len(set(ran)) > 6
    assert set(walk._held) == {values[-1]}


def test_a_later_part_may_be_another():
    model, values = branched()
    walk, changed = Walk(model, samples()), onnx.ModelProto()
    changed.CopyFrom(model)
    weight = next(one for one in changed.graph.initializer if one.name == "c.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), "c.weight"))
    (output,) = (entry.name for entry in model.graph.output)
    walk.move_to(values[-1])
    other = np.concatenate([row[0] for row in walk.peek([output], changed)])
    np.testing.assert_allclose(other, whole(changed, output), atol=1e-5)
    assert np.abs(other - whole(model, output)).max() > 1e-3


def test_a_graph_is_cut_at_a_value():
    model, (first, *_) = branched()
    part = cut(model, [first], {})
    assert [node.op_type for node in part.graph.node] == ["Conv", "BatchNormalization", "Relu"]
    assert {entry.name for entry in part.graph.initializer} < {entry.name for entry in model.graph.initializer}
    assert [entry.name for entry in part.graph.output] == [first]
