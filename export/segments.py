"""Which axes of a reshape correspond: runs of axes before and after that hold the same numbers in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

Axes = list[int]
Size = object  # an int, or a symbol that equals itself


def segments(before: Sequence[Size], after: Sequence[Size]) -> list[tuple[Axes, Axes]] | None:
    """Pairs of runs with equal products, in row-major order; None where symbols leave it open.

    (n, 8, 2, 3) → (n, 48): [([0], [0]), ([1, 2, 3], [1])]. Axes of size 1 may be left with no partner.
    """
    known = [[size for size in shape if isinstance(size, int)] for shape in (before, after)]
    if 0 in known[0] + known[1]:
        return None
    head: list[tuple[Axes, Axes]] = []
    while len(head) < min(len(before), len(after)) and before[len(head)] == after[len(head)] is not None:
        head.append(([len(head)], [len(head)]))
    if _same_first(before[len(head) :], after[len(head) :]):
        head.append(([len(head)], [len(head)]))
    rest = _runs(before[len(head) :], after[len(head) :])
    shift = len(head)
    return None if rest is None else head + [([a + shift for a in one], [b + shift for b in two]) for one, two in rest]


def _same_first(before: Sequence[Size], after: Sequence[Size]) -> bool:
    """A reshape keeps the count of numbers, so the other axes alone tell that the first stays as it is."""
    if not before or not after:
        return False
    left, right = ([size for size in shape[1:] if isinstance(size, int)] for shape in (before, after))
    complete = len(left) == len(before) - 1 and len(right) == len(after) - 1
    return complete and prod(left) == prod(right)


def _runs(before: Sequence[Size], after: Sequence[Size]) -> list[tuple[Axes, Axes]] | None:
    left = [size for size in before if isinstance(size, int)]
    right = [size for size in after if isinstance(size, int)]
    if len(left) < len(before) or len(right) < len(after) or prod(left) != prod(right):
        return None
    runs: list[tuple[Axes, Axes]] = []
    i = j = 0
    while i < len(left) or j < len(right):
        one, two = left[i : i + 1], right[j : j + 1]
        start, other = i, j
        i, j = i + len(one), j + len(two)
        while prod(one) != prod(two):
            if prod(one) < prod(two):
                one, i = [*one, left[i]], i + 1
            else:
                two, j = [*two, right[j]], j + 1
        runs.append((list(range(start, i)), list(range(other, j))))
    return runs
