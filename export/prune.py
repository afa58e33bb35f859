"""Whole channels out of any graph, those that their readers miss least: `compress --prune`.

With data the saliency of a channel is what its readers' outputs lose when it goes and their other weights make up
for it by least squares, tr(W_B·((C⁻¹)_BB)⁻¹·W_Bᵀ) with B its columns: optimal brain surgeon for blocks (Hassibi &
Stork, NIPS 1992). Without data it is the squared norm of its filters. Chosen channels are zeroed, their readers fitted
again one after the other, and folding takes them out exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import CheckFailed
from .aware import Moments, best_kernel, damped
from .calibration import Samples
from .coupling import Coupling, Read, couple
from .graphs import array, own_input, set_array
from .layers import Layer, layers_of
from .moments import collect
from .reporting import Report, silent
from .walk import Walk


@dataclass(frozen=True)
class Family:
    """Classes of channels that the same layers put out, weakest first, with their saliencies."""

    classes: list[int]
    saliency: NDArray[np.float64]


class Channels:
    """The channels of a canonical network with folded BatchNormalization: which go together, what each is worth.

    `saliency` is known where the model is a copy.
    """

    def __init__(
        self,
        model: ir.Model,
        samples: Samples | None,
        report: Report = silent,
        saliency: NDArray[np.float64] | None = None,
    ) -> None:
        self.original, self.samples = ir.to_proto(model), samples
        self.coupling = couple(model.graph)
        self.layers = {layer.node: layer for layer in layers_of(model)}
        if saliency is None:
            saliency = _saliency(self.coupling, self.layers, self.original, samples, report)
        self.saliency = saliency
        self.families = _families(self.coupling, self.layers, self.saliency)

    def remove(self, model: ir.Model, dead: set[int], *, refit: bool = True, report: Report = silent) -> dict[str, int]:
        """Zero classes in `model`, the one these channels are of, and fit what reads them; how many by layer."""
        zeroed = _zero(self.coupling, dead)
        if self.samples is not None and refit and dead:
            _refit(model, self.coupling, dead, self.original, self.samples, report)
        return zeroed


def prune(
    model: ir.Model,
    ratio: float,
    *,
    tile: int,
    samples: Samples | None,
    refit: bool = True,
    report: Report = silent,
) -> dict[str, int]:
    """Zero the least salient channels until `ratio` of the MACs would be gone; returns how many by layer.

    `model` is canonical with folded BatchNormalization; folding afterwards takes the channels out. Every family keeps
    at least a tile. Without `refit` the layers behind keep their other weights. Raises CheckFailed when so much cannot
    go.
    """
    channels = Channels(model, samples, report)
    dead = _chosen(channels.coupling, channels.layers, channels.families, ratio, tile)
    return channels.remove(model, dead, refit=refit, report=report)


# --- which --------------------------------------------------------------------------------------------------


def _saliency(
    coupling: Coupling,
    layers: Mapping[ir.Node, Layer],
    original: onnx.ModelProto,
    samples: Samples | None,
    report: Report,
) -> NDArray[np.float64]:
    """By class: the sum over its readers of the share of their output that is lost; or of its filters' shares."""
    found = np.zeros(len(coupling.labels()))
    if samples is None:
        for node, rows in coupling.rows.items():
            if node in layers:
                norms = np.square(layers[node].kernel.reshape(len(rows), -1)).sum(axis=1)
                np.add.at(found, coupling.roots(rows), norms / (norms.sum() or 1.0))
        return found
    walk = Walk(original, samples)
    for number, read in enumerate(coupling.reads):
        report("scoring channels", number, len(coupling.reads))
        layer = layers.get(read.node)
        if layer is not None and layer.obstacle is None and layer.pixels is not None:
            moments = collect(layer, walk, walk)
            np.add.at(found, coupling.roots(read.ids), block_losses(layer.kernel, moments, len(read.ids)))
    return found


def block_losses(kernel: NDArray[np.float64], moments: Moments, blocks: int) -> NDArray[np.float64]:
    """For each of `blocks` equal runs of a layer's inputs: the share of its output lost without it, refitted."""
    judge = BlockLoss(kernel, moments, blocks)
    return np.array([judge([block]) for block in range(blocks)])


class BlockLoss:
    """The share of a layer's output that is lost without some of `blocks` equal runs of its inputs, refitted."""

    def __init__(self, kernel: NDArray[np.float64], moments: Moments, blocks: int) -> None:
        self._flat = kernel.reshape(len(kernel), -1)
        self._inverse = np.linalg.inv(damped(moments.covariance))
        self._size, self._power = self._flat.shape[1] // blocks, moments.power or 1.0

    def __call__(self, gone: Sequence[int]) -> float:
        """Without these blocks, all together."""
        columns = (np.asarray(gone)[:, None] * self._size + np.arange(self._size)).ravel()
        own = self._flat[:, columns]
        among = np.linalg.inv(self._inverse[np.ix_(columns, columns)])
        return float(np.sum((own @ among) * own)) / self._power


def _families(
    coupling: Coupling, layers: Mapping[ir.Node, Layer], saliency: NDArray[np.float64]
) -> dict[tuple[str, ...], Family]:
    frozen = set(coupling.frozen())
    frozen |= {int(root) for ids in coupling.balanced for root in coupling.roots(ids).ravel()}
    members: dict[int, list[str]] = defaultdict(list)
    for node, rows in coupling.rows.items():
        for root in coupling.roots(rows).tolist():
            members[root].append(node.name or "" if node in layers else "")
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for root, names in members.items():
        if root not in frozen:
            alike[tuple(names)].append(root)
    found = {}
    for names, roots in alike.items():
        ordered = sorted(roots, key=lambda root: saliency[root])
        found[names] = Family(ordered, saliency[ordered])
    return found


class _Costs:
    """MACs of the model as channels go."""

    def __init__(self, coupling: Coupling, layers: Mapping[ir.Node, Layer]) -> None:
        self._sides: list[tuple[int, NDArray[np.intp], NDArray[np.intp]]] = []
        inputs: dict[ir.Node, Read] = {read.node: read for read in coupling.reads}
        for node, rows in coupling.rows.items():
            layer, read = layers.get(node), inputs.get(node)
            if layer is not None and layer.macs is not None:
                ids = coupling.roots(read.ids) if read is not None else np.zeros(0, np.intp)
                self._sides.append((layer.macs, coupling.roots(rows), ids))

    def total(self, gone: NDArray[np.bool_]) -> float:
        """MACs without the classes that are gone."""
        return sum(
            macs * float(np.mean(~gone[rows])) * (float(np.mean(~gone[ids])) if len(ids) else 1.0)
            for macs, rows, ids in self._sides
        )


def _chosen(
    coupling: Coupling,
    layers: Mapping[ir.Node, Layer],
    families: Mapping[tuple[str, ...], Family],
    ratio: float,
    tile: int,
) -> set[int]:
    """A tile of channels at a time, the one that loses least for each MAC it saves."""
    costs, gone = _Costs(coupling, layers), np.zeros(len(coupling.labels()), bool)
    dense = now = costs.total(gone)
    taken = dict.fromkeys(families, 0)

    def offer(names: tuple[str, ...]) -> tuple[float, tuple[str, ...]] | None:
        family, start = families[names], taken[names]
        if len(family.classes) - start < 2 * tile:
            return None
        chunk = family.classes[start : start + tile]
        gone[chunk] = True
        saved = now - costs.total(gone)
        gone[chunk] = False
        return float(family.saliency[start : start + tile].sum()) / max(saved, 1.0), names

    heap = [found for names in families if (found := offer(names)) is not None]
    heapify(heap)
    while now > (1 - ratio) * dense:
        if not heap:
            raise CheckFailed(
                f"expected to prune {ratio:.0%} of the MACs, found at most {1 - now / dense:.1%} in whole channels "
                f"(tile {tile}); ask for less"
            )
        _, names = heappop(heap)
        gone[families[names].classes[taken[names] : taken[names] + tile]] = True
        taken[names] += tile
        now = costs.total(gone)
        if (after := offer(names)) is not None:
            heappush(heap, after)
    return set(np.flatnonzero(gone).tolist())


# --- out ----------------------------------------------------------------------------------------------------


def _zero(coupling: Coupling, dead: set[int]) -> dict[str, int]:
    """Zero the filters and biases of the chosen channels in every layer that puts them out."""
    found: dict[str, int] = {}
    for node, rows in coupling.rows.items():
        mask = np.isin(coupling.roots(rows), list(dead))
        if mask.any():
            found[node.name or ""] = int(mask.sum())
    for value, axes in coupling.values().items():
        numbers = array(value)
        readers = {use.node for use in value.uses()}
        if numbers is None or not value.is_initializer() or not any(node in coupling.rows for node in readers):
            continue
        for axis, ids in axes.items():
            if not _is_output_axis(coupling, readers, ids):
                continue
            mask = np.isin(coupling.roots(ids), list(dead))
            if mask.any():
                numbers = numbers.copy()
                np.moveaxis(numbers, axis, 0)[mask] = 0
                set_array(value, numbers)
    return found


def _is_output_axis(coupling: Coupling, readers: set[ir.Node], ids: NDArray[np.intp]) -> bool:
    """Whether an axis of a weight counts output channels of a layer that reads it."""
    roots = coupling.roots(ids)
    return any(node in coupling.rows and np.array_equal(coupling.roots(coupling.rows[node]), roots) for node in readers)


def _refit(
    model: ir.Model,
    coupling: Coupling,
    dead: set[int],
    original: onnx.ModelProto,
    samples: Samples,
    report: Report,
) -> None:
    """Fit every layer behind a gap to the original's outputs, in order."""
    gaps = {read.node for read in coupling.reads if np.isin(coupling.roots(read.ids), list(dead)).any()}
    now, truth = Walk(original, samples), Walk(original, samples)
    todo = [layer for layer in layers_of(model) if layer.node in gaps and layer.obstacle is None]
    for number, layer in enumerate(todo):
        report("fitting layers", number, len(todo))
        if layer.pixels is None or layer.node.op_type == "MatMul":
            continue
        now.proto = ir.to_proto(model)
        moments = collect(layer, now, truth)
        rows = np.isin(coupling.roots(coupling.rows[layer.node]), list(dead))
        kernel = best_kernel(layer.kernel, moments)
        bias = moments.bias(kernel)
        kernel[rows], bias[rows] = 0, 0
        _store(layer, kernel, bias)


def _store(layer: Layer, kernel: NDArray[np.floating], bias: NDArray[np.floating]) -> None:
    own_input(layer.node, 1, layer.stored(kernel), f"{layer.name}.weight")
    own_input(layer.node, 2, bias.astype(np.float32), f"{layer.name}.bias")
