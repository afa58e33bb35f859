"""Layers of two networks, matched: the same, factorised, narrower, others."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from rankfold.export.explain.matching import matched, rows, share_matched, units
from rankfold.export.fold import tidy
from rankfold.export.graphs import refresh_shapes
from rankfold.export.passes.factorize import factorize
from rankfold.export.passes.fold_batchnorm import fold_batchnorm
from rankfold.records import LayerDecision

from ..nets import Net


def opened(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    tidy(model)
    fold_batchnorm(model)
    refresh_shapes(model)
    return model


def network(*widths: int, names: str = "abcdef", kernel: int = 3, seed: int = 0) -> ir.Model:
    net = Net(channels=3, spatial=(16, 16), seed=seed)
    x = "input"
    for name, width in zip(names, widths, strict=False):
        x = net.block(x, name, width, (kernel, kernel))
    return opened(net.model(net.head(x)))


def test_factors_stand_for_their_layer():
    small = network(16, 24, 24)
    factorize(
        small,
        {
            "b": LayerDecision(form="spatial", ranks=[5], reason=""),
            "c": LayerDecision(form="tucker-2", ranks=[6, 7], reason=""),
        },
    )
    found = rows(matched(units(network(16, 24, 24)), units(small)))
    assert [(row.first, row.second) for row in found] == [(name, name) for name in ("a", "b", "c", "fc")]
    assert found[1].macs_second is not None
    assert found[1].macs_first is not None
    assert found[1].macs_second < found[1].macs_first


def test_narrower_layers_of_other_names_are_matched_in_order():
    pairs = matched(units(network(16, 24, 24)), units(network(13, 19, 19, names="xyz")))
    assert [(one and one.name, other and other.name) for one, other in pairs] == [
        ("a", "x"),
        ("b", "y"),
        ("c", "z"),
        ("fc", "fc"),
    ]
    assert share_matched(pairs) == 1


def test_a_layer_that_is_gone_has_no_partner():
    pairs = matched(units(network(16, 24, 24)), units(network(16, 24, names="ac")))
    assert [(one and one.name, other and other.name) for one, other in pairs] == [
        ("a", "a"),
        ("b", None),
        ("c", "c"),
        ("fc", "fc"),
    ]


def test_other_networks_share_little():
    assert share_matched(matched(units(network(16, 24, 24)), units(network(16, 24, kernel=5)))) < 0.1
