"""Ranks by measured time: laws of the staircase, of strengths and of rounding."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest

from rankfold.errors import InputError
from rankfold.export.grid import CLEARLY, nearest_rank, next_rank, saving, strengths_by_time, useful_ranks
from rankfold.records import LayerTime

STAIRS = {8: 0.5, 16: 0.501, 24: 0.74, 32: 0.75, 40: 1.1}


def rows(times: Mapping[int, float], layers=("a", "b"), share=0.4, form="channel") -> list[LayerTime]:
    dense = {"layers": list(layers), "share": share, "form": "dense", "ranks": [], "ratio": 1.0}
    ways = [dense | {"form": form, "ranks": [rank], "ratio": ratio} for rank, ratio in times.items()]
    two = dense | {"form": "tucker-2", "ranks": [8, 8], "ratio": 0.1}
    return [LayerTime.model_validate(row) for row in (dense, *ways, two)]


def test_of_ranks_that_take_the_same_time_the_largest_and_none_slower_than_dense():
    assert useful_ranks(rows(STAIRS), "a", "channel") == [16, 32]
    assert useful_ranks(rows({8: 1.2, 16: 1.0, 24: CLEARLY}), "a", "channel") == []
    assert useful_ranks(rows(STAIRS), "a", "spatial") == []
    assert useful_ranks(rows(STAIRS), "c", "channel") == []
    assert useful_ranks(rows({8: 0.9, 16: 0.4}), "a", "channel") == [16]


@pytest.mark.parametrize("seed", range(20))
def test_a_larger_useful_rank_is_clearly_slower(seed):
    """Whatever the times: each useful one is faster than dense, and no measured rank above it is as fast."""
    drawn = np.random.default_rng(seed).uniform(0.2, 1.3, 8)
    times = {8 * (n + 1): float(time) for n, time in enumerate(drawn)}
    useful = useful_ranks(rows(times), "a", "channel")
    assert all(times[small] < CLEARLY * times[large] for small, large in pairwise(useful))
    assert all(times[rank] < CLEARLY for rank in useful)
    assert bool(useful) == (min(times.values()) < CLEARLY)
    for rank in useful:
        assert all(CLEARLY * times[larger] > times[rank] for larger in times if larger > rank and larger in useful)


def test_strengths_go_by_the_time_that_can_be_saved():
    table = [*rows({16: 0.5}), *rows({16: 0.8}, ["c"], 0.5), *rows({16: 1.3}, ["d"], 0.1)]
    forms = dict.fromkeys("abcd", "channel") | {"e": "channel"}
    assert saving(table, "a", "channel") == pytest.approx(0.2 * 0.5)
    assert saving(table, "c", "channel") == pytest.approx(0.5 * 0.2)
    strengths = strengths_by_time(table, forms)
    assert strengths == pytest.approx({"a": 1, "b": 1, "c": 1, "d": 0, "e": 0})
    table[1] = table[1].model_copy(update={"ratio": 0.25})
    strengths = strengths_by_time(table, forms)
    assert strengths["a"] / strengths["c"] == pytest.approx(0.15 / 0.1)
    positive = [strength for strength in strengths.values() if strength > 0]
    assert sum(positive) / len(positive) == pytest.approx(1)


def test_a_table_that_says_nothing_is_refused():
    with pytest.raises(InputError, match="the latency table is of another model: it has layer 'a', not 'conv1'"):
        strengths_by_time(rows(STAIRS), {"conv1": "channel"})
    with pytest.raises(InputError, match="the latency table is of another model: it has layer 'none', not 'a'"):
        strengths_by_time([], {"a": "channel"})
    with pytest.raises(InputError, match="in form spatial no layer of the latency table is faster than dense"):
        strengths_by_time(rows(STAIRS), {"a": "spatial"})


def test_rounding_takes_the_nearest_useful_rank_or_dense():
    full = 64
    found = [nearest_rank([16, 32], rank, full) for rank in range(1, full + 1)]
    assert found == [16] * 23 + [32] * 24 + [None] * 17
    assert [nearest_rank([], rank, 4) for rank in range(1, 5)] == [None] * 4
    for rank, rounded in enumerate(found, 1):
        off = min(abs(rank - one) for one in (16, 32, full))
        assert abs(rank - (rounded or full)) == off


def test_rounding_up_never_loses_rank():
    assert [next_rank([16, 32], rank) for rank in (1, 16, 17, 32, 33)] == [16, 16, 32, 32, None]
    assert next_rank([], 1) is None
