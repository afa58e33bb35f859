"""Counts of channels and ranks on the tile: the multiple of channels that a device's kernels like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def up_to_tile(number: int, tile: int) -> int:
    """The next multiple of `tile` that is at least `number`."""
    return -(-number // tile) * tile


def nearest_tile(number: int, tile: int) -> int:
    """The nearest multiple of `tile`, at least one; the larger one half-way between two."""
    return max(tile, (number + tile // 2) // tile * tile)


def spread(listed: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of a list, evenly: the first, the last and some between."""
    return [listed[round(at)] for at in np.linspace(0, len(listed) - 1, min(count, len(listed)))]
