"""What lives beside a layer, counted by hand on a small residual network."""

from __future__ import annotations

import onnx_ir as ir

from rankfold.export.candidates import DENSE, Way
from rankfold.export.fold import tidy
from rankfold.export.graphs import refresh_shapes
from rankfold.export.layers import layers_of
from rankfold.export.memory import BYTES, held, own_bytes, weight_bytes

from .nets import Net

PIXELS = 8 * 8


def model() -> ir.Model:
    """input (4) → a (16) → Relu → b (8) → Relu → c (16) → Add with the first Relu → head."""
    net = Net(channels=4, spatial=(8, 8))
    first = net.op("Relu", net.conv("input", "a", 16))
    inner = net.op("Relu", net.conv(first, "b", 8))
    made = ir.from_proto(net.model(net.head(net.op("Add", net.conv(inner, "c", 16), first))))
    tidy(made)
    refresh_shapes(made)
    return made


def test_what_a_shortcut_keeps_alive_is_beside_the_layers_under_it():
    found = held(model())
    assert found.beside["a"] == 0
    assert found.beside["b"] == 0  # its input is the shortcut's value
    assert found.beside["c"] == BYTES * 16 * PIXELS
    assert found.floor == BYTES * 3 * 16 * PIXELS  # the Add: two values in, one out


def test_a_layer_holds_its_input_and_output_or_what_lies_between_factors():
    layer = next(one for one in layers_of(model()) if one.name == "c")
    assert own_bytes(layer, DENSE) == BYTES * (8 + 16) * PIXELS
    assert own_bytes(layer, Way("spatial", (12,))) == BYTES * (12 + 16) * PIXELS
    assert own_bytes(layer, Way("dense", (), (16, 4))) == BYTES * (4 + 16) * PIXELS
    assert weight_bytes(layer, DENSE) == BYTES * 16 * 8 * 9
    assert weight_bytes(layer, Way("spatial", (12,))) == BYTES * 12 * 3 * (16 + 8)
