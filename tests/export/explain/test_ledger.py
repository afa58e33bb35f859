"""The ledger's sums, on times that are given."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.export.explain.ledger import Ledger, Runs, Step, seconds, worth
from rankfold.runtime.latency import key_of

FIRST, SECOND, FLOOR = b"first", b"second", b"floor"


def step(cause: str, content: bytes, macs: int) -> Step:
    return Step(cause, "", [], "", content, macs)


def runs(times: dict[bytes, list[float]], reference: bytes = SECOND) -> Runs:
    found = Runs(reference, [2e-3])
    for content, own in times.items():
        found.ratios[key_of(content)] = [time / 2e-3 for time in own]
    return found


def test_bars_and_residual_are_the_gap_in_every_launch():
    rng = np.random.default_rng(0)
    times = {content: (rng.normal(1e-3, 1e-4, 8)).tolist() for content in (FIRST, FLOOR, b"one", b"two")}
    steps = [step("", SECOND, 40), step("a", b"one", 60), step("b", b"two", 100)]
    for floor in (FLOOR, None):
        ledger = Ledger(runs(times), FIRST, 100, floor, steps)
        bars = ledger.floor_costs() + ledger.costs(1) + ledger.costs(2)
        np.testing.assert_allclose(bars + ledger.residual(), ledger.gap(), rtol=1e-12)


def test_each_cause_gets_what_goes_with_it():
    """Dense 1 ms for 100 MACs, 0.2 ms of it whatever these; 40 MACs in thin factors, at ranks that run as half more."""
    dense, fixed = 1e-3, 0.2e-3
    hoped = fixed + (dense - fixed) * 0.4
    times = {FIRST: [dense] * 4, FLOOR: [fixed] * 4, b"padded": [2e-3] * 4, b"undone": [dense] * 4}
    steps = [step("", SECOND, 40), step("ranks off the tile", b"padded", 60), step("factors", b"undone", 100)]
    ledger = Ledger(runs(times), FIRST, 100, FLOOR, steps)
    assert ledger.gap() == pytest.approx([2e-3 - 0.4 * dense] * 4)
    assert ledger.floor_costs() == pytest.approx([fixed * 0.6] * 4)
    assert ledger.costs(1) == pytest.approx([(dense - fixed) * 0.2] * 4), "20 MACs were run that nobody counted"
    assert ledger.costs(2) == pytest.approx([2e-3 - hoped - (dense - fixed) * 0.2] * 4)
    assert ledger.residual() == pytest.approx([0.0] * 4, abs=1e-12)


def test_an_interval_is_over_launches():
    found = seconds(np.array([1.0, 2.0, 3.0]))
    assert found.value == pytest.approx(2)
    assert found.high - found.value == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert not found.is_clear
    assert seconds(np.array([1.0, 1.1, 0.9])).is_clear


def test_worth_is_what_a_change_saves():
    gained = worth(runs({b"better": [1.5e-3, 1.4e-3]}), {"cut": b"better"})
    assert gained["cut"].value == pytest.approx(0.55e-3)
