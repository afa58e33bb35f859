"""What a layer sees, for every kind of layer: patches times kernel are its outputs; moments are those of the data."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from rankfold.export import moments as module
from rankfold.export.calibration import Samples
from rankfold.export.layers import Layer, layers_of
from rankfold.export.moments import collect, patches
from rankfold.export.passes.canonicalize import canonicalize
from rankfold.export.walk import Walk

from .nets import Net
from .passes.test_factorize import FLAT, VARIANTS

CLOSE = 1e-4  # float32 outputs of the runtime against float64 products


def _layer(net: Net, output: str) -> tuple[Layer, ir.Model]:
    graph = ir.from_proto(net.model(output))
    canonicalize(graph)
    return layers_of(graph)[-1], graph


def _samples(shape: tuple[int, ...], seed: int = 0) -> Samples:
    inputs = np.random.default_rng(seed).normal(1, 1, shape).astype(np.float32)
    return Samples("noise", len(inputs), None, lambda start, stop: {"input": inputs[start:stop]})


def _check(layer: Layer, graph: ir.Model, shape: tuple[int, ...]) -> None:
    proto, samples = ir.to_proto(graph), _samples((5, *shape))
    inputs = samples.read(0, 5)["input"]
    rows, kept = patches(inputs, layer, np.random.default_rng(0))
    walk = Walk(proto, samples)
    ((outputs,),) = walk.peek([layer.node.outputs[0].name or ""])
    wanted = outputs if outputs.ndim < 3 or layer.node.op_type == "MatMul" else np.moveaxis(outputs, 1, -1)
    bias = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
    shift = 0 if bias is None or bias.const_value is None else bias.const_value.numpy()
    found = rows @ layer.kernel.reshape(len(layer.kernel), -1).T + shift
    np.testing.assert_allclose(found, wanted.reshape(-1, wanted.shape[-1]), atol=CLOSE)
    assert len(kept) == len(rows)
    moments = collect(layer, walk, walk)
    np.testing.assert_allclose(moments.mean_in, rows.mean(0), atol=CLOSE)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), atol=CLOSE)
    np.testing.assert_allclose(moments.bias(layer.kernel), shift + np.zeros(len(layer.kernel)), atol=1e-3)
    assert moments.score(layer.kernel) < CLOSE


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_patches_of_a_convolution(options):
    net = Net(channels=4, spatial=(11, 12))
    _check(*_layer(net, net.conv("input", "a", 6, **options)), (4, 11, 12))


@pytest.mark.parametrize("options", FLAT.values(), ids=FLAT)
def test_patches_of_a_convolution_1d(options):
    net = Net(channels=4, spatial=(21,))
    _check(*_layer(net, net.conv("input", "a", 6, **options)), (4, 21))


@pytest.mark.parametrize("trans", [0, 1])
def test_rows_of_a_gemm(trans):
    net = Net(channels=9, spatial=())
    _check(*_layer(net, net.gemm("input", "a", 9, 6, trans=trans)), (9,))


def test_rows_of_a_matmul():
    net = Net(channels=7, spatial=(9,))
    product = net.op("MatMul", "input", net.weight("a.weight", net.generator.normal(size=(9, 6))))
    _check(*_layer(net, product), (7, 9))


def test_a_sample_of_positions_is_seeded_and_near_the_whole(monkeypatch):
    net = Net(channels=4, spatial=(16, 16))
    layer, graph = _layer(net, net.conv("input", "a", 6))
    proto, samples = ir.to_proto(graph), _samples((40, 4, 16, 16))
    walk = Walk(proto, samples)
    whole = collect(layer, walk, walk)
    monkeypatch.setattr(module, "_LEAST_ROWS", 4000)
    some, again = (collect(layer, walk, Walk(proto, samples)) for _ in range(2))
    assert np.array_equal(some.covariance, again.covariance)
    assert not np.array_equal(some.covariance, whole.covariance)
    assert np.linalg.norm(some.covariance - whole.covariance) < 0.2 * np.linalg.norm(whole.covariance)
