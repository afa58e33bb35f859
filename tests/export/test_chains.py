"""Chains of every form and of other tools: put back dense exactly, cut as stated; what is none is left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rankfold.export.chains import Chain, chains, cut, kernel_of, undo
from rankfold.export.decompose import Factors, plain_factors, truncated
from rankfold.export.fold import tidy
from rankfold.export.forms import FORMS, resolve_any
from rankfold.export.graphs import drop_unused_initializers, own_input, refresh_shapes
from rankfold.export.layers import layers_of
from rankfold.export.parity import run
from rankfold.export.passes.factorize import replace
from rankfold.runtime.costs import count
from rankfold.runtime.inputs import make_inputs

FLOAT32 = 1e-5  # weights and activations are float32: a product rounded once, sums of some hundred terms
ROUNDING = 1e-12  # float64 sums of fewer than a thousand terms, relative to their size
ALL_FORMS = [*FORMS, "tucker-2"]
LAYERS: Mapping[str, tuple[Sequence[int], Mapping]] = {
    "plain": ((11, 12), {"pads": [1, 1, 1, 1]}),
    "no-bias": ((11, 12), {"pads": [1, 1, 1, 1], "bias": False}),
    "strided": ((11, 12), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "uneven": ((11, 12), {"pads": [0, 2, 1, 0], "strides": [2, 3], "dilations": [1, 2]}),
    "same-upper": ((11, 12), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same-lower": ((11, 12), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    "5x1": ((11, 12), {"kernel": (5, 1), "pads": [2, 0, 2, 0], "strides": [1, 2]}),
    "1x1-padded": ((11, 12), {"kernel": (1, 1), "pads": [1, 1, 0, 1], "strides": [2, 1]}),
    "1d": ((21,), {"kernel": (5,), "pads": [2, 1], "strides": [2], "dilations": [2]}),
}


def _opened(model: onnx.ModelProto) -> ir.Model:
    graph = ir.from_proto(model)
    tidy(graph)
    return graph


def _factorized(model: onnx.ModelProto, form: str, rank: int) -> ir.Model:
    graph = _opened(model)
    for layer in layers_of(graph):
        chosen = resolve_any(form, layer.shape)
        replace(layer, chosen, plain_factors(layer.kernel, chosen, chosen.ranks(layer.shape, rank)))
    drop_unused_initializers(graph.graph)
    refresh_shapes(graph)
    return graph


def _only_chain(graph: ir.Model) -> Chain:
    (chain,) = chains(graph)
    return chain


def _is_undone_exactly(graph: ir.Model, assert_exact) -> None:
    """One layer is left, that costs what the chain said, and computes the same; nothing is left to find."""
    before, chain = ir.to_proto(graph), _only_chain(graph)
    assert (chain.macs or 0) == count(before).macs
    kernel, name = kernel_of(graph, chain), undo(graph, chain)
    assert [node.name for node in graph.graph] == [name]
    (layer,) = layers_of(graph)
    np.testing.assert_allclose(layer.kernel, kernel, rtol=FLOAT32)
    assert (layer.shape, layer.macs) == (kernel.shape, chain.macs_dense)
    assert_exact(before, graph)
    assert chains(graph) == []


def _is_cut_as_stated(graph: ir.Model, ranks: Sequence[int]) -> None:
    chain = _only_chain(graph)
    before, bias = kernel_of(graph, chain), _constant_outputs(graph)
    error = cut(graph, chain, ranks)
    smaller = _only_chain(graph)
    assert (smaller.name, smaller.layers, smaller.ranks) == (chain.name, chain.layers, tuple(ranks))
    after = kernel_of(graph, smaller)
    assert 0 < error == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before))
    np.testing.assert_allclose(_constant_outputs(graph), bias, atol=FLOAT32)


def _constant_outputs(graph: ir.Model) -> np.ndarray:
    """What the graph puts out for zeros: its bias."""
    proto = ir.to_proto(graph)
    inputs = make_inputs(proto, 1, np.random.default_rng(0))
    return run(proto.SerializeToString(), {name: np.zeros_like(x) for name, x in inputs.items()})[0]


# --- our own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize(("spatial", "options"), LAYERS.values(), ids=LAYERS)
def test_every_form_of_a_convolution(net, assert_exact, form, spatial, options):
    builder = net(channels=6, spatial=spatial)
    model = builder.model(builder.conv("input", "a", 8, **options))
    graph = _factorized(model, form, 4)
    chain = _only_chain(graph)
    inner = [layer.shape[0] for layer in layers_of(graph)][:-1]
    assert (chain.name, chain.ranks) == ("a", tuple(inner))
    assert all(name.startswith("a_") for name in chain.layers)
    (dense,) = layers_of(_opened(model))
    assert chain.macs_dense == dense.macs
    _is_cut_as_stated(graph, [rank - 1 for rank in chain.ranks])
    _is_undone_exactly(_factorized(model, form, 4), assert_exact)


@pytest.mark.parametrize("kind", ["gemm", "transposed gemm", "matmul"])
def test_every_matrix_product(net, assert_exact, kind):
    builder = net(channels=9, spatial=(7,) if kind == "matmul" else ())
    if kind == "matmul":
        weight = builder.weight("a.weight", builder.generator.normal(size=(7, 6)))
        x = builder.op("MatMul", "input", weight)
    else:
        x = builder.gemm("input", "a", 9, 6, trans=int(kind == "gemm"))
    model = builder.model(x)
    graph = _factorized(model, "linear", 3)
    assert (_only_chain(graph).name, _only_chain(graph).ranks) == ("a", (3,))
    _is_cut_as_stated(graph, [2])
    _is_undone_exactly(_factorized(model, "linear", 3), assert_exact)


def test_the_full_rank_is_no_bottleneck(net):
    builder = net(channels=6)
    model = builder.model(builder.conv("input", "a", 8))
    assert chains(_factorized(model, "tucker-2", 8)) == []
    assert chains(_factorized(model, "input-channel", 6)) == []
    assert _only_chain(_factorized(model, "tucker-2", 7)).ranks == (6, 7)  # by name, although 6 is all there are


def test_a_network_is_the_same_again(net, assert_exact):
    builder = net()
    x = builder.op("Relu", builder.conv("input", "a", 8))
    x = builder.op("Add", x, builder.op("Relu", builder.conv(x, "b", 8)))
    model = builder.model(builder.head(x))
    graph = _factorized(model, "spatial", 2)
    before = ir.to_proto(graph)
    found = chains(graph)
    assert [chain.name for chain in found] == ["a", "b", "fc"]
    assert [undo(graph, chain) for chain in found] == ["a", "b", "fc"]
    assert_exact(before, graph)
    assert [layer.name for layer in layers_of(graph)] == ["a", "b", "fc"]


def test_two_factorised_layers_in_a_row_are_two_chains(net):
    """Without an activation between them four layers equal one, too; that nobody factorised."""
    for names in (["a_v", "a_u", "b_v", "b_u"], ["one", "two", "three", "four"]):
        builder, x = net(channels=8), "input"
        for name, out in zip(names, (3, 8, 2, 8), strict=True):
            x = builder.conv(x, name, out, (1, 1), bias=False)
        assert [chain.ranks for chain in chains(_opened(builder.model(x)))] == [(3,), (2,)]


# --- of other tools -----------------------------------------------------------------------------------------


def _row(net, layers: Sequence[Mapping], channels: int = 6, spatial: Sequence[int] = (9, 10)) -> ir.Model:
    """Convolutions in a row; `relu` behind one where it says so."""
    builder, x = net(channels=channels, spatial=spatial), "input"
    for number, options in enumerate(layers):
        options = {"name": f"layer{number}", "out": 8} | dict(options)
        after = options.pop("after", None)
        x = builder.conv(x, **options)
        x = builder.op(after, x) if after else x
    return _opened(builder.model(x))


NONE = {"pads": [0, 0, 0, 0]}
COMPOSED = {
    "torch": [{"name": "body.conv1.0", "out": 3}, {"name": "body.conv1.1", "kernel": (1, 1)}],
    "a bias between": [{"out": 3, **NONE}, {"kernel": (1, 1), **NONE}],
    "a bias in front of a valid border": [{"out": 3, "kernel": (1, 1)}, {"kernel": (3, 3), **NONE}],
    "no bias in front of zeros": [{"out": 3, "kernel": (1, 1), "bias": False}, {"kernel": (3, 3)}],
    "stride behind": [{"out": 3, "strides": [2, 1], "pads": [1] * 4}, {"kernel": (1, 1), "strides": [1, 2]}],
    "pads twice": [
        {"out": 3, "kernel": (1, 1), "bias": False, "strides": [1, 1], "pads": [0, 1, 1, 0]},
        {"kernel": (3, 3), "pads": [1, 0, 2, 1]},
    ],
    "strided padding of a point": [
        {"out": 3, "kernel": (1, 1), "bias": False, "strides": [2, 3], "pads": [1, 0, 0, 1]},
        {"kernel": (1, 1), "strides": [2, 1], "pads": [1, 1, 1, 2]},
    ],
    "separable in one dimension each": [
        {"out": 4, "kernel": (1, 1), "bias": False},
        {"out": 3, "kernel": (3, 1), "bias": False, "pads": [1, 0, 1, 0], "strides": [2, 1]},
        {"out": 4, "kernel": (1, 3), "bias": False, "pads": [0, 1, 0, 1], "dilations": [1, 2]},
        {"out": 8, "kernel": (1, 1)},
    ],
}


@pytest.mark.parametrize("layers", COMPOSED.values(), ids=COMPOSED)
def test_convolutions_that_compose(net, assert_exact, layers):
    assert _only_chain(_row(net, layers)).name == ("body.conv1" if "name" in layers[0] else "layer0")
    _is_cut_as_stated(_row(net, layers), [2] * (len(layers) - 1))
    _is_undone_exactly(_row(net, layers), assert_exact)


def test_names_that_torch_gives_to_nodes(net):
    builder, x = net(channels=6), "input"
    for out in (3, 8):
        kernel = builder.constant(builder.generator.normal(size=(out, builder.channels[x], 1, 1)))
        x = builder.op("Conv", x, kernel, channels=out)
    model = builder.model(x)
    for number, node in enumerate(model.graph.node):
        node.name = f"/stem/stem.{number}/Conv"
    assert _only_chain(_opened(model)).name == "/stem/stem"


def test_a_product_before_a_gemm(net, assert_exact):
    """The bias of the last one, and of a Gemm before it."""
    for first in ("matmul", "gemm"):
        builder = net(channels=9, spatial=())
        if first == "matmul":
            weight = builder.weight("one.weight", builder.generator.normal(size=(9, 3)))
            x = builder.op("MatMul", "input", weight, channels=3)
        else:
            x = builder.gemm("input", "one", 9, 3)
        _is_undone_exactly(_opened(builder.model(builder.gemm(x, "two", 3, 6, trans=0))), assert_exact)


# --- and what is none ---------------------------------------------------------------------------------------

POINT = {"kernel": (1, 1), **NONE}
APART = {
    "an activation": [{"out": 3, "after": "Relu"}, POINT],
    "an expansion": [{"out": 64}, POINT],
    "taps twice": [{"out": 3, "bias": False}, {"kernel": (3, 3)}],
    "taps twice with a point between": [
        {"out": 3, "bias": False, "kernel": (3, 1), "after": None},
        {"out": 3, "bias": False, **POINT},
        {"kernel": (3, 1), "pads": [0] * 4, "out": 4},
    ],
    "a bias in front of zeros": [{"out": 3, **POINT}, {"kernel": (3, 3)}],
    "zeros around sums": [{"out": 3, "bias": False}, {"kernel": (1, 1), "pads": [1] * 4}],
    "a strided point in front of taps": [
        {"out": 3, "kernel": (1, 1), "bias": False, "strides": [2, 2]},
        {"kernel": (3, 3)},
    ],
    "groups": [{"out": 4}, {"group": 2, **POINT}],
    "groups first": [{"out": 4, "group": 2}, POINT],
}


@pytest.mark.parametrize("layers", APART.values(), ids=APART)
def test_layers_that_are_not_one(net, layers):
    found = chains(_row(net, layers))
    assert [chain for chain in found if len(chain.layers) == len(layers)] == []


@pytest.mark.parametrize("why", ["a branch", "an output", "a bias without a place", "another axis"])
def test_what_is_read_elsewhere_or_otherwise(net, why):
    builder = net(channels=6, spatial=(9,) if why in ("another axis", "a bias without a place") else (9, 10))
    if why == "a bias without a place":
        builder.input_shape = ["batch", 6]
        x = builder.gemm("input", "a", 6, 3)
        outputs = [builder.op("MatMul", x, builder.constant(builder.generator.normal(size=(3, 8))))]
    elif why == "another axis":
        x = builder.conv("input", "a", 3, (1,))
        outputs = [builder.op("MatMul", x, builder.constant(builder.generator.normal(size=(9, 8))))]
    else:
        x = builder.conv("input", "a", 3)
        outputs = [builder.conv(x, "b", 8, (1, 1)), x if why == "an output" else builder.op("Relu", x)]
    assert chains(_opened(builder.model(*outputs))) == []


# --- how well it is cut -------------------------------------------------------------------------------------


def test_two_factors_are_cut_as_the_svd_of_their_product_would():
    rng = np.random.default_rng(0)
    factors = Factors((rng.normal(size=(5, 6, 3, 1)), rng.normal(size=(7, 5, 1, 3))))
    whole = factors.to_dense()
    values = np.linalg.svd(whole.transpose(1, 2, 0, 3).reshape(18, 21), compute_uv=False)
    for rank in range(1, 6):
        smaller = truncated(factors, [rank])
        assert smaller.ranks == [rank]
        error = np.linalg.norm(smaller.to_dense() - whole)
        assert error == pytest.approx(np.sqrt(np.sum(values[rank:5] ** 2)), abs=ROUNDING)


def test_three_factors_are_cut_within_the_bound():
    """‖ΔK‖² is at most the sum of what each rank alone would lose (Oseledets 2011, theorem 2.2)."""
    rng = np.random.default_rng(0)
    factors = Factors((rng.normal(size=(5, 6, 1, 1)), rng.normal(size=(6, 5, 3, 3)), rng.normal(size=(8, 6, 1, 1))))
    whole = factors.to_dense()
    into = np.linalg.svd(whole.transpose(1, 0, 2, 3).reshape(6, -1), compute_uv=False)
    out = np.linalg.svd(whole.reshape(8, -1), compute_uv=False)
    for ranks in ([5, 6], [3, 6], [5, 2], [3, 3], [1, 6]):
        smaller = truncated(factors, ranks)
        error = np.linalg.norm(smaller.to_dense() - whole) ** 2
        bound = np.sum(into[ranks[0] :] ** 2) + np.sum(out[ranks[1] :] ** 2)
        assert error <= bound + ROUNDING * np.sum(into**2)
        norms = [np.linalg.norm(kernel) for kernel in smaller.kernels]
        assert max(norms) < 10 * min(norms)
        assert all(new <= old for new, old in zip(smaller.ranks, ranks, strict=True))
    assert truncated(factors, [1, 6]).ranks == [1, 6]


@pytest.mark.parametrize("ranks", [[0], [6], [2, 2], []])
def test_ranks_that_there_are_not(ranks):
    factors = Factors((np.ones((5, 6, 1, 1)), np.ones((7, 5, 1, 1))))
    with pytest.raises(ValueError, match=r"expected ranks from 1 to \[5\], found"):
        truncated(factors, ranks)


def test_a_chain_of_zeros_is_cut_without_an_error(net):
    builder = net(channels=6)
    graph = _factorized(builder.model(builder.conv("input", "a", 8, (1, 1))), "linear", 4)
    for layer in layers_of(graph):
        own_input(layer.node, 1, layer.stored(np.zeros(layer.shape)), "zeros")
    assert cut(graph, _only_chain(graph), [2]) == 0.0
    assert all(np.isfinite(layer.kernel).all() for layer in layers_of(graph))
