"""Pruning: the channels that readers miss least, their readers fitted again, and the rest folded exactly."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rankfold.errors import CheckFailed
from rankfold.export.calibration import Samples
from rankfold.export.fold import tidy
from rankfold.export.judge import Judge
from rankfold.export.layers import layers_of
from rankfold.export.network import Network
from rankfold.export.parity import run
from rankfold.export.passes.fold_batchnorm import fold_batchnorm
from rankfold.export.passes.fold_channels import fold_channels
from rankfold.export.prune import block_losses, prune
from rankfold.export.reporting import silent
from rankfold.records import kept_by_layer

from .nets import Net
from .own_moments import own_moments


def _samples(count: int = 128) -> Samples:
    rough = np.random.default_rng(0).normal(size=(count, 3, 3, 3)).astype(np.float32)
    inputs = rough.repeat(4, axis=2).repeat(4, axis=3)
    return Samples("blocks", count, None, lambda start, stop: {"input": inputs[start:stop]})


def _residual() -> onnx.ModelProto:
    net = Net(channels=3, spatial=(12, 12))
    stem = net.block("input", "stem", 16)
    inner = net.block(stem, "one", 24)
    x = net.op("Relu", net.op("Add", stem, net.bn(net.conv(inner, "two", 16, bias=False), "bn_two")))
    return net.model(net.head(net.block(x, "three", 24)))


def _opened(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    tidy(model)
    fold_batchnorm(model)
    return model


def _macs(model: ir.Model) -> int:
    return sum(layer.macs or 0 for layer in layers_of(model))


def _pruned(ratio: float, samples: Samples | None, tile: int = 1) -> tuple[ir.Model, float, dict[str, int]]:
    """The pruned and folded model, its error on fresh data, and what went by layer."""
    proto = _residual()
    model = _opened(proto)
    zeroed = prune(model, ratio, tile=tile, samples=samples)
    fold_channels(model, tile)
    inputs = {"input": _samples(256).read(128, 256)["input"]}
    wanted = run(proto.SerializeToString(), inputs)[0]
    found = run(ir.to_proto(model).SerializeToString(), inputs)[0]
    return model, float(np.square(found - wanted).sum() / np.square(wanted - wanted.mean(0)).sum()), zeroed


def test_the_loss_of_a_block_is_that_of_the_best_refit():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 3, 2, 1))
    mixing = rng.normal(size=(6, 6))
    moments = own_moments(kernel, mixing @ mixing.T)
    for block, loss in enumerate(block_losses(kernel, moments, 3)):
        rest = [column for column in range(6) if column // 2 != block]
        within = moments.covariance[np.ix_(rest, rest)]
        refit = np.zeros((4, 6))
        refit[:, rest] = np.linalg.solve(within, moments.cross[:, rest].T).T
        assert loss == pytest.approx(moments.score(refit), rel=0.02)  # the damping


@pytest.mark.parametrize("tile", [1, 4])
@pytest.mark.parametrize("data", [False, True])
def test_so_many_macs_go_and_the_streams_stay_together(tile, data):
    dense = _macs(_opened(_residual()))
    model, _, zeroed = _pruned(0.4, _samples() if data else None, tile)
    assert 0.5 * dense < _macs(model) <= 0.6 * dense
    assert zeroed.get("stem", 0) == zeroed.get("two", 0)
    assert all(count % tile == 0 for count in zeroed.values())
    widths = {layer.name: layer.shape[0] for layer in layers_of(model)}
    full = {"stem": 16, "one": 24, "two": 16, "three": 24, "fc": 5}
    assert widths == {name: width - zeroed.get(name, 0) for name, width in full.items()}


def test_data_and_refitting_lose_less():
    errors = {data: _pruned(0.4, _samples() if data else None)[1] for data in (False, True)}
    assert errors[True] < 0.5 * errors[False]


def test_a_metric_counts_what_pruning_lost():
    """Judged against the network before any channel went, not against what pruning left."""
    model, samples = _opened(_residual()), _samples()
    fold_channels(model, 1)
    before = ir.to_proto(model)
    prune(model, 0.5, tile=1, samples=samples)
    kept = kept_by_layer(fold_channels(model, 1))
    lost = Judge(Network(model, samples, silent, before, kept), None, 1)({}, {})
    assert lost.metric == "agreement"
    assert lost.value > 0
    assert Judge(Network(model, samples, silent), None, 1)({}, {}).value == 0


def test_what_cannot_go_is_refused():
    with pytest.raises(CheckFailed, match=r"expected to prune 100% of the MACs, found at most"):
        _pruned(0.9999, None)
