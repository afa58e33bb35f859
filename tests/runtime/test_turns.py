from __future__ import annotations

import pytest

from rankfold.errors import InputError
from rankfold.runtime.turns import Options, checked_pairs, choose_cores, choose_turns, mirrored_order

from .conftest import FACTS


@pytest.mark.parametrize("seed", range(10))
def test_the_order_is_mirrored_and_gives_both_the_same_turns(seed: int):
    order = mirrored_order(("a", "b"), 8, seed)
    assert order == order[::-1]
    assert order.count("a") == order.count("b") == 8
    assert all({order[i], order[i + 1]} == {"a", "b"} for i in range(0, 16, 2))
    assert order == mirrored_order(("a", "b"), 8, seed)


def test_the_order_is_random_in_the_seed():
    assert len({tuple(mirrored_order(("a", "b"), 8, seed)) for seed in range(50)}) > 8


@pytest.mark.parametrize("run_s", [[1e-5, 2e-5], [1e-3], [5e-4, 1e-3], [0.05, 0.1], [0.3, 2.0]])
def test_a_pair_is_timed_for_about_two_seconds_unless_the_model_is_slow(run_s: list[float]):
    turns = choose_turns(run_s, Options())
    mean_s = sum(run_s) / len(run_s)
    pair_s = 2 * turns.couples * (turns.runs + 2) * mean_s
    assert turns.couples % 2 == 0
    assert turns.couples >= 2
    assert turns.runs >= 20 or turns.runs * max(run_s) >= 0.5 or turns.runs == 3
    assert 0.5 < pair_s < max(2.5 if max(run_s) < 5e-3 else 23.0, 2 * 2 * (turns.runs + 2) * mean_s + 1e-9)
    assert turns.couples >= 6 or pair_s > 15
    assert turns.limit_s > (turns.runs + 2) * max(run_s)


def test_a_pool_that_must_come_to_rest_takes_fewer_turns():
    assert choose_turns([1e-3], Options(threads=2)).couples < choose_turns([1e-3], Options()).couples


def test_pairs_follow_the_threads_unless_given():
    assert checked_pairs(Options()) == 8
    assert checked_pairs(Options(threads=2)) == 24
    assert checked_pairs(Options(threads=2, pairs=5)) == 5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (Options(threads=0), "threads is 0; use 1 or more"),
        (Options(pairs=1), "pairs is 1; use 2 or more"),
        (Options(block_runs=0), "block_runs is 0"),
        (Options(dropped_runs=-1), "dropped_runs is -1"),
    ],
)
def test_options_out_of_range_are_refused(options: Options, match: str):
    with pytest.raises(InputError, match=match):
        checked_pairs(options)


def test_cores_are_the_last_ones_unless_given():
    assert choose_cores(Options(), FACTS) == [3]
    assert choose_cores(Options(threads=2), FACTS) == [2, 3]
    assert choose_cores(Options(threads=2, cores=(1, 0)), FACTS) == [0, 1]
    assert choose_cores(Options(), FACTS.model_copy(update={"affinity": []})) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (Options(threads=5), "5 threads asked, 4 cores available"),
        (Options(cores=(9,)), r"cores \[9\] are not available"),
        (Options(threads=2, cores=(1, 1)), r"2 threads do not fit on cores \[1\]"),
    ],
)
def test_cores_that_are_not_there_are_refused(options: Options, match: str):
    with pytest.raises(InputError, match=match):
        choose_cores(options, FACTS)
