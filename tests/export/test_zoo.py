"""Channels are folded out of every topology that allows it, exactly and completely; the others say why not."""

from __future__ import annotations

import sys

import onnx
import onnx_ir as ir
import pytest

from rankfold.export.graphs import serialize
from rankfold.export.passes.canonicalize import canonicalize
from rankfold.export.passes.fold_batchnorm import fold_batchnorm
from rankfold.export.passes.fold_channels import fold_channels

from . import zoo, zoo_declined, zoo_more, zoo_tokens
from .nets import Net

CHANGED = (
    zoo.vgg,
    zoo.resnet,
    zoo.resnet_projection,
    zoo.resnet_option_a,
    zoo.bottleneck,
    zoo.pre_activation,
    zoo.mobilenet_v1,
    zoo.mobilenet_v2,
    zoo.mobilenet_v3,
    zoo.densenet,
    zoo.inception,
    zoo.squeezenet,
    zoo.shufflenet_v1,
    zoo.shufflenet_v2,
    zoo.efficientnet,
    zoo_more.unet,
    zoo_more.autoencoder,
    zoo_more.fpn_detector,
    zoo_more.resnext,
    zoo_more.pixel_shuffle,
    zoo_more.space_to_depth,
    zoo_more.prelu,
    zoo_more.style_transfer,
    zoo_more.group_norm,
    zoo_more.group_norm_of_torch,
    zoo_tokens.mlp,
    zoo_more.temporal,
    zoo_more.permuted,
    zoo_more.halves,
    zoo_more.every_other,
    zoo_more.ghost,
    zoo_more.hourglass,
    zoo_more.attention_gate,
    zoo_more.siamese,
    zoo_more.two_towers,
    zoo_more.channels_last,
    zoo_more.gated,
    zoo_more.focus,
    zoo_more.res2net,
    zoo_more.dead_chain,
    zoo_tokens.convnext,
    zoo_tokens.transformer,
    zoo_tokens.recurrent,
    zoo_more.shuffled_residual,
)
DECLINED = (
    zoo_declined.softmax_over_channels,
    zoo_declined.layer_norm_over_channels,
    zoo_declined.local_response,
    zoo_declined.cumulative_sum,
    zoo_declined.einsum,
    zoo_declined.channel_attention,
    zoo_declined.sorted_channels,
    zoo_declined.asked_size,
    zoo_declined.computed_weight,
    zoo_declined.border,
    zoo_declined.graph_output,
    zoo_declined.uneven_groups,
    zoo_declined.scores,
    zoo_declined.branch,
    zoo_declined.loop,
    zoo_declined.function_body,
)


def _built(build: zoo.Build, seed: int) -> tuple[onnx.ModelProto, zoo.Topology]:
    net = Net(spatial=(8, 8), seed=seed)
    topology = build(net)
    functions = [zoo_declined.twice()] if build is zoo_declined.function_body else []
    return net.model(*topology.outputs, opset=topology.opset, functions=functions), topology


def _prepared(model: onnx.ModelProto) -> ir.Model:
    graph = ir.from_proto(model)
    canonicalize(graph)
    fold_batchnorm(graph)
    return graph


@pytest.fixture(params=[*CHANGED, *DECLINED], ids=lambda build: build.__name__)
def build(request) -> zoo.Build:
    return request.param


def test_the_zoo_is_large_enough():
    assert len(CHANGED) >= 28
    assert len(CHANGED) + len(DECLINED) >= 40


@pytest.fixture
def no_torch(monkeypatch) -> None:
    """Nothing can import it, or a part of it, while the test runs."""
    for name in ["torch", *sys.modules]:
        if name.partition(".")[0] == "torch":
            monkeypatch.setitem(sys.modules, name, None)


def test_what_is_dead_goes_exactly_and_the_rest_has_its_reason(build, counts, assert_exact, no_torch):
    for seed in range(counts(1, 5)):
        model, topology = _built(build, seed)
        graph = _prepared(model)
        decisions = fold_channels(graph)
        removed = {name: decisions[name].channels - len(decisions[name].kept) for name in topology.removed}
        assert removed == topology.removed
        assert any(removed.values()) == (build in CHANGED)
        for name, words in topology.reasons.items():
            assert words in decisions[name].reason
        assert_exact(model, graph)


def test_folding_twice_changes_nothing(build, counts):
    for seed in range(counts(1, 5)):
        graph = _prepared(_built(build, seed)[0])
        fold_channels(graph)
        once = serialize(graph)
        again = fold_channels(graph)
        assert all(len(decision.kept) == decision.channels for decision in again.values())
        assert serialize(graph) == once


@pytest.mark.parametrize("tile", [4, 7])
def test_widths_are_on_the_tile_and_the_result_is_exact(build, tile, assert_exact):
    model, _ = _built(build, 0)
    graph = _prepared(model)
    decisions = fold_channels(graph, tile)
    for decision in decisions.values():
        kept = len(decision.kept)
        assert kept == decision.channels or kept % tile == 0
    assert_exact(model, graph)
