"""Axes that correspond under a reshape."""

from __future__ import annotations

import pytest

from rankfold.export.segments import segments


@pytest.mark.parametrize(
    ("before", "after", "runs"),
    [
        (("n", 8, 2, 3), ("n", 48), [([0], [0]), ([1, 2, 3], [1])]),
        (("n", 8, 2, 3), (None, 48), [([0], [0]), ([1, 2, 3], [1])]),
        ((8, "n", 4, 2), (8, None, 8), [([0], [0]), ([1], [1]), ([2, 3], [2])]),
        ((2, 12), (2, 3, 4), [([0], [0]), ([1], [1, 2])]),
        ((2, 6, 5), (2, 3, 10), [([0], [0]), ([1, 2], [1, 2])]),
        (("n", 8, 1, 1), ("n", 8), [([0], [0]), ([1], [1]), ([2], []), ([3], [])]),
        (("n", 8, "h", 2), ("n", 16, "h"), None),
        ((0, 4), (0,), None),
    ],
)
def test_runs_of_axes_hold_the_same_numbers(before, after, runs):
    assert segments(before, after) == runs
