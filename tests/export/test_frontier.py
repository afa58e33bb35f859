"""The frontier against every combination, on problems small enough to try them all."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from rankfold.errors import CheckFailed
from rankfold.export.damage import Candidate
from rankfold.export.frontier import frontier, hull, within


def problem(seed: int) -> tuple[dict[str, int], dict[str, list[Candidate]]]:
    rng = np.random.default_rng(seed)
    dense = {name: int(rng.integers(80, 200)) for name in "abcd"}
    found = {
        name: [Candidate("channel", (rank,), int(macs * share), 0, 0.0, float(rng.exponential() * (1 - share) ** 2))
               for rank, share in enumerate(rng.uniform(0.1, 0.95, 5), 1)]
        for name, macs in dense.items()
    }  # fmt: skip
    return dense, found


@pytest.mark.parametrize("seed", range(20))
def test_each_step_is_the_best_at_its_cost(seed):
    dense, found = problem(seed)
    options = [[(dense[name], 0.0), *((c.macs, c.damage) for c in found[name])] for name in dense]
    every = [(sum(m for m, _ in combined), sum(d for _, d in combined)) for combined in product(*options)]
    steps = frontier(dense, found)
    assert steps[0].cost == sum(dense.values())
    for before, step in pairwise(steps):
        assert step.cost < before.cost
        assert step.damage > before.damage
        assert step.damage <= min(damage for macs, damage in every if macs <= step.cost) + 1e-12
        chosen = step.chosen
        assert step.cost == sum(c.macs if (c := chosen[name]) else dense[name] for name in dense)


def test_a_candidate_that_costs_more_and_damages_more_is_never_taken():
    good, worse = Candidate("spatial", (2,), 50, 0, 0.1, 0.1), Candidate("channel", (2,), 60, 0, 0.2, 0.2)
    assert hull(100, [worse, good]) == [good]


def test_a_budget_below_the_smallest_is_refused():
    steps = frontier({"a": 100}, {"a": [Candidate("channel", (1,), 40, 0, 0.5, 0.5)]})
    assert within(steps, 99).cost == 40
    assert within(steps, 100).chosen == {"a": None}
    with pytest.raises(CheckFailed, match="expected at most 39 MACs, found 40 at the smallest ranks; allow 40 or more"):
        within(steps, 39)
