"""Channels of zeros change nothing, lie on the tile, and are exactly what folding takes away again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rankfold.export.decompose import plain_factors
from rankfold.export.fold import tidy
from rankfold.export.forms import resolve_any
from rankfold.export.graphs import refresh_shapes, serialize
from rankfold.export.kernels import out_channels
from rankfold.export.layers import layers_of
from rankfold.export.passes.factorize import replace
from rankfold.export.passes.fold_batchnorm import fold_batchnorm
from rankfold.export.passes.fold_channels import fold_channels
from rankfold.export.passes.pad_channels import OffTile, blocks, off_tile, pad_channels

from .. import zoo, zoo_declined, zoo_more, zoo_tokens
from ..nets import Net
from ..test_zoo import CHANGED, DECLINED


def _opened(model: onnx.ModelProto) -> ir.Model:
    graph = ir.from_proto(model)
    tidy(graph)
    fold_batchnorm(graph)
    return graph


def _of_zoo(build: zoo.Build) -> ir.Model:
    """Without its dead channels, which leaves odd numbers of them."""
    net = Net(spatial=(8, 8))
    topology = build(net)
    functions = [zoo_declined.twice()] if build is zoo_declined.function_body else []
    graph = _opened(net.model(*topology.outputs, opset=topology.opset, functions=functions))
    fold_channels(graph)
    return graph


def _widths(graph: ir.Model) -> dict[str, int]:
    return {layer.name: out_channels(layer.node) for layer in layers_of(graph)}


def _is_padded(graph: ir.Model, tile: int, assert_exact) -> list[OffTile]:
    """The laws, for any graph without dead channels; returns what was padded."""
    before, narrow = ir.to_proto(graph), _widths(graph)
    found = off_tile(graph, tile)
    assert all(one.padded == -(-one.channels // tile) * tile > one.channels for one in found)
    assert pad_channels(graph, tile) == len(found)
    widths = _widths(graph)
    assert {one.name: widths[one.name] for one in found} == {one.name: one.padded for one in found}
    grown = {name for one in found for name in one.producers}
    assert all(widths[name] % tile == 0 for name in grown)
    assert {name: widths[name] for name in widths.keys() - grown} == {
        name: narrow[name] for name in narrow.keys() - grown
    }
    assert_exact(before, graph)
    once = serialize(graph)
    assert (off_tile(graph, tile), pad_channels(graph, tile)) == ([], 0)
    assert serialize(graph) == once
    fold_channels(graph)
    assert _widths(graph) == narrow
    return found


@pytest.mark.parametrize("tile", [5, 8])
def test_every_case_is_padded_exactly(case, tile, assert_exact):
    graph = _opened(case.model)
    fold_channels(graph)
    _is_padded(graph, tile, assert_exact)


@pytest.mark.parametrize("build", [*CHANGED, *DECLINED], ids=lambda build: build.__name__)
def test_every_topology_is_padded_exactly(build, assert_exact):
    _is_padded(_of_zoo(build), 8, assert_exact)


# by topology, with its dead channels folded: what grows to multiples of 8
GROWN: dict[Callable, dict[str, int]] = {
    zoo.vgg: {"a": 8, "b": 8, "c": 8},
    zoo.resnet_projection: {"stem": 8, "one": 16, "two": 16},
    zoo.bottleneck: {"stem": 16, "one": 8, "two": 8},
    zoo.resnet_option_a: {},  # zeros around the shortcut's channels would leave 13
    zoo.mobilenet_v2: {"stem": 8, "expand": 16},
    zoo.densenet: {"a": 8, "b": 8, "c": 8, "transition": 8},
    zoo.efficientnet: {"stem": 8, "expand": 16, "se.down": 8},
    zoo.shufflenet_v1: {},
    zoo.shufflenet_v2: {"one": 8},
    zoo_more.unet: {"down": 8, "up": 8},
    zoo_more.resnext: {},  # groups
    zoo_more.pixel_shuffle: {"a": 8},
    zoo_more.space_to_depth: {"a": 8},
    zoo_more.group_norm: {"b": 8},
    zoo_more.permuted: {"c": 8},
    zoo_more.halves: {"b": 8},
    zoo_more.ghost: {"a": 8, "b": 8},
    zoo_more.focus: {"a": 8, "b": 8},
    zoo_more.channels_last: {"a": 8},
    zoo_more.gated: {"b": 8},  # a is two halves
    zoo_more.res2net: {},
    zoo_tokens.transformer: {"v": 8, "hidden": 16},
}


@pytest.mark.parametrize("build", GROWN, ids=lambda build: build.__name__)
def test_what_can_grow_does_and_the_rest_is_left_alone(build):
    assert {one.name: one.padded for one in off_tile(_of_zoo(build), 8)} == GROWN[build]


def test_a_group_knows_who_writes_and_who_reads_it():
    graph = _of_zoo(zoo.efficientnet)
    stem, expand, squeezed = off_tile(graph, 8)
    assert (stem.producers, stem.readers) == (("stem", "project"), ("expand", "fc"))
    assert (expand.producers, expand.readers) == (("expand", "depth", "se.up"), ("se.down", "project"))
    assert (squeezed.channels, squeezed.padded, squeezed.is_rank) == (4, 8, False)


def test_only_the_named_grow(assert_exact):
    graph = _of_zoo(zoo.efficientnet)
    before = ir.to_proto(graph)
    assert pad_channels(graph, 8, ["expand", "nowhere"]) == 1
    assert _widths(graph) == _widths(_of_zoo(zoo.efficientnet)) | {"expand": 16, "depth": 16, "se.up": 16}
    assert_exact(before, graph)
    assert [one.name for one in off_tile(graph, 8)] == ["stem", "se.down"]


@pytest.mark.parametrize("form", ["channel", "input-channel", "spatial", "tucker-2"])
def test_ranks_are_padded(net, form, assert_exact):
    builder = net()
    x = builder.op("Relu", builder.conv("input", "a", 16))
    graph = _opened(builder.model(builder.head(builder.op("Relu", builder.conv(x, "b", 16)))))
    for layer in layers_of(graph):
        if layer.name == "b":
            chosen = resolve_any(form, layer.shape)
            replace(layer, chosen, plain_factors(layer.kernel, chosen, chosen.ranks(layer.shape, 5)))
    refresh_shapes(graph)
    ranks = [one for one in _is_padded(graph, 8, assert_exact) if one.is_rank]
    assert [one.name for one in ranks] == (["b_v", "b_c"] if form == "tucker-2" else ["b_v"])
    assert all(one.producers == (one.name,) for one in ranks)


# --- which blocks are whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "found"),
    [
        ([0, 1, 2], ([3], [1])),
        ([-1, 0, 0, 1, 1, 2, 2, -1, -1], ([7], [2])),
        ([0, 1, 2, 0, 0, 1, 1, 2, 2, -1, 0, 1, 2], ([3, 9, 13], [1, 2, 1])),
        ([-1, -1], ([], [])),
        ([], ([], [])),
        ([0, 1], None),
        ([1, 0, 2], None),
        ([0, -1, 1, 2], None),
        ([0, 0, 1, 2, 2], None),
        ([0, 0, 1, 1, 2], None),
        ([0, 1, 2, 2, 0, 1], None),
    ],
)
def test_blocks_are_whole_in_order_and_even(channels, found):
    result = blocks(np.array(channels, np.intp), 3)
    assert (result and tuple(one.tolist() for one in result)) == found


# --- operators that count channels, and those that must not see zeros -----------------------------------------


def _tail(net: Net, x: str) -> ir.Model:
    (output,) = zoo.head(net, x)
    return _opened(net.model(output))


def test_a_split_between_whole_groups_says_how_many(net, assert_exact):
    builder = net()
    x = builder.concat(builder.conv("input", "a", 6), builder.conv("input", "b", 3))
    left, right = builder.split(builder.op("Relu", x), 6, 3)
    found = _is_padded(_tail(builder, builder.concat(right, left)), 8, assert_exact)
    assert [one.name for one in found] == ["a", "b"]


def test_zeros_around_channels_grow_with_those_they_are_added_to(net, assert_exact):
    builder = net()
    wide = builder.op("Pad", builder.conv("input", "a", 8), builder.constant([0, 0, 0, 0, 0, 6, 0, 0]), channels=14)
    parts = builder.concat(builder.conv("input", "b", 8), builder.conv("input", "c", 6))
    found = _is_padded(_tail(builder, builder.op("Add", wide, parts)), 8, assert_exact)
    assert [one.name for one in found] == ["c"]


def test_a_neighbour_that_cannot_grow_is_not_taken_off_the_tile(net, assert_exact):
    """Six channels and two of the input beside them are eight, which the reader likes."""
    builder = net(channels=2)
    x = builder.concat(builder.conv("input", "a", 6), "input")
    graph = _tail(builder, builder.op("Relu", builder.conv(x, "b", 8)))
    assert off_tile(graph, 8) == []
    assert [one.name for one in off_tile(graph, 3)] == ["b"]
    _is_padded(graph, 3, assert_exact)


@pytest.mark.parametrize("times", [3, 4])
def test_a_multiplier_of_depthwise_filters(net, assert_exact, times):
    builder = net()
    x = builder.conv(builder.op("Relu", builder.conv("input", "a", 5)), "depth", 5 * times, group=5)
    found = _is_padded(_tail(builder, builder.op("Relu", x)), 8, assert_exact)
    assert [(one.name, one.producers) for one in found] == [("a", ("a", "depth"))]


def test_one_channel_alone(net, assert_exact):
    builder = net()
    x = builder.op("Relu", builder.conv("input", "a", 1))
    graph = _tail(builder, builder.conv(x, "b", 8))
    assert [one.name for one in _is_padded(graph, 8, assert_exact)] == ["a"]


def test_one_channel_twice_is_no_block(net, assert_exact):
    builder = net()
    x = builder.conv("input", "a", 1)
    x = builder.conv(builder.concat(builder.op("Relu", x), builder.op("Tanh", x)), "b", 6)
    assert [one.name for one in _is_padded(_tail(builder, x), 8, assert_exact)] == ["b"]


def test_ranges_of_channels_are_left_alone(net, assert_exact):
    builder = net()
    x = builder.concat(builder.conv("input", "a", 6), builder.conv("input", "b", 3))
    axis = builder.constant([1])
    ends = [builder.constant([end]) for end in (0, 6, 9)]
    parts = [builder.op("Slice", x, *ends[k : k + 2], axis, channels=size) for k, size in enumerate((6, 3))]
    x = builder.conv(builder.concat(*parts[::-1]), "c", 6)
    assert [one.name for one in _is_padded(_tail(builder, x), 8, assert_exact)] == ["c"]


UNSAFE = {
    "divided": lambda net, x: net.op("Div", net.constant(1.0), net.op("Exp", x), channels=6),
    "divided by each": lambda net, x: net.op("Div", x, net.constant(np.arange(1.0, 7).reshape(6, 1, 1))),
    "reciprocal": lambda net, x: net.op("Reciprocal", net.op("Exp", x)),
    "logarithm": lambda net, x: net.op("Log", net.op("Exp", x)),
    "root": lambda net, x: net.op("Sqrt", net.op("Abs", x)),
    "power": lambda net, x: net.op("Pow", net.op("Exp", x), net.constant(-0.5)),
}
SAFE = {
    "scaled": lambda net, x: net.op("Div", x, net.constant(1.5)),
    "multiplied by each": lambda net, x: net.op("Mul", x, net.constant(np.arange(1.0, 7).reshape(6, 1, 1))),
    "cubed": lambda net, x: net.op("Pow", x, net.constant(3.0)),
    "slopes": lambda net, x: net.op("PRelu", x, net.constant(np.arange(1.0, 7).reshape(6, 1, 1))),
    "sigmoid": lambda net, x: net.op("Sigmoid", x),
    "ones": lambda net, x: net.op("Cos", x),
}


@pytest.mark.parametrize("make", [*UNSAFE.values(), *SAFE.values()], ids=[*UNSAFE, *SAFE])
def test_a_zero_must_not_become_infinite(net, make, assert_exact):
    builder = net()
    x = builder.conv(make(builder, builder.conv("input", "a", 6)), "b", 6)
    found = _is_padded(_tail(builder, x), 8, assert_exact)
    assert [one.name for one in found] == (["a", "b"] if make in SAFE.values() else ["b"])
