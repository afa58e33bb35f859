"""Layers held against themselves dense: which go back, and how long one is held that is still open."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rankfold.export.search import Draft
from rankfold.export.verify import InPlace, in_place

from .test_budget import device, model, search_of, watch_on

__all__ = ["model"]  # a fixture
LAUNCHES = 16


def put_back(**ratios: tuple[float, float]) -> InPlace:
    """Launches whose mean and standard error are these."""
    spread = np.linspace(-1, 1, LAUNCHES)
    spread *= LAUNCHES**0.5 / spread.std(ddof=1)
    return InPlace({name: (math.log(ratio) + error * spread).tolist() for name, (ratio, error) in ratios.items()})


def test_a_layer_goes_back_when_it_is_slower_for_sure_or_when_no_gain_was_shown():
    held = put_back(slower=(0.98, 0.003), unsure=(0.995, 0.02), gains=(1.005, 0.02), even=(0.998, 0.003))
    assert held.open() == ["slower", "unsure", "gains"]
    assert held.slower() == ["slower", "unsure"]
    assert held.costs_at_most("even") == pytest.approx(1 - 0.998 * (1 - 1.7531 * 0.003), abs=1e-4)


def test_one_of_many_may_not_go_back_by_chance():
    """Each alone would be significant at 5 %; twenty of them are not (Holm)."""
    held = put_back(**{f"layer{number}": (0.9985, 0.0008) for number in range(20)})
    assert held.open() == []
    assert held.slower() == []
    assert put_back(alone=(0.9985, 0.0008)).slower() == ["alone"]


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
    assert {len(logs) for logs in quiet.put_back.values()} == {board.launches - before}, "one contest decides"
    board.noise = 0.1
    loud = in_place(search, draft)
    assert len(loud.put_back["b"]) > len(quiet.put_back["b"])
    assert {len(logs) for name, logs in loud.put_back.items() if name != "b"} == {len(quiet.put_back["b"])}
    assert in_place(search, Draft()).put_back == {}
