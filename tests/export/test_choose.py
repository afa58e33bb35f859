from __future__ import annotations

import onnx_ir as ir
import pytest

from rankfold.errors import CheckFailed, InputError
from rankfold.export.choose import plan_by_energy
from rankfold.export.passes.canonicalize import canonicalize
from rankfold.export.passes.factorize import factorize
from rankfold.export.passes.fold_batchnorm import fold_batchnorm
from rankfold.records import LayerTime
from rankfold.runtime.costs import count

FORMS = ["channel", "input-channel", "spatial", "linear"]


@pytest.fixture
def model(net) -> ir.Model:
    """A 3×3, a grouped, a separable pair and a strided layer, wide enough to be worth factorising."""
    builder = net()
    x = builder.block("input", "a", 24)
    x = builder.op("Relu", builder.conv(x, "g", 24, group=4))
    x = builder.block(builder.block(x, "b", 24, (5, 1)), "c", 32, (1, 5))
    x = builder.op("Relu", builder.conv(x, "d", 32, pads=[1, 1, 1, 1], strides=[2, 2]))
    graph = ir.from_proto(builder.model(builder.head(x)))
    canonicalize(graph)
    fold_batchnorm(graph)
    return graph


def test_every_layer_has_a_decision_and_a_reason(model):
    plan = plan_by_energy(model, form="channel", energy=0.5, keep=["fc"])
    assert list(plan.layers) == ["a", "g", "b", "c", "d", "fc"]
    assert plan.layers["g"].reason == "a convolution of 4 groups is not factorised along them"
    assert plan.layers["fc"].reason == "kept by name"
    assert all(decision.reason for decision in plan.layers.values())
    assert {name for name, one in plan.layers.items() if one.form != "dense"} >= {"b", "c", "d"}
    assert all((one.energy or 1) >= 0.5 for one in plan.layers.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tile", [1, 4, 8])
def test_counted_costs_equal_the_planned_ones(model, form, tile):
    plan = plan_by_energy(model, form=form, energy=0.6, tile=tile)
    factorize(model, plan.layers)
    counted = count(ir.to_proto(model))
    assert counted.macs == sum(decision.macs or 0 for decision in plan.layers.values())
    factorised = {name: one for name, one in plan.layers.items() if one.form != "dense"}
    assert factorised
    for name, decision in factorised.items():
        parts = [counted.layers[f"{name}_{suffix}"].macs or 0 for suffix in "vu"]
        assert sum(parts) == decision.macs
        assert sum(parts) < (decision.macs_dense or 0)
        assert decision.ranks[0] % tile == 0 or decision.ranks[0] == decision.full_rank


def test_with_a_latency_table_ranks_are_those_that_are_faster(model):
    """b and c have useful ranks, d none that holds the energy, a none at all."""
    times = {"a": {4: 1.2}, "b": {3: 0.5, 9: 0.7}, "c": {7: 0.5, 20: 0.6}, "d": {2: 0.3}}
    rows = [
        LayerTime(layers=[name], share=0.25, form="channel", ranks=[rank], ratio=ratio)
        for name, ways in times.items()
        for rank, ratio in ways.items()
    ]
    plain = plan_by_energy(model, form="channel", energy=0.5, tile=4).layers
    found = plan_by_energy(model, form="channel", energy=0.5, tile=4, table=rows).layers
    assert all(4 < plain[name].ranks[0] < 20 for name in "bcd")
    assert {name: found[name].ranks for name in found if found[name].form != "dense"} == {"b": [9], "c": [20]}
    assert "in the channel form no rank from the one it needs on is faster than dense" in found["d"].reason


def test_full_energy_saves_nothing_on_random_kernels_and_says_so(model):
    plan = plan_by_energy(model, form="channel", energy=1.0)
    assert {decision.form for decision in plan.layers.values()} == {"dense"}
    assert "no fewer MACs in the channel form" in plan.layers["d"].reason


@pytest.mark.parametrize("form", FORMS)
def test_a_parameter_budget_is_met_and_nearly_used(model, form):
    dense = count(ir.to_proto(model)).parameters
    budget = int(0.6 * dense)
    plan = plan_by_energy(model, form=form, energy=1.0, parameters=budget)
    factorize(model, plan.layers)
    found = count(ir.to_proto(model)).parameters
    largest_step = 3 * (32 + 9 * 32)  # what one more rank costs, in up to three layers that step together
    assert budget - largest_step <= found <= budget


def test_an_infeasible_budget_names_the_smallest_network(model):
    with pytest.raises(CheckFailed, match=r"at most 10 parameters, found \d+ at the smallest ranks; allow"):
        plan_by_energy(model, form="channel", energy=1.0, parameters=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "tucker"}, "unknown form 'tucker'; choose one of channel, input-channel"),
        ({"energy": 0.0}, r"energy in \(0, 1\], found 0"),
        ({"energy": float("nan")}, r"energy in \(0, 1\], found nan"),
        ({"tile": 0}, "tile of at least 1, found 0"),
        ({"keep": ["nope"]}, "unknown layer 'nope'; the model has a, g, b"),
    ],
)
def test_bad_options(model, options, message):
    with pytest.raises(InputError, match=message):
        plan_by_energy(model, **({"form": "channel", "energy": 0.5} | options))
