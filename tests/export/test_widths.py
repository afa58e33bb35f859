"""Fewer channels and ranks chosen together: widths mean what they say, and stairs decide."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from rankfold.export.budget import Budget, choose
from rankfold.export.calibration import Samples
from rankfold.export.damage import damage_of
from rankfold.export.graphs import refresh_shapes
from rankfold.export.layers import layers_of
from rankfold.export.prune import Channels
from rankfold.export.widths import Widths

from .nets import Net
from .test_budget import device, search_of, watch_on
from .test_prune import _opened, _residual, _samples

TILE = 8


@pytest.fixture
def model() -> ir.Model:
    made = _opened(_residual())
    refresh_shapes(made)
    return made


def widths_of(model: ir.Model, samples: Samples | None = None) -> Widths:
    return Widths(Channels(model, samples), TILE, {})


def test_families_and_the_shapes_they_leave(model):
    found = widths_of(model)
    assert found.options == {"stem": [16, 8], "one": [24, 16, 8], "three": [24, 16, 8]}
    assert sorted(found.of_layer("two")) == ["one", "stem"]
    assert found.kept("two", {"one": 8, "stem": 16}) == (16, 8)
    assert found.kept("three", {"stem": 8, "three": 16}) == (16, 8)
    assert len(found.shapes("one")) == 6
    assert set(found.shapes("one").values()) == {(o, i) for o in (24, 16, 8) for i in (16, 8)}


def test_of_many_families_some_stay_whole():
    """Eight branches of two widths each meet in one layer: 512 shapes with its own, of which 64 may be tried."""
    net = Net(channels=3, spatial=(8, 8))
    x = net.concat(*(net.block("input", f"branch{number}", 16) for number in range(8)))
    made = _opened(net.model(net.head(net.block(x, "last", 16))))
    refresh_shapes(made)
    found = widths_of(made)
    assert set(map(tuple, found.options.values())) == {(16, 8)}
    assert len(found.shapes("last")) == 64
    assert found.of_layer("branch0") == []
    assert found.kept("last", dict.fromkeys(found.of_layer("last"), 8)) == (8, 8 * 16 - 5 * 8)


@pytest.mark.parametrize("with_data", [False, True])
def test_what_is_applied_has_the_shapes_that_were_counted(model, with_data):
    samples = _samples(64) if with_data else None
    found = widths_of(model, samples)
    wanted = {"stem": 8, "one": 16}
    expected = {layer.name: found.kept(layer.name, wanted) for layer in layers_of(model) if layer.name != "fc"}
    copy = ir.from_proto(ir.to_proto(model))
    found.apply(copy, wanted, 1)
    assert {layer.name: layer.shape[:2] for layer in layers_of(copy) if layer.name != "fc"} == expected
    found.apply(model, wanted, 1, samples)
    assert {layer.name: layer.shape[:2] for layer in layers_of(model) if layer.name != "fc"} == expected


def test_the_damage_at_the_widths_that_were_tried_is_what_was_measured(model):
    samples = _samples(128)
    original = ir.to_proto(model)
    found = widths_of(model, samples)
    assert all(damages[found.options[name][0]] == 0 for name, damages in found.damage.items())
    assert all(damages[8] >= damages[max(damages)] for damages in found.damage.values())
    copy = ir.from_proto(original)
    Channels(copy, samples, saliency=found.channels.saliency).remove(copy, found.dead({"one": 8}))
    measured = damage_of(original, ir.to_proto(copy), samples, 256).error
    assert found.damage["one"][8] == pytest.approx(measured, rel=1e-6)


def test_a_budget_that_ranks_alone_do_not_meet_is_met_by_widths_too(model, tmp_path):
    watch = watch_on(device(), tmp_path)
    alone = choose(search_of(model, watch, TILE), Budget(damage=1e9), "board")
    assert set(alone.widths.values()) == set()
    budget = Budget(share=0.8 * alone.timing.fastest)
    found = choose(search_of(model, watch, TILE, widths_of(model)), budget, "board")
    assert found.timing.screened <= 0.8 * alone.timing.fastest
    assert any(width < max(widths_of(model).options[name]) for name, width in found.widths.items())
    assert found.timing.predicted == pytest.approx(found.timing.screened, rel=0.05)
