"""Strength without guessing: a search on laws that are known, and networks that land where they were told to."""

from __future__ import annotations

import json
import math

import pytest
import torch

from rankfold.errors import InputError
from rankfold.records import LayerTime
from rankfold.train.regularizer import CompressionAware
from rankfold.train.steering import SLACK, seek, way
from rankfold.train.strength import STRONGEST

from .test_regularizer import idle_steps, network, sgd, train_step
from .test_regularizer import table as rows_of

STEPS, HOLD_AT = 18, 12


def law(leaves):
    """A step whose outcome is a function of its strength, and the strengths that it was taken with."""
    taken: list[float] = []

    def take(strength: float) -> float:
        taken.append(strength)
        return leaves(strength)

    return take, taken


@pytest.mark.parametrize("start", [0.02, 1.0, 50.0])
@pytest.mark.parametrize("wanted", [0.9, 0.5, 0.2])
def test_two_steps_find_the_strength_on_a_smooth_law(start, wanted):
    take, taken = law(lambda strength: math.exp(-strength))
    found = seek(take, start, wanted, most=STRONGEST, last=False)
    found = seek(take, found, wanted, most=STRONGEST, last=False)
    assert wanted * (1 - 2 * SLACK) <= math.exp(-found) <= wanted * (1 + SLACK)
    assert taken[-1] == found


@pytest.mark.parametrize("start", [1.0, 40.0])
@pytest.mark.parametrize(("last", "leaves"), [(False, 0.9), (True, 0.1)])
def test_on_a_cliff_it_waits_until_it_must_not(start, last, leaves):
    def cliff(strength: float) -> float:
        return 0.9 if strength < 3 else 0.1

    take, taken = law(cliff)
    found = seek(take, start, 0.5, most=STRONGEST, last=last)
    assert cliff(found) == leaves
    assert taken[-1] == found
    assert found == pytest.approx(3, rel=0.2)


def test_it_stops_at_the_strongest_and_where_strength_changes_nothing():
    take, taken = law(lambda strength: 1.0)
    assert seek(take, 1.0, 0.5, most=4.0, last=True) == 4.0
    assert taken == [1.0, 2.0, 4.0]
    take, taken = law(lambda strength: 0.3)  # less than wanted before the step, too
    assert seek(take, 1.0, 0.5, most=4.0, last=False) == 1.0
    assert taken == [1.0, 0.0]


def test_the_way_begins_whole_and_ends_at_the_share():
    points = [way(0.4, progress) for progress in (-1, 0, 0.25, 0.5, 1, 2)]
    assert points == sorted(points, reverse=True)
    assert (points[1], points[-2], points[-1]) == (1, 0.4, 0.4)


def steered(strength=1.0, seed=0, **settings):
    model = network(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    given = {"low_rank": 0.2 * strength, "group": 0.1 * strength, "every": 3, "hold_at": HOLD_AT, **settings}
    regularizer = CompressionAware(model, optimizer, **given)
    torch.manual_seed(1)
    return model, optimizer, regularizer


def run(model, optimizer, regularizer, steps=STEPS):
    for _ in range(steps):
        train_step(model, optimizer)
        regularizer.step()


@pytest.mark.parametrize(("target", "strength"), [({"target_macs": 0.5}, 0.03), ({"target_params": 0.4}, 10.0)])
def test_it_lands_on_the_target_from_any_strength(target, strength):
    model, optimizer, regularizer = steered(strength, **target)
    run(model, optimizer, regularizer)
    regularizer.finish()
    found = regularizer.reached()
    assert found is not None
    assert 0.6 * found.wanted < found.reached <= found.wanted  # a filter of conv1 is an eighth of nearly all
    assert found.held_from is not None
    assert found.held_from <= HOLD_AT + 3
    assert regularizer.missed() is None


def test_a_time_is_a_target_by_the_latency_table():
    rows = rows_of({"conv1": {2: 0.2, 4: 0.6}, "conv2": {2: 0.3, 5: 0.7}, "fc": {1: 1.2}})
    model, optimizer, regularizer = steered(target_latency=0.72, table=rows, group=0.0)
    run(model, optimizer, regularizer)
    found = regularizer.reached()
    assert found is not None
    ranks = {row.name: row.rank for row in regularizer.summary()}
    times = {"conv1": {2: 0.2, 4: 0.6}, "conv2": {2: 0.3, 5: 0.7}}
    whole = sum(times[name].get(ranks[name], 1.0) for name in times) / 3 + 1 / 3
    assert found.reached == pytest.approx(whole)
    assert found.reached <= 0.72


def test_steering_taken_up_from_its_state_does_the_same():
    whole = steered(target_macs=0.5)
    run(*whole)
    first = steered(target_macs=0.5)
    run(*first, steps=7)
    random = torch.get_rng_state()
    second = steered(target_macs=0.5)
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    second[2].load_state_dict(json.loads(json.dumps(first[2].state_dict())))
    torch.set_rng_state(random)
    run(*second, steps=STEPS - 7)
    assert second[2].state_dict() == whole[2].state_dict()
    for a, b in zip(whole[0].state_dict().values(), second[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_be_reached_is_said_with_a_remedy(caplog):
    model, optimizer, regularizer = steered(target_macs=0.05, least={"conv1": 8, "conv2": 12}, low_rank=0.0)
    run(model, optimizer, regularizer)
    regularizer.finish()
    said = regularizer.missed()
    assert said is not None
    assert "5.0% were wanted; see what has to stay (tile, least" in said
    assert said in caplog.messages


def test_a_ramp_raises_the_strength_from_nothing():
    falls = []
    for steps in (1, 2, 4):
        model = network()
        optimizer = sgd(model)
        regularizer = CompressionAware(model, optimizer, low_rank=0.4, every=steps, ramp=4)
        before = torch.linalg.matrix_norm(model.fc.weight.detach(), 2)
        idle_steps(model, optimizer, regularizer, steps)
        falls.append(float(before - torch.linalg.matrix_norm(model.fc.weight.detach(), 2)))
    assert falls == pytest.approx([0.1 * 0.4 / 4, 0.2 * 0.4 / 2, 0.4 * 0.4], rel=1e-3)


ROWS = [LayerTime(layers=["conv1"], share=1.0, form="channel", ranks=[2], ratio=0.5)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_macs": 0.5, "hold_at": None}, "a target needs hold_at, the optimizer step by which it is to be met"),
        ({"target_macs": 0.5, "start_at": 30}, "a target needs hold_at, .* after start_at"),
        ({"target_macs": 0.5, "low_rank": 0.0, "group": 0.0}, "a target needs low_rank or group above 0"),
        ({"target_macs": 0.5, "target_params": 0.5}, "give one of hold_macs, target_macs"),
        ({"target_macs": 0.5, "hold_macs": 0.5}, "give one of hold_macs, target_macs"),
        ({"target_params": 1.5}, r"a share of params must be within 0\.\.1"),
        ({"target_latency": 0.5}, "target_latency needs a table"),
        ({"target_latency": 0.5, "table": ROWS, "low_rank": 0.0}, "target_latency needs a table"),
        ({"target_macs": 0.5, "solver": "newton-schulz"}, "solver 'newton-schulz' lowers no rank before the"),
    ],
)
def test_targets_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        steered(**settings)
