"""fold_batchnorm, fold_channels, canonicalize and flush_denormals on the zoo: exact, idempotent, complete."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from rankfold.export.graphs import array, serialize
from rankfold.export.passes.canonicalize import canonicalize
from rankfold.export.passes.flush_denormals import flush_denormals
from rankfold.export.passes.fold_batchnorm import fold_batchnorm
from rankfold.export.passes.fold_channels import fold_channels


def _folded(case) -> ir.Model:
    graph = ir.from_proto(case.model)
    canonicalize(graph)
    fold_batchnorm(graph)
    return graph


def _content(graph: ir.Model) -> bytes:
    return serialize(graph)


def test_canonicalize_is_exact_and_idempotent(case, assert_exact):
    graph = ir.from_proto(case.model)
    canonicalize(graph)
    assert_exact(case.model, graph)
    once = _content(graph)
    canonicalize(graph)
    assert _content(graph) == once
    assert "Reshape" not in {node.op_type for node in graph.graph}


def test_fold_batchnorm_is_exact_and_idempotent(case, assert_exact):
    graph = ir.from_proto(case.model)
    canonicalize(graph)
    count = sum(node.op_type == "BatchNormalization" for node in graph.graph)
    folded = fold_batchnorm(graph)
    left = [node for node in graph.graph if node.op_type == "BatchNormalization"]
    assert folded == count - len(left)
    assert_exact(case.model, graph)
    assert fold_batchnorm(graph) == 0


def test_fold_channels_removes_what_is_dead_and_says_why_not(case, assert_exact):
    graph = _folded(case)
    decisions = fold_channels(graph)
    assert {name: len(decisions[name].kept) for name in case.kept} == case.kept
    for name, words in case.reasons.items():
        assert words in decisions[name].reason
    assert all(decision.reason for decision in decisions.values())
    assert_exact(case.model, graph)


def test_fold_channels_is_idempotent(case):
    graph = _folded(case)
    fold_channels(graph)
    once = _content(graph)
    again = fold_channels(graph)
    assert all(len(decision.kept) == decision.channels for decision in again.values())
    assert _content(graph) == once


@pytest.mark.parametrize("tile", [2, 4, 64])
def test_counts_are_rounded_up_to_the_tile_with_dead_channels(case, assert_exact, tile):
    graph = _folded(case)
    decisions = fold_channels(graph, tile)
    for name, kept in case.kept.items():
        wanted = min(-(-kept // tile) * tile, decisions[name].channels)
        assert len(decisions[name].kept) == wanted
    assert_exact(case.model, graph)


def test_tile_below_one_is_refused(chain_case):
    with pytest.raises(ValueError, match="tile of at least 1, found 0"):
        fold_channels(_folded(chain_case), 0)


def test_kept_channels_are_the_live_ones_in_order(chain_case):
    decision = fold_channels(_folded(chain_case))["a"]
    assert decision.kept == [0, 2, 3, 5, 6, 7]
    assert decision.members == ["a"]
    assert decision.reason == "2 dead channels folded"


def test_channels_read_inside_a_subgraph_stay(net):
    builder = net()
    x = builder.block("input", "a", 8, dead=(1, 4))
    model = builder.model(builder.head(x))
    graph = ir.from_proto(model)
    canonicalize(graph)
    captured = graph.graph.node("a").outputs[0]
    body_node = ir.node("Relu", [captured], name="inside")
    body = ir.Graph([], [body_node.outputs[0]], nodes=[body_node], name="body")
    condition = ir.Value(name="c", const_value=ir.tensor(np.array(True)))
    graph.graph.register_initializer(condition)
    branch = ir.node("If", [condition], {"then_branch": body, "else_branch": body.clone(True)}, name="if")
    graph.graph.append(branch)
    assert "subgraph" in fold_channels(graph)["a"].reason


def test_names_join_layers_and_weights(net):
    builder = net()
    x = builder.conv("input", "stage 1/conv", 4)
    x = builder.op("Conv", x, builder.weight("onnx::Conv_7", np.ones((4, 4, 1, 1))), name="/second/Conv")
    x = builder.op("Conv", x, "onnx::Conv_7", name="/second/Conv")
    graph = ir.from_proto(builder.model(x))
    canonicalize(graph)
    names = [node.name for node in graph.graph]
    assert names[0] == "stage_1/conv"
    assert len(set(names)) == 3
    assert graph.graph.initializers["stage_1/conv.weight"] is graph.graph[0].inputs[1]


def test_flush_denormals(net, assert_exact):
    builder = net()
    x = builder.conv("input", "a", 4)
    builder.weights["a.weight"][0, 0] = 1e-41
    builder.weights["a.weight"][1, 0] = 2e-38
    model = builder.model(x)
    graph = ir.from_proto(model)
    assert flush_denormals(graph) == 9
    weight = array(graph.graph.initializers["a.weight"])
    assert weight is not None
    assert not weight[0, 0].any()
    assert (weight[1, 0] == np.float32(2e-38)).all()
    assert flush_denormals(graph) == 0
    assert_exact(model, graph)
