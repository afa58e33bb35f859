"""The choice against every combination, on problems small enough to try them all, and its time on large ones."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from rankfold.errors import CheckFailed
from rankfold.export.solve import Option, Problem

CLOSE = 1e-4  # the gap that the solver may leave


def layers_alone(rng: np.random.Generator, count: int, options: int) -> Problem[int]:
    layers = {}
    for layer in range(count):
        dense = rng.uniform(1, 3)
        others = [
            Option(k, {"seconds": dense * share, "damage": float(rng.exponential() * (1 - share) ** 2)})
            for k, share in enumerate(rng.uniform(0.1, 1.1, options - 1), 1)
        ]
        layers[f"l{layer}"] = [Option(0, {"seconds": dense, "damage": 0.0}), *others]
    return Problem(layers)


def with_widths(rng: np.random.Generator, count: int, widths: int, options: int) -> Problem[int]:
    """A chain: layer k reads group k − 1 and writes group k."""
    groups = {
        f"g{k}": {w: {"damage": float(rng.exponential() * (1 - w / widths) ** 2)} for w in range(1, widths + 1)}
        for k in range(count - 1)
    }
    layers = {}
    for k in range(count):
        found, dense = [], rng.uniform(1, 3)
        sides = [name for name in (f"g{k - 1}", f"g{k}") if name in groups]
        for sizes in product(*(groups[name] for name in sides)):
            share = float(np.prod([size / widths for size in sizes]))
            for way in range(options):
                costs = {
                    "seconds": dense * share * (1 if way == 0 else rng.uniform(0.2, 1.2)),
                    "damage": 0.0 if way == 0 else float(rng.exponential() * 0.2),
                }
                found.append(Option(way, costs, dict(zip(sides, sizes, strict=True))))
        layers[f"l{k}"] = found
    return Problem(layers, groups, {"seconds": 0.5})


def best_of_all(problem: Problem[int], limit: float) -> float:
    """The least damage within the limit, by trying everything."""
    best = np.inf
    names = list(problem.groups)
    for widths in product(*(problem.groups[name] for name in names)):
        has = dict(zip(names, widths, strict=True))
        own = sum(problem.groups[name][width]["damage"] for name, width in has.items())
        open_ = [[one for one in options if all(has[g] == w for g, w in one.widths.items())]
                 for options in problem.layers.values()]  # fmt: skip
        for combined in product(*open_):
            seconds = problem.base.get("seconds", 0.0) + sum(one.costs["seconds"] for one in combined)
            if seconds <= limit:
                best = min(best, own + sum(one.costs["damage"] for one in combined))
    return best


@pytest.mark.parametrize("part", range(5))
def test_the_choice_is_the_best_of_all(part, counts):
    """Small problems, 500 in soak: three in five of layers alone, two with widths."""
    rng = np.random.default_rng(part)
    for index in range(counts(40, 100)):
        problem = layers_alone(rng, 4, 5) if index % 5 < 3 else with_widths(rng, 3, 3, 2)
        dense = problem.solve("damage", {}).totals["seconds"]
        least = problem.solve("seconds", {}).totals["seconds"]
        limit = least + rng.uniform(0, 1) * (dense - least)
        found = problem.solve("damage", {"seconds": limit})
        assert found.totals["seconds"] <= limit * (1 + 1e-6)
        expected = best_of_all(problem, limit * (1 + 1e-6))
        assert found.totals["damage"] <= expected * (1 + CLOSE) + 1e-9
        assert found.totals["damage"] >= expected - 1e-9


def test_a_limit_that_no_choice_meets_is_refused():
    problem = Problem({"a": [Option(0, {"seconds": 2.0}), Option(1, {"seconds": 1.0, "damage": 1.0})]})
    assert problem.solve("seconds", {}).options["a"].what == 1
    with pytest.raises(CheckFailed, match=r"no choice has seconds at most 0\.5; allow more"):
        problem.solve("damage", {"seconds": 0.5})


def test_a_solver_that_ran_out_of_time_does_not_say_that_there_is_no_choice():
    problem = with_widths(np.random.default_rng(0), 12, 6, 6)
    with pytest.raises(CheckFailed, match=r"no choice among \d+ ways and widths was found within 0 s; give a wider"):
        problem.solve("damage", {"seconds": 8.0}, seconds=0.0)


def test_two_limits_hold_at_once():
    rng = np.random.default_rng(0)
    options = [Option(k, {"seconds": 1 / k, "bytes": float(k), "damage": rng.random()}) for k in range(1, 9)]
    problem = Problem(dict.fromkeys("abc", options))
    found = problem.solve("damage", {"seconds": 1.0, "bytes": 12.0})
    assert found.totals["seconds"] <= 1.0 + 1e-6
    assert found.totals["bytes"] <= 12.0 + 1e-6


def test_of_peaks_the_largest_counts():
    """Against every combination: what is held (weights) plus what a layer takes while it runs, at least a floor."""
    rng = np.random.default_rng(3)
    for floor in (0.0, 1.2):
        options = [
            Option(k, {"bytes": held, "damage": harm}, peaks={"bytes": peak})
            for k, (held, harm, peak) in enumerate(rng.uniform(0, 1, (24, 3)) * [0.3, 1, 2])
        ]
        layers = {name: options[start : start + 6] for name, start in zip("abcd", range(0, 24, 6), strict=True)}
        problem = Problem(layers, base={"bytes": 0.1}, floor={"bytes": floor})
        every = [
            (
                0.1 + sum(one.costs["bytes"] for one in picked) + max(floor, *(one.peaks["bytes"] for one in picked)),
                sum(one.costs["damage"] for one in picked),
            )
            for picked in product(*layers.values())
        ]
        for harm in (1.0, 2.0):
            found = problem.solve("bytes", {"damage": harm})
            assert found.totals["bytes"] == pytest.approx(min(b for b, d in every if d <= harm), rel=1e-4)
            limited = problem.solve("damage", {"bytes": found.totals["bytes"] * 1.1})
            best = min(d for b, d in every if b <= found.totals["bytes"] * 1.1)
            assert limited.totals["damage"] == pytest.approx(best, rel=1e-4)


def test_large_problems_are_solved_with_a_small_gap():
    """160 layers of 200 options; and 53 layers with 8 widths a group and 12 ways. How long it takes is for the soak."""
    rng = np.random.default_rng(0)
    problem = layers_alone(rng, 160, 200)
    dense = problem.solve("damage", {}).totals["seconds"]
    found = problem.solve("damage", {"seconds": dense / 2})
    assert found.gap <= 1e-3
    assert found.totals["seconds"] <= dense / 2 * (1 + 1e-6)


def test_nothing_is_printed(capfd):
    """HiGHS writes a line to stdout on this problem, where a user's JSON may go."""
    problem = layers_alone(np.random.default_rng(4), 20, 30)
    dense = problem.solve("damage", {}).totals["seconds"]
    problem.solve("damage", {"seconds": dense / 2})
    assert capfd.readouterr().out == ""
