"""The rank correlation of counts and MACs with time, on rows that are known."""

from __future__ import annotations

from rankfold.benchmarks.counted import Row, convolutions, said


def test_who_ranks_as_time_does_is_seen():
    """MACs take the second for the fastest; instructions rank all four as time does."""
    found = [Row("a", 400, 900, 4.0), Row("b", 100, 800, 3.0), Row("c", 300, 500, 2.0), Row("d", 200, 400, 1.0)]
    *lines, macs, instructions = said(found)
    assert lines[1] == "b: 100 MACs, 800 instructions (8.00 a MAC), time 3.000"
    assert macs == "Spearman's rank correlation of macs with time over 4 convolutions: 0.400"
    assert instructions == "Spearman's rank correlation of instructions with time over 4 convolutions: 1.000"


def test_there_are_twenty_of_them():
    models = convolutions()
    assert len(models) == len(set(models.values())) == 20
