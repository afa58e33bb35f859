"""Time by node, by layer of the plan, by operator: with the real runtime, and on the names that it makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rankfold.devices.board import per_node
from rankfold.devices.card import find
from rankfold.devices.local import LocalTransport
from rankfold.records import LayerDecision, OperatorTable, OperatorTime, Plan
from rankfold.runtime.measure import Options, measure, under_load
from rankfold.runtime.operators import accounted, by_layer, by_operator, layers_by_node, layout_share, node_seconds

SUMS = 1e-9  # float64 sums of a few numbers


def residual() -> onnx.ModelProto:
    """A factorised convolution, one that an addition rides on, a transpose and a matrix product."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "wv"], ["v"], name="conv1_v", pads=[1, 0, 1, 0]),
        helper.make_node("Conv", ["v", "wu"], ["u"], name="conv1_u", pads=[0, 1, 0, 1]),
        helper.make_node("Relu", ["u"], ["a"], name="relu1"),
        helper.make_node("Conv", ["a", "w2"], ["b"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "a"], ["c"], name="add"),
        helper.make_node("Relu", ["c"], ["d"], name="relu2"),
        helper.make_node("Transpose", ["d"], ["e"], name="turn", perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["e", "w3"], ["y"], name="last"),
    ]
    weights = [weight("wv", 16, 16, 3, 1), weight("wu", 16, 16, 1, 3), weight("w2", 16, 16, 3, 3), weight("w3", 16, 8)]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 32, 8])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    decision = LayerDecision(form="spatial", ranks=[16], reason="a test", macs_dense=1, macs=1)
    plan = Plan(tile=1, groups={}, layers={"conv1": decision})
    helper.set_model_props(model, {"rankfold.plan": plan.model_dump_json()})
    return model


def test_the_runtime_says_where_the_time_goes_and_the_plan_says_whose_it_is(tmp_path: Path):
    path = tmp_path / "residual.onnx"
    onnx.save(residual(), path)
    options, models = Options(pairs=2, operators=True), [("net", path)]
    bench = measure(models, LocalTransport(), find("host"), options)
    (table,) = under_load(bench, models, LocalTransport(), options).operators
    layers = {share.name for share in by_layer(table)}
    assert {"conv1", "conv2", "last"} <= layers
    assert not {"conv1_v", "conv1_u"} & layers
    assert sum(share.share for share in by_layer(table)) == pytest.approx(1, abs=SUMS)
    assert sum(share.seconds for share in by_operator(table)) == pytest.approx(sum(node_seconds(table)), rel=SUMS)
    assert 0 < accounted(table) <= 1.02
    assert 0 < layout_share(table) < 1
    assert {node.provider for node in table.nodes} == {"CPUExecutionProvider"}
    assert len(table.runs_s) == 50


def test_nodes_that_the_runtime_fused_find_their_layers():
    profiled = [
        ("u_nchwc", "Conv"),
        ("v_nchwc", "Conv"),
        ("d_nchwc", "Conv"),  # conv2 with the addition and the activation
        ("ReorderOutput_token_3", "ReorderOutput"),
        ("turn", "Transpose"),
        ("last", "MatMul"),
    ]
    assert layers_by_node(residual(), profiled) == {
        "u_nchwc": "conv1",
        "v_nchwc": "conv1",
        "d_nchwc": "conv2",
        "ReorderOutput_token_3": None,
        "turn": None,
        "last": "last",
    }
    plain = [("fused conv1_u", "FusedConv"), ("conv1_v", "Conv"), ("fused conv2", "FusedConv"), ("add", "Add")]
    assert layers_by_node(residual(), plain) == {
        "fused conv1_u": "conv1",
        "conv1_v": "conv1",
        "fused conv2": "conv2",
        "add": None,
    }


def test_a_plan_of_another_version_leaves_the_factors_by_themselves():
    model = residual()
    helper.set_model_props(model, {"rankfold.plan": '{"format": 99}'})
    assert layers_by_node(model, [("conv1_v", "Conv")]) == {"conv1_v": "conv1_v"}


def test_the_first_run_of_a_profile_is_dropped():
    def event(kind: str, name: str, at: int, took: int) -> dict:
        return {"cat": kind, "name": name, "ts": at, "dur": took, "args": {"op_name": "Conv", "provider": "cpu"}}

    events = [event("Session", "model_loading_uri", 0, 5)]
    for run in range(3):
        events += [event("Node", "a_kernel_time", 101 + 100 * run, 50 if run == 0 else 10)]
        events += [event("Node", "a_kernel_time", 160 + 100 * run, 1), event("Node", "a_fence_before", 150, 1)]
        events += [event("Session", "model_run", 100 + 100 * run, 90 if run == 0 else 20)]
    found = per_node(events, 2)
    assert found["runs_s"] == pytest.approx([20e-6, 20e-6])
    (node,) = found["nodes"]
    assert (node["name"], node["op"], node["provider"]) == ("a", "Conv", "cpu")
    assert node["samples_s"] == pytest.approx([11e-6, 11e-6])


def test_the_slower_half_of_the_runs_does_not_count():
    nodes = [
        OperatorTime(name="a", op="Conv", provider="cpu", layer="a", samples_s=[1.0, 9.0, 1.0, 9.0]),
        OperatorTime(name="r", op="ReorderInput", provider="cpu", layer=None, samples_s=[1.0, 1.0, 1.0, 1.0]),
    ]
    table = OperatorTable(variant="x", runs_s=[2.5, 11.0, 2.5, 11.0], nodes=nodes)
    assert node_seconds(table) == [1.0, 1.0]
    assert accounted(table) == pytest.approx(0.8)
    assert layout_share(table) == 0.5
    assert [(share.name, share.share) for share in by_layer(table)] == [("a", 0.5), ("(ReorderInput)", 0.5)]
