"""What a network would be if it were exported as it is now: shapes and ranks of its layers, MACs, weights and time."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..export.decompose import energy_of_ranks, numerical_rank, rank_of_share
from ..export.forms import FORMS, KernelShape, kernel_shape
from ..export.grid import nearest_rank, time_of
from ..export.tile import nearest_tile, up_to_tile
from ..records import FormName, LayerSummary, LayerTime, Measure
from .layers import Layer, Scale, matricize
from .proximal import singular_values


@dataclass(frozen=True)
class Exported:
    """Layers by name, and how they will be exported.

    `factored` are those whose ranks may fall, `pixels` the output pixels of each, `table` the rows of a latency table,
    `useful` the ranks of it that are faster than dense; the rest is as in `CompressionAware`.
    """

    layers: Mapping[str, Layer]
    scale: Scale
    tile: int
    energy: float
    factored: Collection[str]
    pixels: Mapping[str, int]
    table: Sequence[LayerTime] | None
    useful: Mapping[str, list[int]]

    def layer(self, layer: Layer) -> tuple[KernelShape, int | None]:
        """The layer's shape without its dead channels, up to the tile, and the rank that holds `energy`, to the
        nearest multiple of the tile, or to the nearest that is faster than dense; None where factors do not pay.
        """
        kernel = layer.kernel(self.scale)
        outputs, inputs, height, width = kernel_shape(kernel.shape)
        outputs = min(outputs, up_to_tile(int(layer.live().sum()), self.tile))
        inputs = min(inputs, up_to_tile(_live_inputs(kernel), self.tile))
        shape = (outputs, inputs, height, width)
        form = layer.form
        if layer.name not in self.factored or form is None:
            return shape, None
        wanted, full, _ = self._rank(matricize(form, kernel))
        useful = self.useful.get(layer.name)
        rank = nearest_tile(wanted, self.tile) if useful is None else nearest_rank(useful, wanted, full)
        return shape, rank if rank is not None and form.parameters(shape, rank) < math.prod(shape) else None

    @torch.no_grad()
    def measured(self, what: Measure) -> tuple[float, float]:
        """(now, dense) of one measure: MACs for one image (after a first forward), weights of the layers, or by the
        latency table the share of its layers' time.
        """
        if what == "latency":
            return self._time(), 1.0
        return self._weighted(lambda name: self.pixels.get(name, 0) if what == "macs" else 1)

    @torch.no_grad()
    def summary(self, layer: Layer) -> LayerSummary:
        """Rank at export, live filters and energy."""
        form = layer.form or FORMS["channel"]  # a grouped layer is summarised, never factored
        rank, full, energy = self._rank(matricize(form, layer.kernel("folded")))
        live = layer.live()
        return LayerSummary(
            name=layer.name,
            form=cast(FormName, form.name),
            rank=rank,
            full_rank=full,
            live_groups=int(live.sum()) if layer.has_groups else None,
            groups=len(live) if layer.has_groups else None,
            energy=energy,
        )

    def _weighted(self, each: Callable[[str], int]) -> tuple[int, int]:
        now = dense = 0
        for name, layer in self.layers.items():
            shape, rank = self.layer(layer)
            weights = math.prod(shape) if rank is None or layer.form is None else layer.form.parameters(shape, rank)
            now += weights * each(name)
            dense += layer.module.weight.numel() * each(name)
        return now, dense

    def _time(self) -> float:
        assert self.table is not None, "a time is asked for with a table"
        ranks = {name: self.layer(layer)[1] for name, layer in self.layers.items() if name in self.factored}
        kept = {name: (layer.form.name, ranks.get(name)) for name, layer in self.layers.items() if layer.form}
        return time_of(self.table, kept)

    def _rank(self, matrix: Tensor) -> tuple[int, int, float]:
        """(rank kept at `energy`, full rank, share of Σσ kept)."""
        values = singular_values(matrix).cpu().numpy()
        rank, shares = max(1, numerical_rank(values, matrix.shape)), energy_of_ranks(values)
        if self.energy < 1:
            rank = min(rank, rank_of_share(shares, self.energy))
        return rank, len(values), float(shares[rank - 1])


def _live_inputs(kernel: Tensor) -> int:
    return max(1, int((kernel.transpose(0, 1).flatten(1).abs().amax(dim=1) > 0).sum()))
