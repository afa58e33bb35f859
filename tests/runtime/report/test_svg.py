"""Scales and ticks, labels that keep apart, numbers as text, and content that stays content."""

from __future__ import annotations

from itertools import pairwise

import pytest

from rankfold.records import Comparison
from rankfold.runtime.report.svg import Box, Scale, element, linear_ticks, log_ticks, place_labels, scale, shorten
from rankfold.runtime.report.units import aligned, milliseconds, quantity, ratio_interval

_RANGES = [(0.0, 1.0), (86.1, 97.3), (1.31e-3, 3.3e-3), (-5.0, 5.0), (0.98, 1.02), (1.0, 4000.0)]


@pytest.mark.parametrize(("low", "high"), _RANGES)
def test_linear_ticks_are_round_even_and_inside(low: float, high: float) -> None:
    ticks = linear_ticks(low, high, 5)
    assert 3 <= len(ticks) <= 10
    assert low - 1e-9 <= ticks[0] < ticks[-1] <= high + 1e-9
    steps = {round((b - a) / (ticks[1] - ticks[0]), 6) for a, b in pairwise(ticks)}
    assert steps == {1.0}
    assert f"{ticks[1] - ticks[0]:.0e}"[0] in "125"


def test_whole_things_have_whole_ticks() -> None:
    assert Scale(1.0, 3.0, 0, 100, whole=True).ticks() == [1.0, 2.0, 3.0]


def test_log_ticks_are_a_1_2_5_series() -> None:
    assert log_ticks(0.9, 25.0) == pytest.approx([1, 2, 5, 10, 20])
    assert log_ticks(1.0, 1e5) == pytest.approx([1, 10, 100, 1e3, 1e4, 1e5])


@pytest.mark.parametrize("log", [False, True])
def test_a_scale_puts_values_between_its_ends_even_a_lone_one(log: bool) -> None:
    x = scale([1.0, 4.0], 10, 110, log)
    assert 10 < x(1.0) < x(2.0) < x(4.0) < 110
    assert x(2.0) == pytest.approx(60 if log else 45.12, abs=0.1)  # the middle of 1 and 4 on a log axis
    assert scale([3.0], 0, 10, log)(3.0) == pytest.approx(5)


def test_labels_keep_apart_and_inside() -> None:
    """Three points almost on one spot: names overlap if each simply stands to the right."""
    points = [(100.0, 100.0 + k, f"model-{k}", "name") for k in range(3)]
    labels = place_labels(points, Box(0, 0, 400, 300), [])
    places = {tuple(part for part in str(label).split() if part[:2] in ("x=", "y=")) for label in labels}
    assert len(places) == 3


def test_content_is_escaped() -> None:
    assert element("text", "<b>&", class_='"x"') == '<text class="&#34;x&#34;">&lt;b&gt;&amp;</text>'
    assert element("line", x1=1.5, y1=2.0, stroke_width=None) == '<line x1="1.5" y1="2"></line>'


def test_long_names_keep_both_ends() -> None:
    assert shorten("dense-16-48-96", 14) == "dense-16-48-96"
    assert shorten("a-very-long-name-of-a-model.onnx", 12) == "a-very….onnx"
    assert len(shorten("x" * 99, 12)) == 12


def test_numbers_of_a_column_share_their_decimals() -> None:
    assert aligned([3.214, 0.9421, None]) == ["3.214", "0.942", "not measured"]
    assert aligned([1234.5, 104.2]) == ["1234", "104"]
    assert aligned([0.0, None]) == ["0", "not measured"]


def test_quantities_carry_their_prefix() -> None:
    assert [quantity(v, "B") for v in (402_000, 1_890_000, 12, 0)] == ["402 kB", "1.89 MB", "12 B", "0 B"]
    assert quantity(None, "B") == "not measured"
    assert milliseconds(1.391e-3) == "1.39 ms"


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(2.2951, 2.3249, "2.30–2.32"), (0.9996, 1.02, "0.9996–1.0200"), (1.0, 1.5, "1.00–1.50")]
)
def test_intervals_are_not_rounded_onto_1(low: float, high: float, shown: str) -> None:
    told = Comparison(baseline="a", variant="b", ratio=(low + high) / 2, low=low, high=high, pairs=8)
    assert ratio_interval(told) == shown
