"""Curves of harm against time: on a device of stairs the table's rule lies below the others."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from rankfold.export.damage import scored
from rankfold.export.layers import layers_of
from rankfold.export.rules import POINTS, curves, drawn_by_energy
from rankfold.export.wish import AUTO_FORMS
from rankfold.records import Damage, RulePoint

from .test_budget import device, model, search_of, watch_on

__all__ = ["model"]
TILE = 2


def all_scored(model: ir.Model):
    return {layer.name: scored(layer, AUTO_FORMS, TILE) for layer in layers_of(model) if not layer.closed}


def harm_at(points: list[RulePoint], time: float) -> float:
    """The least damage among the points that take no longer."""
    return min((point.damage for point in points if point.time <= time), default=float("inf"))


def test_the_tables_rule_is_the_least_harmful_for_its_time(model, tmp_path):
    search = search_of(model, watch_on(device(), tmp_path))
    found = {one.rule: one.points for one in curves(search, model, all_scored(model), TILE, None)}
    assert list(found) == ["latency", "macs", "energy, channel", "energy, spatial"]
    assert all(points[0].layers == 0 and points[0].damage == 0 for points in found.values())
    assert len(found["latency"]) == len(found["macs"]) == POINTS + 1
    ours = found["latency"]
    for rule in ("macs", "energy, channel", "energy, spatial"):
        for point in found[rule][1:]:
            assert harm_at(ours, point.time * 1.15) <= point.damage * (1 + 1e-6) + 1e-9, (rule, point)
    assert any(harm_at(ours, point.time) < 0.9 * point.damage for point in found["macs"][1:])


def test_points_are_judged_where_there_is_data(model, tmp_path):
    def judged(candidates, widths) -> Damage:
        return Damage(data="d", n=10, error=0.01 * sum(map(bool, candidates.values())), agreement=0.9)

    search = search_of(model, watch_on(device(), tmp_path))
    for curve in curves(search, model, all_scored(model), TILE, judged):
        for point in curve.points[1:]:
            assert point.damage == pytest.approx(0.01 * point.layers)
            assert point.drop == pytest.approx(0.1)


def test_one_share_of_the_singular_values_in_every_layer(model):
    drawn = drawn_by_energy(model, "spatial", 0.8, all_scored(model), TILE)
    assert set(drawn.draft.ways) <= {"a", "b", "c", "fc"}
    assert all(way.form == "spatial" for name, way in drawn.draft.ways.items() if name != "fc")
    closer = drawn_by_energy(model, "spatial", 0.95, all_scored(model), TILE)
    assert closer.damage < drawn.damage
