"""The ledger's sums, on times that are given."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.export.explain.ledger import FIRST, FLOOR, IDLE, SECOND, Ledger, Step, Times, over_launches


def step(cause: str, macs: int) -> Step:
    return Step(cause, "", [], "", b"", macs)


def ledger(times: dict[str, list[float]], *steps: Step) -> Ledger:
    """The second file takes 2 ms."""
    found = Times(SECOND, b"", [2e-3])
    found.ratios.update({name: [time / 2e-3 for time in own] for name, own in times.items()})
    return Ledger(found, 100, steps)


@pytest.mark.parametrize("floor", [{}, {FLOOR: [3e-4] * 8, IDLE: [1e-4] * 8}, {FLOOR: [9.0] * 8, IDLE: [0.0] * 8}])
def test_bars_and_residual_are_the_gap_in_every_launch(floor):
    rng = np.random.default_rng(0)
    times = {name: (rng.normal(1e-3, 1e-4, 8)).tolist() for name in (FIRST, "a", "b")} | floor
    found = ledger(times, step("", 40), step("a", 60), step("b", 100))
    bars = found.floor_costs() + found.costs(1) + found.costs(2)
    np.testing.assert_allclose(bars + found.residual(), found.gap(), rtol=1e-12)
    assert found.has_floor == (floor.get(FLOOR) == [3e-4] * 8), "a part is less than the whole"


def test_each_cause_gets_what_goes_with_it():
    """Dense 1 ms for 100 MACs, 0.2 ms of it whatever these; 40 MACs in thin factors, at ranks that run as half more."""
    dense, fixed = 1e-3, 0.2e-3
    hoped = fixed + (dense - fixed) * 0.4
    times = {FIRST: [dense], FLOOR: [fixed + 1e-5], IDLE: [1e-5], "ranks": [2e-3], "factors": [dense]}
    found = ledger({n: own * 4 for n, own in times.items()}, step("", 40), step("ranks", 60), step("factors", 100))
    assert found.gap() == pytest.approx([2e-3 - 0.4 * dense] * 4)
    assert found.floor_costs() == pytest.approx([fixed * 0.6] * 4)
    assert found.costs(1) == pytest.approx([(dense - fixed) * 0.2] * 4), "20 MACs were run that nobody counted"
    assert found.costs(2) == pytest.approx([2e-3 - hoped - (dense - fixed) * 0.2] * 4)
    assert found.residual() == pytest.approx([0.0] * 4, abs=1e-12)


def test_an_interval_is_over_launches():
    found = over_launches(np.array([1.0, 2.0, 3.0]))
    assert found.value == pytest.approx(2)
    assert found.high - found.value == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert not found.is_clear
    assert over_launches(np.array([1.0, 1.1, 0.9])).is_clear


def test_a_gain_is_what_a_file_takes_less():
    times = ledger({"better": [1.5e-3, 1.4e-3]}).times
    assert times.gains("better") == pytest.approx([0.5e-3, 0.6e-3])
