"""Which layer of one network stands for which of another: by what they look at, in order, names where they agree.

A chain of factors is one unit, whoever wrote it. Two sequences of units are aligned as texts are (Needleman & Wunsch,
J. Mol. Biol. 48, 1970); what has no partner stays alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...records import Matched
from ...runtime import costs
from ..chains import chains, kernel_of
from ..layers import layers_of

_NAMED, _WIDTHS = 2.0, 0.5  # a name in common, and for both counts of channels; beside 1 for the same taps and pixels


@dataclass(frozen=True)
class Unit:
    """A layer, or a chain of factors: o×i×h×w of the layer that it equals, height and width of what it puts out."""

    name: str
    shape: tuple[int, ...]
    pixels: tuple[int, ...] | None
    macs: int | None


def units(model: ir.Model) -> list[Unit]:
    """Of a canonical model, in the graph's order."""
    layers = {layer.name: layer for layer in layers_of(model)}
    counted = costs.count(ir.to_proto(model)).layers
    heads = {chain.layers[0]: chain for chain in chains(model)}
    inner = {name for chain in heads.values() for name in chain.layers[1:]}
    found = []
    for name, layer in layers.items():
        if name in inner:
            continue
        chain, shape, last = heads.get(name), layer.shape, layer
        if chain is not None:
            shape, last = kernel_of(model, chain).shape, layers[chain.layers[-1]]
        pixels = None if last.pixels is None else (last.pixels.out_h, last.pixels.out_w)
        macs = counted[name].macs if chain is None else chain.macs
        found.append(Unit(name if chain is None else chain.name, tuple(shape), pixels, macs))
    return found


def matched(first: Sequence[Unit], second: Sequence[Unit]) -> list[tuple[Unit | None, Unit | None]]:
    """Pairs in order, with None for what has no partner."""
    best = np.zeros((len(first) + 1, len(second) + 1))
    for i, one in enumerate(first, 1):
        for j, other in enumerate(second, 1):
            best[i, j] = max(best[i - 1, j], best[i, j - 1], best[i - 1, j - 1] + _alike(one, other))
    pairs: list[tuple[Unit | None, Unit | None]] = []
    i, j = len(first), len(second)
    while i or j:
        alike = _alike(first[i - 1], second[j - 1]) if i and j else 0.0
        if alike and best[i, j] == best[i - 1, j - 1] + alike:
            i, j = i - 1, j - 1
            pairs.append((first[i], second[j]))
        elif j and (not i or best[i, j] == best[i, j - 1]):
            j -= 1
            pairs.append((None, second[j]))
        else:
            i -= 1
            pairs.append((first[i], None))
    return pairs[::-1]


def share_matched(pairs: Sequence[tuple[Unit | None, Unit | None]]) -> float:
    """Of the first network's MACs, those of units that have a partner."""
    whole = sum(one.macs or 0 for one, _ in pairs if one is not None)
    return sum(one.macs or 0 for one, other in pairs if one is not None and other is not None) / (whole or 1)


def rows(pairs: Sequence[tuple[Unit | None, Unit | None]]) -> list[Matched]:
    """As they are written down."""
    return [
        Matched(
            first=one and one.name,
            second=other and other.name,
            macs_first=one and one.macs,
            macs_second=other and other.macs,
        )
        for one, other in pairs
    ]


def _alike(one: Unit, other: Unit) -> float:
    """0 for layers that do other things."""
    if one.shape[2:] != other.shape[2:] or one.pixels != other.pixels:
        return 0.0
    widths = sum(a == b for a, b in zip(one.shape[:2], other.shape[:2], strict=True)) / 2
    return 1.0 + _NAMED * (one.name == other.name) + _WIDTHS * widths
