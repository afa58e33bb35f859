"""The statistics, proved on samples whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, median, stdev

import numpy as np
import pytest

from rankfold.records import Block, Pair
from rankfold.runtime import stats
from rankfold.runtime.turns import mirrored_order

COMPARISONS, PAIRS, COUPLES, RUNS = 500, 8, 6, 5
TRUE_RATIO = 1.01
# A 95 % interval counted 500 times has a standard deviation of 0.97 %: three of them either way.
COVERED_LOW, COVERED_HIGH = 0.92, 0.98
EXACT = 1e-12  # float64 rounding of a handful of logarithms

Noise = Callable[[np.random.Generator, int], np.ndarray]


def pair_of(order: list[str], times: np.ndarray) -> Pair:
    """A pair whose block t holds row t of `times` (turns × runs), in seconds."""
    blocks = [
        Block.model_construct(variant=name, start_s=0.0, samples_s=row.tolist())
        for name, row in zip(order, times, strict=True)
    ]
    return Pair.model_construct(baseline="a", variant="b", seed=0, blocks=blocks)


def quiet(rng: np.random.Generator, turns: int) -> np.ndarray:
    return np.exp(0.01 * rng.standard_normal((turns, RUNS)))


def drifting(rng: np.random.Generator, turns: int) -> np.ndarray:
    """A slope of up to 30 % over the pair, and a random walk on top."""
    slope = rng.uniform(-0.3, 0.3) * np.linspace(0, 1, turns)
    walk = np.cumsum(0.005 * rng.standard_normal(turns))
    return quiet(rng, turns) * np.exp(slope + walk)[:, None]


def bursty(rng: np.random.Generator, turns: int) -> np.ndarray:
    """Everything 1.57 times slower for a stretch of turns, as seen on a shared machine."""
    begin = rng.integers(0, turns)
    slow = (np.arange(turns) >= begin) & (np.arange(turns) < begin + rng.integers(0, turns))
    return quiet(rng, turns) * np.where(slow, 1.57, 1.0)[:, None]


def heavy_tailed(rng: np.random.Generator, turns: int) -> np.ndarray:
    """Student t with 2 degrees of freedom, and one run in ten interrupted."""
    tails = np.exp(0.01 * rng.standard_t(2, (turns, RUNS)))
    return tails * np.where(rng.random((turns, RUNS)) < 0.1, rng.uniform(1, 5, (turns, RUNS)), 1.0)


def autocorrelated(rng: np.random.Generator, turns: int) -> np.ndarray:
    """Blocks whose level follows the one before (AR(1), 0.9)."""
    level = np.zeros(turns)
    for turn in range(1, turns):
        level[turn] = 0.9 * level[turn - 1] + 0.02 * rng.standard_normal()
    return quiet(rng, turns) * np.exp(level)[:, None]


def simulated_logs(noise: Noise, launch_offset: float, rng: np.random.Generator) -> list[Pair]:
    """The pairs of one comparison: b is TRUE_RATIO faster than a, each launch off by its own factor."""
    pairs = []
    for seed in rng.integers(0, 1 << 31, PAIRS):
        order = mirrored_order(("a", "b"), COUPLES, int(seed))
        level = {"a": 1e-3, "b": 1e-3 / TRUE_RATIO}
        level = {name: s * math.exp(launch_offset * rng.standard_normal()) for name, s in level.items()}
        pairs.append(pair_of(order, noise(rng, len(order)) * np.array([[level[name]] for name in order])))
    return pairs


def test_models_whose_times_spread_differently_keep_their_ratio():
    """The median is the same, the lowest times are not: a low quantile alone would be 2 to 3 % off."""
    rng, logs = np.random.default_rng(1), []
    for seed in range(100):
        order = mirrored_order(("a", "b"), 12, seed)
        spread = np.array([[0.01 if name == "a" else 0.03] for name in order])
        logs.append(stats.pair_log_ratio(pair_of(order, np.exp(spread * rng.standard_normal((24, 20))))))
    assert abs(fmean(logs)) < 0.004


@pytest.mark.parametrize("slow_s", [0.3e-3, 1e-3])
def test_what_a_machine_adds_to_runs_is_not_part_of_a_ratio_of_two(slow_s: float):
    """A disturbance takes so many seconds wherever it falls, and falls on longer runs more often."""
    rng, covered = np.random.default_rng(2), 0
    for _ in range(200):
        logs = []
        for seed in rng.integers(0, 1 << 31, PAIRS):
            order = mirrored_order(("a", "b"), 12, int(seed))
            level = np.array([[2e-3 if name == "a" else 1e-3] for name in order])
            hit = rng.random((24, 20)) < 200 * level  # 40 % and 20 % of the runs
            times = level * np.exp(0.005 * rng.standard_normal((24, 20))) + np.where(hit, slow_s, 0)
            logs.append(stats.pair_log_ratio(pair_of(order, times)))
        interval = stats.ratio_interval(logs)
        covered += interval.low <= 2 <= interval.high
    assert covered / 200 >= COVERED_LOW


@pytest.mark.parametrize(
    ("noise", "launch_offset"),
    [(quiet, 0.0), (quiet, 0.05), (drifting, 0.0), (bursty, 0.02), (heavy_tailed, 0.0), (autocorrelated, 0.0)],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(noise: Noise, launch_offset: float):
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(COMPARISONS):
        logs = [stats.pair_log_ratio(pair) for pair in simulated_logs(noise, launch_offset, rng)]
        interval = stats.ratio_interval(logs)
        covered += interval.low <= TRUE_RATIO <= interval.high
    assert COVERED_LOW <= covered / COMPARISONS <= COVERED_HIGH


def test_a_machine_of_two_speeds_that_changes_within_milliseconds_leaves_narrow_intervals_that_cover():
    """Stretches of some 8 ms in which runs take 1 ms, and of 5 in which they take 1.6, with 2 % of noise on top."""
    rng, covered, widths, comparisons = np.random.default_rng(3), 0, [], 200
    for _ in range(comparisons):
        logs = []
        for seed in rng.integers(0, 1 << 31, PAIRS):
            order = mirrored_order(("a", "b"), 14, int(seed))
            is_slow = np.zeros(28 * 22, bool)
            edges = np.cumsum(np.ravel(np.column_stack([rng.exponential(8, 100), rng.exponential(5, 100)]))).astype(int)
            for begin, end in zip(edges[::2], edges[1::2], strict=True):
                is_slow[begin:end] = True
            speed = np.where(is_slow.reshape(28, 22)[:, 2:], 1.6, 1.0)
            level = np.array([[TRUE_RATIO if name == "a" else 1.0] for name in order])
            logs.append(
                stats.pair_log_ratio(pair_of(order, level * speed * np.exp(0.02 * rng.standard_normal((28, 20)))))
            )
        interval = stats.ratio_interval(logs)
        covered += interval.low <= TRUE_RATIO <= interval.high
        widths.append(math.log(interval.high / interval.low) / 2)
    assert COVERED_LOW <= covered / comparisons <= 0.99
    assert median(widths) < 0.004


def test_an_interval_over_couples_instead_of_pairs_would_lie():
    """Why the unit is the pair: couples of one launch share its offset."""
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(COMPARISONS // 5):
        pairs = simulated_logs(quiet, 0.05, rng)
        couples = [stats.pair_log_ratio(Pair.model_construct(**{**dict(p), "blocks": p.blocks[i : i + 2]}))
                   for p in pairs for i in range(0, len(p.blocks), 2)]  # fmt: skip
        interval = stats.ratio_interval(couples)
        covered += interval.low <= TRUE_RATIO <= interval.high
    assert covered / (COMPARISONS // 5) < 0.7


def test_the_ratio_of_a_pair_is_baseline_over_variant_whoever_goes_first():
    times = np.array([[2.0], [1.0], [1.0], [2.0]])
    assert stats.pair_log_ratio(pair_of(["a", "b", "b", "a"], times)) == pytest.approx(math.log(2), abs=EXACT)


def test_a_steady_drift_cancels_in_a_mirrored_order():
    """Within a pair each model has its first turn early; whose is the very first is a matter of chance."""
    drift = np.exp(0.01 * np.arange(16))[:, None]

    def found(order: list[str]) -> float:
        return stats.pair_log_ratio(pair_of(order, drift * np.array([[2.0 if name == "a" else 1.0] for name in order])))

    logs = [found(mirrored_order(("a", "b"), 8, seed)) for seed in range(200)]
    assert max(abs(log - math.log(2)) for log in logs) <= 0.02 + 0.001  # two turns
    assert fmean(logs) == pytest.approx(math.log(2), abs=0.002)
    assert found(["a", "b"] * 8) == pytest.approx(math.log(2) - 0.01)  # in turn, one is always the later


def test_slow_stretches_that_fall_on_one_model_do_not_count():
    """They would move a mean, and medians over blocks wherever they come in turn with quiet ones."""
    times = np.array([[1.0] * 10, [3.0] * 10, [1.0] * 10, [1.0] * 10, [1.0] * 10, [1.0] * 10])
    order = ["a", "b", "b", "a", "a", "b"]
    assert stats.pair_log_ratio(pair_of(order, times)) == pytest.approx(0, abs=EXACT)


@pytest.mark.parametrize("order", [["a", "a"], ["b", "b"], []])
def test_a_pair_without_one_of_its_models_is_refused(order: list[str]):
    with pytest.raises(ValueError, match="blocks of both"):
        stats.pair_log_ratio(pair_of(order, np.ones((len(order), 1))))


def test_a_pilot_says_how_many_pairs_a_half_width_takes():
    """Counts chosen from pilots of 8 reach the half-width in about four of five comparisons."""
    rng = np.random.default_rng(0)
    reached, comparisons, wanted = 0, 400, 0.004

    def normal(count: int) -> list[float]:
        return (0.005 * rng.standard_normal(count)).tolist()

    for _ in range(comparisons):
        pairs = stats.pairs_for(wanted, normal(8))
        reached += stats.half_width(normal(pairs)) <= wanted
    assert 0.75 < reached / comparisons < 0.9
    pilot = normal(8)
    counts = [stats.pairs_for(width, pilot) for width in (0.1, 0.01, 0.001)]
    assert counts == sorted(counts)
    assert counts[-1] > 40 * counts[0]
    for width, count in zip((0.1, 0.01, 0.001), counts, strict=True):
        assert stats.expected_half_width(count, pilot) <= width
        assert count == 2 or stats.expected_half_width(count - 1, pilot) > width


def test_the_half_width_is_the_textbook_one():
    values = [0.1, 0.3, 0.2, 0.4, 0.15]
    t_975_at_4 = 2.7764451051977987  # Student t table
    assert stats.half_width(values) == pytest.approx(t_975_at_4 * stdev(values) / math.sqrt(5), rel=1e-9)
    interval = stats.ratio_interval(values)
    assert interval.value == pytest.approx(math.exp(fmean(values)), abs=EXACT)
    assert interval.low * interval.high == pytest.approx(interval.value**2, abs=EXACT)


def test_quantiles_are_samples_and_only_where_there_are_enough():
    samples = list(range(1, 1001))
    assert stats.quantile(samples, 0.5) == 500
    assert stats.quantile(samples, 0.9) == 900
    assert stats.quantile(samples, 0.99) == 990
    assert stats.quantile(samples[:999], 0.99) is None
    assert stats.quantile(samples[:99], 0.9) is None
    assert stats.quantile(samples[:19], 0.5) is None
    assert stats.quantile(samples[:21], 0.5) == median(samples[:21])


def test_the_geometric_mean_of_a_ratio_and_its_inverse_is_one():
    assert stats.geometric_mean([4.0, 0.25]) == pytest.approx(1.0, abs=EXACT)
    assert stats.geometric_mean([1.0, 2.0, 4.0]) == pytest.approx(2.0, abs=EXACT)
