"""Each caution appears when its one thing is wrong, alone, and a quiet bench has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rankfold.records import Bench, CpuFacts, Weather
from rankfold.runtime.diagnose import diagnose

from .conftest import CALM, FACTS, Simulate, make_bench, make_launch, quiet_samples

QUIET = quiet_samples()


def whats(bench: Bench) -> list[str]:
    cautions = diagnose(bench)
    assert all(len(caution.remedy) > 10 for caution in cautions)
    return [caution.what for caution in cautions]


def with_context(**changes: Any) -> Bench:
    bench = make_bench(QUIET, couples=4)
    return bench.model_copy(update={"context": bench.context.model_copy(update=changes)})


def with_blocks(**changes: Any) -> Bench:
    bench = make_bench(QUIET, couples=4)
    pairs = [
        pair.model_copy(update={"blocks": [block.model_copy(update=changes) for block in pair.blocks]})
        for pair in bench.pairs
    ]
    return bench.model_copy(update={"pairs": pairs})


def cores(governor: str | None, frequency_hz: int | None) -> Weather:
    core = CpuFacts(core=3, governor=governor, frequency_hz=frequency_hz)
    return CALM.model_copy(update={"cores": [core]})


def with_providers() -> Bench:
    bench = make_bench(QUIET, couples=4)
    elsewhere = [make_launch(0, ("XnnpackExecutionProvider", "CPUExecutionProvider"))]
    variants = [bench.variants[0], bench.variants[1].model_copy(update={"launches": elsewhere})]
    return bench.model_copy(update={"variants": variants})


def quantised(step_s: float) -> Simulate:
    def simulate(name: str, turn: int, turns: int) -> np.ndarray:
        return np.round(QUIET(name, turn, turns) / step_s) * step_s

    return simulate


def two_modes(slow: float, share: float, whole_launch: bool) -> Simulate:
    """One launch in some, or a stretch of each launch, runs `slow` times slower (both processes alike)."""
    rng = np.random.default_rng(3)
    state = {"factor": 1.0}

    def simulate(name: str, turn: int, turns: int) -> np.ndarray:
        if turn == 0:
            state["factor"] = slow if rng.random() < share else 1.0
        in_burst = turn < share * turns
        factor = state["factor"] if whole_launch else (slow if in_burst else 1.0)
        return QUIET(name, turn, turns) * factor

    return simulate


@pytest.mark.parametrize("threads", [1, 2])
def test_a_quiet_bench_has_no_caution(threads: int):
    assert whats(make_bench(QUIET, pairs=24, couples=4, threads=threads)) == []


def test_performance_governor_steady_clock_and_old_throttling_are_no_caution():
    steady = cores("performance", 1_500_000_000)
    assert whats(with_context(weather_before=steady, weather_after=steady)) == []
    before_boot = CALM.model_copy(update={"throttled": "firmware 0x50000"})  # it has occurred, not now
    assert whats(with_context(weather_before=before_boot, weather_after=before_boot)) == []
    assert whats(with_context(weather_after=None)) == []


CASES: list[tuple[str, Callable[[], Bench]]] = [
    ("compact: 7 pairs, an interval wants 8 at 1 thread", lambda: make_bench(QUIET, pairs=7)),
    ("compact: 8 pairs, an interval wants 24 at 2 thread", lambda: make_bench(QUIET, threads=2)),
    ("the hypervisor took 5.", lambda: with_blocks(steal_s=8e-4)),
    ("timed runs were interrupted", lambda: with_blocks(involuntary_switches=2)),
    ("busy before we began: load 2.0 on 4 cores",
     lambda: with_context(weather_before=CALM.model_copy(update={"load_1min": 2.0}))),
    ("frequency governor ondemand", lambda: with_context(weather_before=cores("ondemand", None))),
    ("throttled (flags firmware 0x50005)",
     lambda: with_context(weather_after=CALM.model_copy(update={"throttled": "firmware 0x50005"}))),
    ("throttled (flags events 3 then events 9)",
     lambda: with_context(weather_before=CALM.model_copy(update={"throttled": "events 3"}),
                          weather_after=CALM.model_copy(update={"throttled": "events 9"}))),
    ("core 3 changed from 1500 to 1200 MHz",
     lambda: with_context(weather_before=cores(None, 1_500_000_000), weather_after=cores(None, 1_200_000_000))),
    ("compact: a run takes 30 µs", lambda: make_bench(quiet_samples(dense_s=6e-5), couples=4)),
    ("the clock advances in steps of 10 µs",
     lambda: make_bench(quantised(1e-5), couples=4)),
    ("not all models run on the same providers", with_providers),
    ("a virtual machine", lambda: with_context(facts=FACTS.model_copy(update={"hypervisor": True}))),
]  # fmt: skip


@pytest.mark.parametrize(("what", "make"), CASES, ids=[what[:30] for what, _ in CASES])
def test_one_thing_wrong_gives_that_caution_alone(what: str, make: Callable[[], Bench]):
    found = whats(make())
    assert found
    assert all(what in line or "the clock advances" in line for line in found)
    assert any(what in line for line in found)


def test_a_ratio_that_differs_from_pair_to_pair_is_a_wide_interval():
    rng = np.random.default_rng(0)
    level = {"now": 1.0}

    def simulate(name: str, turn: int, turns: int) -> np.ndarray:
        if turn == 0:
            level["now"] = float(np.exp(0.1 * rng.standard_normal()))
        return QUIET(name, turn, turns) * (level["now"] if name == "compact" else 1.0)

    found = whats(make_bench(simulate, couples=4))
    assert any(line.startswith("compact: the interval is ±") for line in found)
    assert not any(line.startswith("dense") for line in found)


@pytest.mark.parametrize("whole_launch", [True, False], ids=["launches", "bursts"])
def test_a_two_level_slowdown_of_the_machine_is_seen_in_the_samples(whole_launch: bool):
    """1.57 is what was seen on a shared machine whose steal reads 0; the ratio itself stays right."""
    bench = make_bench(two_modes(1.57, 0.3, whole_launch))
    said = "launches fall into modes" if whole_launch else "slower than their launch's best"
    found = whats(bench)
    assert {line.split(":")[0] for line in found if said in line} == {"dense", "compact"}
    assert bench.comparisons[0].low < 2.0 < bench.comparisons[0].high
