"""How narrow the channels of a network may be: the widths of each family, what they damage, what they leave of a layer.

A family's channels go weakest first. What that loses of its readers' outputs, refitted, is theirs to scale: a reader's
output forgives a loss whether channels or ranks are the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..records import GroupDecision
from .calibration import Samples
from .coupling import Read
from .damage import EFFECT_SAMPLES, Scale, damage_of
from .layers import Layer
from .moments import collect
from .passes.fold_channels import fold_channels
from .prune import BlockLoss, Channels, Family
from .reporting import Report, silent
from .tile import spread
from .walk import Walk

MOST = 8  # widths of a family
_MOST_SHAPES = 64  # of a layer: its families' widths, all combined

Kept = Mapping[str, int]  # channels kept by family


class Widths:
    """The families that may be narrower, each with its widths, widest first, and what each width damages."""

    def __init__(
        self, channels: Channels, tile: int, scales: Mapping[str, Callable[[float], float]], report: Report = silent
    ) -> None:
        self.channels = channels
        self._families = _named(channels)
        self.options = {
            name: found for name, family in self._families.items() if len(found := _widths(family, tile)) > 1
        }
        self._sides = {
            layer.name: self._sides_of(node, layer) for node, layer in channels.layers.items() if layer.pixels
        }
        self._thin_out()
        self.damage = self._damages(scales, report)
        if channels.samples is not None:
            self._measure(channels.samples, report)

    def of_layer(self, name: str) -> list[str]:
        """The families among a layer's channels, out and in."""
        return [family for family in self.options if any(family in side for side in self._sides.get(name, ()))]

    def shapes(self, name: str) -> dict[tuple[tuple[str, int], ...], tuple[int, int]]:
        """A layer's channels (out, in) at all widths of its families."""
        families = self.of_layer(name)
        return {
            tuple(zip(families, widths, strict=True)): self.kept(name, dict(zip(families, widths, strict=True)))
            for widths in product(*(self.options[family] for family in families))
        }

    def kept(self, name: str, widths: Kept) -> tuple[int, int]:
        """A layer's channels (out, in) at some widths; families that are not named are whole."""
        counts = []
        for side in self._sides[name]:
            gone = sum(int(side[one][: len(side[one]) - width].sum()) for one, width in widths.items() if one in side)
            counts.append(int(side[""].sum()) - gone)
        return counts[0], counts[1]

    def narrower(self, widths: Kept) -> dict[str, int]:
        """Those of the families that lose channels."""
        return {name: width for name, width in widths.items() if width < self._size(name)}

    def dead(self, widths: Kept) -> set[int]:
        """The classes of channels that go."""
        return {
            root for name, width in widths.items() for root in self._families[name].classes[: self._size(name) - width]
        }

    def apply(
        self, model: ir.Model, widths: Kept, tile: int, samples: Samples | None = None, report: Report = silent
    ) -> dict[str, GroupDecision]:
        """Take channels out of `model`, the one these are of or a copy; with samples what reads them is refitted."""
        channels = Channels(model, samples, saliency=self.channels.saliency)
        channels.remove(model, self.dead(widths), report=report)
        return fold_channels(model, tile)

    def _size(self, name: str) -> int:
        return len(self._families[name].classes)

    def _sides_of(self, node: ir.Node, layer: Layer) -> tuple[dict[str, NDArray[np.intp]], ...]:
        """For the output and the input: by family how often each of its classes is among the channels; "" for all."""
        coupling = self.channels.coupling
        reads = {read.node: read for read in coupling.reads}
        ids = [coupling.rows.get(node), reads[node].ids if node in reads else None]
        sides = []
        for given, count in zip(ids, layer.shape[:2], strict=True):
            if given is None:
                sides.append({"": np.array([count], np.intp)})
                continue
            roots = coupling.roots(given)
            side = {"": np.array([len(roots)], np.intp)}
            for name, family in self._families.items():
                times = np.array([np.count_nonzero(roots == root) for root in family.classes], np.intp)
                if times.any():
                    side[name] = times
            sides.append(side)
        return tuple(sides)

    def _thin_out(self) -> None:
        """Fewer widths where a layer would have too many shapes; in the end its families stay whole, one by one."""
        for layer in self._sides:
            while prod(len(self.options[name]) for name in self.of_layer(layer)) > _MOST_SHAPES:
                longest = max(self.of_layer(layer), key=lambda name: len(self.options[name]))
                listed = self.options[longest]
                if len(listed) > 2:
                    self.options[longest] = [*listed[:-1:2], listed[-1]]
                else:
                    del self.options[longest]

    def _damages(self, scales: Mapping[str, Callable[[float], float]], report: Report) -> dict[str, dict[int, float]]:
        found = {name: dict.fromkeys(widths, 0.0) for name, widths in self.options.items()}
        channels = self.channels
        if channels.samples is None:
            for name, widths in found.items():
                saliency = self._families[name].saliency
                for width in widths:
                    widths[width] = float(saliency[: self._size(name) - width].sum())
            return found
        walk = Walk(channels.original, channels.samples)
        readers = [read for read in channels.coupling.reads if self._is_judge(read)]
        for number, read in enumerate(readers):
            report("scoring widths", number, len(readers))
            layer = channels.layers[read.node]
            loss = BlockLoss(layer.kernel, collect(layer, walk, walk), len(read.ids))
            roots, scale = channels.coupling.roots(read.ids), scales.get(layer.name, float)
            for name, widths in found.items():
                for width in widths:
                    gone = np.flatnonzero(np.isin(roots, self._families[name].classes[: self._size(name) - width]))
                    if len(gone):
                        widths[width] += scale(loss(gone.tolist()))
        return found

    def _measure(self, samples: Samples, report: Report) -> None:
        """Take a family's channels out for real, at two widths, and scale what was predicted for all by what they did:
        channels may go in directions that matter more than those that ranks leave out.
        """
        original = self.channels.original
        for number, (name, widths) in enumerate(self.damage.items()):
            report("measuring widths", number, len(self.damage))
            found = {}
            for width in dict.fromkeys((self.options[name][1], self.options[name][-1])):
                copy = ir.from_proto(original)
                Channels(copy, samples, saliency=self.channels.saliency).remove(copy, self.dead({name: width}))
                found[widths[width]] = damage_of(original, ir.to_proto(copy), samples, EFFECT_SAMPLES).error
            scale, whole = Scale(found), self.options[name][0]
            self.damage[name] = {width: 0.0 if width == whole else scale(loss) for width, loss in widths.items()}

    def _is_judge(self, read: Read) -> bool:
        layer = self.channels.layers.get(read.node)
        if layer is None or layer.obstacle is not None or layer.pixels is None:
            return False
        return any(name in self._sides[layer.name][1] for name in self.options)


def _named(channels: Channels) -> dict[str, Family]:
    """Families by the first layer that writes them, the second of a layer with a number."""
    found: dict[str, Family] = {}
    for names, family in channels.families.items():
        first = next((name for name in names if name), "channels")
        name, number = first, 1
        while name in found:
            number += 1
            name = f"{first} ({number})"
        found[name] = family
    return found


def _widths(family: Family, tile: int) -> list[int]:
    """Whole, and multiples of the tile below, at most `MOST`."""
    size = len(family.classes)
    below = list(range(tile, size, tile))[::-1]
    return spread([size, *below], MOST)
