"""Layers held against themselves dense: which go back, and how long one is held that is still open."""

from __future__ import annotations

import pytest

from rankfold.export.search import Draft
from rankfold.export.verify import InPlace, in_place
from rankfold.runtime.latency import Timed, pooled

from .test_budget import device, model, search_of, watch_on

__all__ = ["model"]  # a fixture
ROUNDS = 400


def put_back(**ratios: tuple[float, float]) -> InPlace:
    return InPlace({name: Timed(ratio, error, 1e-3, ROUNDS) for name, (ratio, error) in ratios.items()})


def test_a_layer_goes_back_when_it_is_slower_for_sure_or_when_no_gain_was_shown():
    held = put_back(slower=(0.98, 0.003), unsure=(0.995, 0.02), gains=(1.005, 0.02), even=(0.998, 0.003))
    assert held.open() == ["slower", "unsure", "gains"]
    assert held.slower() == ["slower", "unsure"]
    assert held.costs_at_most("even") == pytest.approx(1 - 0.998 * (1 - 1.6449 * 0.003), abs=1e-4)


def test_one_of_many_may_not_go_back_by_chance():
    """Each alone would be significant at 5 %; twenty of them are not (Holm)."""
    held = put_back(**{f"layer{number}": (0.9985, 0.0009) for number in range(20)})
    assert held.open() == []
    assert held.slower() == []
    assert put_back(alone=(0.9985, 0.0009)).slower() == ["alone"]


def test_what_is_open_is_held_again_and_what_is_decided_is_not(model, tmp_path):
    board = device()
    search = search_of(model, watch_on(board, tmp_path))
    gains = {name: way for name, way in search.fast.ways.items() if name != "b"}
    ways = (option for option in search.problem().layers["b"] if not option.what.is_dense)
    even = min(ways, key=lambda option: abs(option.costs["time"] + 0.002)).what
    draft = Draft({}, {**gains, "b": even})
    board.noise, before = 0.001, board.launches
    quiet = in_place(search, draft)
    assert quiet.open() == []
    assert board.launches - before == 2, "one contest decides"
    board.noise, before = 0.1, board.launches
    loud = in_place(search, draft)
    assert board.launches - before > 2
    assert loud.put_back["b"].rounds > quiet.put_back["b"].rounds
    assert {one.rounds for name, one in loud.put_back.items() if name != "b"} == {quiet.put_back["b"].rounds}
    assert in_place(search, Draft()).put_back == {}


def test_pooled_contests_count_as_many_rounds_as_they_had():
    one, other = Timed(1.1, 0.01, 1e-3, 300), Timed(1.2, 0.02, 2e-3, 100)
    both = pooled(one, other)
    assert both.rounds == 400
    assert both.ratio == pytest.approx(1.1**0.75 * 1.2**0.25)
    assert both.error == pytest.approx(((0.75 * 0.01) ** 2 + (0.25 * 0.02) ** 2) ** 0.5)
