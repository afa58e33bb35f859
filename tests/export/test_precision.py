"""Layers that stay float: where int8 is slower on the device, with what goes in and out; and where it damages most."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from rankfold.devices import probe
from rankfold.errors import CheckFailed, InputError
from rankfold.export.candidates import Place, place_of
from rankfold.export.int8_layers import (
    ALL_SIDES,
    Around,
    Sides,
    Times,
    fastest_floats,
    int8_models_of,
    surroundings,
    with_additions,
)
from rankfold.export.layers import layers_of
from rankfold.export.quantize import Int8, quantized
from rankfold.export.sessions import session
from rankfold.runtime.latency import Stopwatch, stopwatch
from rankfold.runtime.turns import Options

from ..conftest import SOAK
from ..runtime.fake_device import FakeDevice
from .nets import Net
from .test_quantize import inputs, opened

EDGE_S, NODE_S = 30e-6, 1e-6


def _fine(model: ir.Model, what: str) -> None:
    """Exact enough: tests/export/test_quantize.py looks."""


def seconds(path: Path) -> float:
    """A MAC takes 1 ns, in int8 a quarter, but four times as long from few channels; a way in or out takes 30 µs."""
    return _seconds(path.read_bytes())


@cache
def _seconds(content: bytes) -> float:
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content), data_prop=True)
    graph = model.graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    shapes |= {entry.name: list(entry.dims) for entry in graph.initializer}
    around = surroundings(model)
    total = NODE_S * len(graph.node)
    for node in graph.node:
        if node.op_type == "Conv":
            weight = shapes[node.input[1]]
            macs = math.prod(weight) * math.prod(shapes[node.output[0]][2:] or [1])
            few = weight[0] < 16 and weight[1] > 1
            total += macs * 1e-9 * ((4 if few else 0.25) if node.name in around else 1)
    for one in around.values():
        sides = one.sides(())
        total += EDGE_S * ((not sides.before) + (not sides.after))
    return total


def watch_on(folder: Path) -> Stopwatch:
    device = FakeDevice({}, time_of=seconds)
    with device.launch() as process:
        facts = probe.facts(process)
    return stopwatch(device, facts, Options(), folder / "table.sqlite")


def network(folder: Path) -> ir.Model:
    """Few channels first, then many."""
    net = Net(channels=3, spatial=(16, 16))
    net.input_shape[0] = 1
    x = net.op("Relu", net.conv(net.op("Relu", net.conv("input", "few", 8)), "more", 8))
    x = net.op("Relu", net.conv(net.op("Relu", net.conv(x, "many", 32)), "most", 32))
    return opened(net, net.head(x), folder)


def test_layers_that_int8_makes_slower_stay_float(tmp_path):
    wish = Int8(True, "minmax", watch=watch_on(tmp_path))
    small, record, _, floats = quantized(network(tmp_path), inputs(8, size=16), wish, tmp_path, _fine)
    assert set(floats) == {"few", "more", "fc"}
    assert record.floats == list(floats)
    assert all("float: as int8 it takes" in reason for reason in floats.values())
    assert record.timing is not None
    assert record.timing.mixed is not None
    assert record.timing.mixed < record.timing.int8
    in_int8 = set(surroundings(ir.to_proto(small)))
    assert in_int8 >= {"many", "most"}
    assert not in_int8 & set(floats)


@pytest.mark.skipif(not SOAK, reason="times as many candidates again: in soak")
def test_the_whole_file_has_the_last_word(tmp_path):
    """Alone the wide layers seem faster in float here; in place they are not."""
    device = FakeDevice({}, time_of=lambda path: seconds(path) * (3 if _is_mixed(path) else 1))
    with device.launch() as process:
        watch = stopwatch(device, probe.facts(process), Options(), tmp_path / "table.sqlite")
    wish = Int8(True, "minmax", watch=watch)
    _, record, _, floats = quantized(network(tmp_path), inputs(8, size=16), wish, tmp_path, _fine)
    assert not floats
    assert record.timing is not None
    assert record.timing.mixed is not None
    assert record.timing.mixed > record.timing.int8


def _is_mixed(path: Path) -> bool:
    return _is_mixed_model(path.read_bytes())


@cache
def _is_mixed_model(content: bytes) -> bool:
    model = onnx.load_model_from_string(content)
    names = {node.name for node in model.graph.node if node.op_type == "Conv"}
    return "few" in names and 0 < len(names & set(surroundings(model))) < len(names)


def test_kept_by_name(tmp_path):
    wish = Int8(True, "minmax", keep=("many",))
    small, record, _, floats = quantized(network(tmp_path), inputs(8, size=16), wish, tmp_path, _fine)
    assert floats == {"many": "float: kept by name"}
    assert record.floats == ["many"]
    assert "many" not in surroundings(ir.to_proto(small))
    with pytest.raises(InputError, match="unknown layer 'none'; the model has few, more, many, most, fc"):
        quantized(network(tmp_path), inputs(8, size=16), Int8(True, keep=("none",)), tmp_path, _fine)


def test_the_layers_that_damage_most_for_their_cost_go_back_until_it_is_little_enough(tmp_path):
    net = Net(channels=3, spatial=(8, 8))
    model, samples = (
        opened(net, net.head(net.conv(net.op("Relu", net.conv("input", "a", 4)), "b", 8)), tmp_path),
        inputs(64),
    )
    *_, whole, none = quantized(model, samples, Int8(True, "minmax"), tmp_path, _fine)
    assert not none
    wanted = 0.9 * whole.error
    *_, damage, floats = quantized(model, samples, Int8(True, "minmax", damage=wanted), tmp_path, _fine)
    assert 1 <= len(floats) < 3
    assert damage.error <= wanted < whole.error
    assert all("of the output error away" in reason for reason in floats.values())
    with pytest.raises(CheckFailed, match="with all layers float but one it is still"):
        quantized(model, samples, Int8(True, "minmax", damage=1e-12), tmp_path, _fine)
    with pytest.raises(InputError, match="--damage 2: expected a share of the outputs' variance"):
        Int8(True, damage=2)


def _times(float_s: float, inside_s: float) -> Times:
    return Times(float_s, {sides: inside_s + 5.0 * ((not sides.before) + (not sides.after)) for sides in ALL_SIDES})


def test_a_run_of_layers_goes_together():
    """Each alone in float would cost its neighbours more than it saves."""
    names = list("abcdef")
    around = {
        name: Around((names[index - 1] if index else None,), (names[index + 1] if index < 5 else None,))
        for index, name in enumerate(names)
    }
    times = {name: _times(10.0, 12.0) if name in "bcd" else _times(20.0, 3.0) for name in names}
    assert fastest_floats(times, around, ()) == set()  # 3 × 2 saved, 2 × 5 for the ways
    times = {name: _times(10.0, 15.0) if name in "bcd" else _times(20.0, 3.0) for name in names}
    assert fastest_floats(times, around, ()) == {"b", "c", "d"}
    assert fastest_floats(times, around, ("b",)) == {"c", "d"}


def test_what_stands_around_a_layer(tmp_path):
    net = Net(channels=3, spatial=(16, 16))
    stem = net.op("Relu", net.conv("input", "stem", 8))
    x = net.op("Add", stem, net.conv(stem, "inner", 8))
    x = net.conv(net.op("Sigmoid", x), "last", 8)
    model = opened(net, net.head(x), tmp_path)
    small, *_ = quantized(model, inputs(8, size=16), Int8(True, "minmax"), tmp_path, _fine)
    found = surroundings(ir.to_proto(small))
    add = next(name for name in found if "dd" in name)
    assert found["stem"].sources == (None,)
    assert set(found["stem"].readers) == {add, "inner"}
    assert found["inner"] == Around(("stem",), (add,))
    assert found["last"].sources == (None,)
    assert found[add].sources == ("stem", "inner")
    assert found["stem"].sides(()) == Sides(before=False, after=True)
    assert found["inner"].sides(["stem"]) == Sides(before=False, after=True)
    assert with_additions({"stem"}, found) == {"stem"}
    assert with_additions({"stem", "inner"}, found) == {"stem", "inner", add}
    kept = Int8(True, "minmax", keep=("stem", "inner"))
    small, *_ = quantized(model, inputs(8, size=16), kept, tmp_path, _fine)
    assert add not in surroundings(ir.to_proto(small))


def _places(folder: Path) -> list[Place]:
    net = Net(channels=16, spatial=(8, 8))
    x = net.op("Relu", net.conv("input", "a", 16, strides=[2, 2], pads=[1, 1, 1, 1]))
    x = net.op("Sigmoid", net.conv(x, "b", 32, (1, 1), bias=False))
    model = opened(net, net.head(x), folder)
    return [place_of(layer) for layer in layers_of(model)]


@pytest.mark.parametrize("sides", ALL_SIDES, ids=str)
def test_candidates_run_in_int8_as_they_would_in_the_network(tmp_path, sides):
    """ONNX Runtime makes integer kernels of the layer and of neighbours in int8, and float ones of the others."""
    for place in _places(tmp_path):
        for model in int8_models_of(place, sides):
            onnx.checker.check_model(onnx.load_model_from_string(model))
            inputs = session(model, "a candidate").get_inputs()
            assert len(inputs) == 1
        kinds = _optimized(int8_models_of(place, sides)[0], tmp_path)
        if place.operator == "Conv":
            assert kinds.count("QLinearConv") == 1 + sides.before + sides.after
            assert kinds.count("Conv") == 2 - sides.before - sides.after
        else:
            assert kinds.count("QGemm") == 1


def _optimized(model: bytes, folder: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 4
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
