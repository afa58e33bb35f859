"""Which classes of channels are needed, and why: backwards from what is frozen, through every weight that is not zero.

A channel is needed where an output channel that is needed reads it with a weight other than zero, and it is not a
constant that the reader's bias can carry (design: dead channels). So what only dead channels read is dead, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .constants import Channels, Known, along
from .coupling import Coupling, Mask, Read
from .kernels import has_border, touched


@dataclass(frozen=True)
class Needs:
    """By class: whether it must stay, and a reason where it is not simply alive."""

    needed: Mask
    reasons: dict[int, str]


def needs(coupling: Coupling, known: Known) -> Needs:
    """All needed classes of a graph."""
    labels = coupling.labels()
    reasons = coupling.frozen()
    needed = np.zeros(len(labels), bool)
    needed[list(reasons)] = True
    edges = [_Edges(read, coupling, known) for read in reversed(coupling.reads)]
    while sum(edge.follow(needed) for edge in edges):
        pass  # backwards one round is enough, another one sees that nothing is left
    for edge in edges:
        edge.explain(needed, reasons)
    return Needs(needed, reasons)


class _Edges:
    """One read: which input classes each output class needs."""

    def __init__(self, read: Read, coupling: Coupling, known: Known) -> None:
        constants = constants_of(read, known)
        self.name, self.constants = read.node.name, constants
        self.border: Mask = has_border(read.node) & (np.nan_to_num(constants) != 0)
        used = touched(read.node)
        self.touched = used & (np.isnan(constants) | self.border).reshape(len(used), 1, -1)
        self.sources = coupling.roots(read.ids)
        self.rows = coupling.roots(read.rows)

    def follow(self, needed: Mask) -> bool:
        """Mark what the needed rows need; whether anything was new."""
        new = self._reached(needed) & ~needed[self.sources]
        needed[self.sources[new]] = True
        return bool(new.any())

    def explain(self, needed: Mask, reasons: dict[int, str]) -> None:
        """Give channels that are constant but cannot go their reason."""
        for index in np.flatnonzero(self._reached(needed) & self.border):
            constant = self.constants[index]
            reasons.setdefault(
                int(self.sources[index]), f"a constant {constant:.3g} in front of the zero padding of '{self.name}'"
            )

    def _reached(self, needed: Mask) -> Mask:
        rows = needed[self.rows].reshape(len(self.touched), -1)
        return np.einsum("goi,go->gi", self.touched, rows).reshape(-1)


def constants_of(read: Read, known: Known) -> Channels:
    """The constants of the channels that are read, NaN where they are alive."""
    constants = along(known, read.value, read.axis)
    assert constants is not None, f"value {read.value.name!r} is read but its channels are unknown"
    return constants
