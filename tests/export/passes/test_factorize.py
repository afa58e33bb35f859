"""Every form × every kind of layer: full rank reproduces it, MACs and parameters are those of the formula."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from rankfold.errors import InputError
from rankfold.export.forms import FORMS, resolve_any
from rankfold.export.layers import layers_of
from rankfold.export.passes.canonicalize import canonicalize
from rankfold.export.passes.factorize import factorize
from rankfold.records import LayerDecision
from rankfold.runtime.costs import count

ALL_FORMS = [*FORMS, "tucker-2"]
VARIANTS = {
    "plain": {"pads": [1, 1, 1, 1]},
    "no-bias": {"pads": [1, 1, 1, 1], "bias": False},
    "strided": {"pads": [1, 1, 1, 1], "strides": [2, 2]},
    "uneven-stride": {"pads": [0, 0, 0, 0], "strides": [2, 3]},
    "dilated": {"pads": [2, 3, 2, 3], "dilations": [2, 3]},
    "asymmetric": {"pads": [0, 2, 1, 0]},
    "same-upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same-lower": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "5x3": {"kernel": (5, 3), "pads": [2, 1, 2, 1]},
    "5x1": {"kernel": (5, 1), "pads": [2, 0, 2, 0], "strides": [1, 2]},
    "1x5": {"kernel": (1, 5), "pads": [0, 2, 0, 2], "strides": [2, 1]},
    "1x1": {"kernel": (1, 1), "pads": [0, 0, 0, 0]},
    "1x1-strided": {"kernel": (1, 1), "strides": [2, 2]},
    "1x1-padded": {"kernel": (1, 1), "pads": [1, 1, 0, 1], "strides": [2, 1]},
}
FLAT = {
    "1d": {"kernel": (5,), "pads": [2, 1], "strides": [2], "dilations": [2]},
    "1d-pointwise": {"kernel": (1,), "pads": [0, 0]},
}


def _factorized(model, form: str, rank: int | None) -> tuple[ir.Model, int, int]:
    """The model with its layer `a` factorised, and the MACs and weights that the form promises."""
    graph = ir.from_proto(model)
    canonicalize(graph)
    (layer,) = layers_of(graph)
    assert layer.pixels is not None
    resolved = resolve_any(form, layer.shape)
    rank = rank or resolved.full_rank(layer.shape)
    ranks = list(resolved.ranks(layer.shape, rank))
    decision = LayerDecision.model_validate({"form": resolved.name, "ranks": ranks, "reason": "test"})
    assert factorize(graph, {"a": decision}) == ["a"]
    assert factorize(graph, {"a": decision}) == []
    assert [node.name for node in graph.graph] == (["a_v", "a_u"] if len(ranks) == 1 else ["a_v", "a_c", "a_u"])
    return graph, resolved.macs(layer.shape, rank, layer.pixels), resolved.parameters(layer.shape, rank)


def _check(model, form: str, assert_exact) -> None:
    exact, _, _ = _factorized(model, form, None)
    assert_exact(model, exact)
    small, macs, weights = _factorized(model, form, 3)
    costs = count(ir.to_proto(small))
    biases = 0 if len(small.graph.node("a_u").inputs) < 3 else 6
    assert (costs.macs, costs.parameters) == (macs, weights + biases)


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_convolution(net, assert_exact, form, options):
    builder = net(channels=4, spatial=(11, 12))
    _check(builder.model(builder.conv("input", "a", 6, **options)), form, assert_exact)


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize("options", FLAT.values(), ids=FLAT)
def test_convolution_1d(net, assert_exact, form, options):
    builder = net(channels=4, spatial=(21,))
    _check(builder.model(builder.conv("input", "a", 6, **options)), form, assert_exact)


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm(net, assert_exact, trans):
    builder = net(channels=9, spatial=())
    _check(builder.model(builder.gemm("input", "a", 9, 6, trans=trans)), "channel", assert_exact)


def test_matmul_over_the_last_axis(net, assert_exact):
    builder = net(channels=7, spatial=(9,))
    weight = builder.weight("a.weight", builder.generator.normal(size=(9, 6)))
    _check(builder.model(builder.op("MatMul", "input", weight)), "channel", assert_exact)


@pytest.mark.parametrize(
    ("name", "ranks", "message"),
    [
        ("nowhere", [2], "factorises 'nowhere', a layer the model does not have"),
        ("a", [7], r"layer 'a': expected one rank from 1 to 6, found \[7\]"),
        ("a", [2, 2], r"layer 'a': expected one rank from 1 to 6, found \[2, 2\]"),
        ("g", [1], "layer 'g': a convolution of 2 groups is not factorised"),
    ],
)
def test_impossible_plans_are_refused(net, name, ranks, message):
    builder = net(channels=4)
    graph = ir.from_proto(builder.model(builder.conv(builder.conv("input", "a", 6), "g", 6, group=2)))
    canonicalize(graph)
    with pytest.raises(InputError, match=message):
        factorize(graph, {name: LayerDecision(form="channel", ranks=ranks, reason="test")})
