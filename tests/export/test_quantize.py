"""int8: ranges by the method that damages least, judged on inputs that gave none."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rankfold.errors import InputError
from rankfold.export.calibration import Samples
from rankfold.export.fold import tidy
from rankfold.export.graphs import load, serialize
from rankfold.export.parity import exact_check, original, require
from rankfold.export.quantize import Int8, needs_reduced_range, quantized
from rankfold.export.ranges import METHODS, Ranges, tool_errors
from rankfold.records import Damage, Quantized

from .nets import Net

INT8 = Int8(reduce_range=True)


def network(folder: Path, batch: int | str = "batch") -> ir.Model:
    """Two convolutions and a classifier."""
    net = Net(channels=3, spatial=(8, 8))
    x = net.op("Relu", net.conv(net.op("Relu", net.conv("input", "a", 16)), "b", 8))
    net.input_shape[0] = batch
    return opened(net, net.head(x), folder)


def opened(net: Net, output: str, folder: Path) -> ir.Model:
    """Saved as net.onnx, read and made canonical."""
    onnx.save(net.model(output), folder / "net.onnx")
    model = load(folder / "net.onnx")
    tidy(model)
    return model


def quantize(model: ir.Model, samples: Samples, wish: Int8, folder: Path) -> tuple[ir.Model, Quantized, Damage]:
    """With what is said to be exact held against the float64 truth."""
    content = serialize(model)

    def exact(rewritten: ir.Model, what: str) -> None:
        require(exact_check(original(content, 4), serialize(rewritten), what))

    return quantized(model, samples, wish, folder, exact)[:3]


def inputs(count: int, outliers: float = 0.0, size: int = 8) -> Samples:
    """Normal pixels, of which the very first is `outliers`."""
    images = np.random.default_rng(1).normal(size=(count, 3, size, size)).astype(np.float32)
    images[0, 0, 0, 0] += outliers
    return Samples("noise", count, None, lambda start, stop: {"input": images[start:stop]})


@pytest.mark.parametrize("method", METHODS)
def test_ranges_lie_within_what_the_inputs_bring(tmp_path, method):
    model, samples = onnx.load(_saved(tmp_path)), inputs(40)
    seen = Ranges(model, samples, ["Conv"], tmp_path).by(method)["input"]
    low, high = (float(np.squeeze(one)) for one in seen.range_value)
    images = samples.read(0, 40)["input"]
    assert images.min() <= low < -1
    assert 1 < high <= images.max()
    if method == "minmax":
        assert (low, high) == (images.min(), images.max())


def _saved(folder: Path) -> Path:
    network(folder)
    return folder / "net.onnx"


def test_one_input_in_memory_at_a_time(tmp_path):
    most = []
    samples = inputs(8)
    counted = Samples("noise", 8, None, lambda start, stop: most.append(stop - start) or samples.read(start, stop))
    seen = Ranges(onnx.load(_saved(tmp_path)), counted, ["Conv"], tmp_path)
    for method in METHODS:
        seen.by(method)
    assert set(most) == {1}
    assert len(most) == 3 * 8  # the percentiles share their histograms


def test_an_outlier_is_cut_off_and_that_is_found_out_on_other_inputs(tmp_path):
    model = network(tmp_path)
    _, record, damage = quantize(model, inputs(128, outliers=300.0), INT8, tmp_path)
    errors = {one.method: one.error for one in record.tried if not one.equalized}
    assert set(errors) == set(METHODS)
    assert record.held_apart
    assert (record.n_ranges, damage.n) == (64, 64)
    assert record.method == min(errors, key=lambda method: errors[method])
    assert damage.error == min(one.error for one in record.tried)
    assert errors[record.method] < 0.5 * errors["minmax"]
    assert list(tmp_path.iterdir()) == [tmp_path / "net.onnx"]


def test_few_inputs_judge_themselves_and_a_method_may_be_asked_for(tmp_path):
    wish = Int8(reduce_range=False, method="percentile-99.9")
    _, record, damage = quantize(network(tmp_path), inputs(40), wish, tmp_path)
    assert not record.held_apart
    assert (record.n_ranges, damage.n, record.weight_bits) == (40, 40, 8)
    assert [(one.method, one.equalized) for one in record.tried] == [
        ("percentile-99.9", False),
        ("percentile-99.9", True),
    ]
    with pytest.raises(InputError, match="--method kl: expected one of minmax, percentile"):
        Int8(reduce_range=True, method="kl")


def test_a_batch_that_the_model_insists_on(tmp_path):
    _, record, damage = quantize(network(tmp_path, batch=4), inputs(70), Int8(True, "percentile-99.99"), tmp_path)
    assert record.n_ranges == 34
    assert damage.n == 32
    with pytest.raises(InputError, match="expected 4 inputs, the model's batch, found 3; give more data"):
        quantize(network(tmp_path, batch=4), inputs(3), INT8, tmp_path)


def test_relus_vanish_and_two_branches_are_added_in_int8_but_no_bias(tmp_path):
    net = Net(channels=3, spatial=(8, 8))
    stem = net.op("Relu", net.conv("input", "a", 16))
    x = net.op("Add", stem, net.op("Relu", net.conv(stem, "b", 16)))
    x = net.op("Add", x, net.weight("shift", np.ones((16, 1, 1))))
    small, _, _ = quantize(opened(net, net.head(x), tmp_path), inputs(40), Int8(True, "minmax"), tmp_path)
    assert "Relu" not in {node.op_type for node in small.graph}
    branches, _ = (node for node in small.graph if node.op_type == "Add")
    producers = [value.producer() for value in branches.inputs if value is not None]
    assert [node.op_type for node in producers if node is not None] == ["DequantizeLinear"] * 2
    assert "shift" in small.graph.initializers


@pytest.mark.parametrize(
    ("isa", "narrow"),
    [(["avx2"], True), (["avx2", "avx512f"], True), (["avx512f", "avx512_vnni"], False), (["asimddp"], False)],
)
def test_seven_bits_where_products_are_added_in_sixteen(isa, narrow):
    assert needs_reduced_range(isa) is narrow


def test_scales_are_shared_out_where_that_damages_less(tmp_path):
    """Channels between two layers that differ a thousandfold: the least would have no level to itself."""
    net = Net(channels=3, spatial=(8, 8))
    first = net.conv("input", "v", 8, (1, 1))
    x = net.conv(first, "u", 16)
    sizes = np.logspace(0, 3, 8, dtype=np.float32)
    net.weights["v.weight"] *= sizes[:, None, None, None]
    net.weights["v.bias"] *= sizes
    net.weights["u.weight"] /= sizes[:, None, None]
    model = opened(net, net.head(net.op("Sigmoid", x)), tmp_path)
    _, record, damage = quantize(model, inputs(64), Int8(True, "minmax"), tmp_path)
    before, after = record.tried
    assert record.equalized == ["v"]
    assert (before.equalized, after.equalized) == (False, True)
    assert damage.error == after.error < 0.1 * before.error


def test_the_tool_is_silent_and_logging_is_left_as_it_was():
    root = logging.getLogger()
    before = root.level

    def fail() -> None:
        assert not root.isEnabledFor(logging.WARNING)
        raise ValueError("no")

    with pytest.raises(InputError, match="cannot quantise it: no"), tool_errors():
        fail()
    assert root.level == before
