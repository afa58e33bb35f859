"""Counts of channels and ranks on the tile: the multiple of channels that a device's kernels like."""

from __future__ import annotations


def up_to_tile(number: int, tile: int) -> int:
    """The next multiple of `tile` that is at least `number`."""
    return -(-number // tile) * tile


def nearest_tile(number: int, tile: int) -> int:
    """The nearest multiple of `tile`, at least one; the larger one half-way between two."""
    return max(tile, (number + tile // 2) // tile * tile)
