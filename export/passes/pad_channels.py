"""Channels that are off the device's tile, padded up to it with channels of zeros.

Requires: a canonical graph, shapes inferred. Ensures: the channels that are named have a multiple of the tile, made of
filters and biases of zeros, which every reader multiplies by zero. Exact. Idempotent.

A group of channels can grow where it is whole along every axis on which any of it appears: all of its channels next to
each other in one order, each as often as the others (a flattened channel owns a block). What is frozen, tied to
others of its own kind, chosen by position, or might be infinite where it is zero, stays as it is. So does what would
leave other outputs off the tile: zeros put around channels do not grow with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..chains import chains
from ..coupling import Coupling, Ids, Mask, couple
from ..coupling.ranges import slices
from ..graphs import array, input_at, refresh_shapes, set_array, sizes
from ..tile import up_to_tile

# operators whose result may be infinite or none at all where this input is zero
_ZERO_IS_NOT_SAFE = {"Div": 1, "Reciprocal": 0, "Log": 0, "Sqrt": 0, "Pow": 0, "ReduceLogSum": 0}


@dataclass(frozen=True)
class OffTile:
    """Channels that can be `padded`: by the name of the first layer that puts out them alone.

    `producers` write them, `readers` sum over them; `is_rank` where they are only between factors of one layer.
    """

    name: str
    producers: tuple[str, ...]
    readers: tuple[str, ...]
    channels: int
    padded: int
    is_rank: bool


def off_tile(model: ir.Model, tile: int) -> list[OffTile]:
    """All that can be padded, in the graph's order."""
    coupling = couple(model.graph)
    inner = {layer for chain in chains(model) for layer in chain.layers[:-1]}
    found = []
    for group in _groups(coupling, model.graph, tile):
        producers = [node.name or "" for node, rows in coupling.rows.items() if group.touches(coupling.roots(rows))]
        readers = [read.node.name or "" for read in coupling.reads if group.touches(coupling.roots(read.ids))]
        channels, is_rank = len(group.classes), inner.issuperset(producers)
        padded = channels + group.missing
        found.append(OffTile(group.name, tuple(producers), tuple(readers), channels, padded, is_rank))
    return found


def pad_channels(model: ir.Model, tile: int, names: Collection[str] | None = None) -> int:
    """Pad in place those of these names, all without; returns how many groups of channels grew."""
    coupling = couple(model.graph)
    groups = [group for group in _groups(coupling, model.graph, tile) if names is None or group.name in names]

    def places(ids: Ids) -> Ids:
        """Where zeros go along an axis, as np.insert counts."""
        roots = coupling.roots(ids)
        return np.concatenate([np.zeros(0, np.intp), *(group.places(roots) for group in groups)])

    def kept(ids: Ids) -> Mask:
        return np.ones(len(ids) + len(places(ids)), bool)

    if groups:
        for rewrite in coupling.rewrites:
            rewrite(kept)
        for value, numbers, axes in coupling.constants():
            grown = {axis: where for axis, ids in axes.items() if len(where := places(ids))}
            for axis, where in grown.items():
                numbers = np.insert(numbers, where, 0, axis=axis)
            if grown:
                set_array(value, numbers)
        refresh_shapes(model)
    return len(groups)


def blocks(channels: Ids, size: int) -> tuple[Ids, Ids] | None:
    """Where each whole block of the channels 0 … size − 1 ends along an axis, and how often each channel is in it.

    −1 is no channel of these. None where any are in no whole block.

    >>> blocks(np.array([-1, 0, 0, 1, 1, 0, 1]), 2)
    (array([5, 7]), array([2, 1]))
    """
    starts = np.flatnonzero(np.diff(channels, prepend=-2))
    times, mine = np.diff(starts, append=len(channels)), channels[starts] >= 0
    if mine.sum() % size:
        return None
    starts, times = starts[mine].reshape(-1, size), times[mine].reshape(-1, size)
    in_order = (channels[starts] == np.arange(size)).all()
    in_step = (starts == starts[:, :1] + times[:, :1] * np.arange(size)).all() and (times == times[:, :1]).all()
    # of one channel alone nobody can see whether it is there twice or owns a block of two
    if not in_order or not in_step or (size == 1 and (times > 1).any()):
        return None
    return starts[:, -1] + times[:, -1], times[:, -1]


@dataclass(frozen=True)
class _Group:
    """Channels in order, as classes; `missing` is how many more would be on the tile."""

    name: str
    classes: Ids
    missing: int

    def touches(self, roots: Ids) -> bool:
        """Whether any of the channels is among these."""
        return bool((self._channels(roots) >= 0).any())

    def is_whole(self, roots: Ids) -> bool:
        """Whether the channels appear along an axis in whole blocks only, or not at all."""
        return blocks(self._channels(roots), len(self.classes)) is not None

    def places(self, roots: Ids) -> Ids:
        """Where the missing channels go along an axis: behind each block, as often as each channel is in it."""
        found = blocks(self._channels(roots), len(self.classes))
        assert found is not None, f"the channels of {self.name!r} are torn apart"
        ends, times = found
        return np.repeat(ends, times * self.missing)

    def _channels(self, roots: Ids) -> Ids:
        """Which of the channels each class is, −1 where it is none."""
        order = np.argsort(self.classes)
        nearest = order[np.searchsorted(self.classes, roots, sorter=order).clip(max=len(order) - 1)]
        return np.where(self.classes[nearest] == roots, nearest, -1)


def _groups(coupling: Coupling, graph: ir.Graph, tile: int) -> list[_Group]:
    """Everything that is off the tile and can be padded."""
    found: dict[bytes, _Group] = {}
    for node, rows in coupling.rows.items():
        roots = coupling.roots(rows)
        missing = up_to_tile(len(roots), tile) - len(roots)
        if missing:
            found.setdefault(roots.tobytes(), _Group(node.name or "", roots, missing))
    stays = _stays(coupling, graph)
    spans = {span.tobytes(): span for span in coupling.spans()}.values()  # most axes are those of their neighbours
    groups = [group for group in found.values() if not stays[group.classes].any()]
    return _on_tile([group for group in groups if all(group.is_whole(span) for span in spans)], coupling, tile)


def _stays(coupling: Coupling, graph: ir.Graph) -> Mask:
    """By class: what cannot grow wherever it is."""
    mask = np.zeros(len(coupling.labels()), bool)
    mask[list(coupling.frozen())] = True
    for ids in (*coupling.balanced, *_delicate(coupling, graph)):
        mask[coupling.roots(ids)] = True
    return mask


def _delicate(coupling: Coupling, graph: ir.Graph) -> Iterator[Ids]:
    """Axes along which positions are chosen, and those of what must not be zero."""
    for node in graph:
        index = _ZERO_IS_NOT_SAFE.get(node.op_type)
        if index is not None and not _is_positive_power(node):
            yield from coupling.tracked(node.inputs[index]).values()
        for axis, ids in coupling.tracked(input_at(node, 0)).items():
            if node.op_type == "Slice" and axis in (slices(node) or ()):
                yield ids
            if node.op_type == "Gather" and axis == node.attributes.get_int("axis", 0) % len(sizes(node.inputs[0])):
                yield ids


def _is_positive_power(node: ir.Node) -> bool:
    exponents = array(input_at(node, 1)) if node.op_type == "Pow" else None
    return exponents is not None and bool((exponents > 0).all())


def _on_tile(groups: Sequence[_Group], coupling: Coupling, tile: int) -> list[_Group]:
    """Without those that leave a layer's outputs off the tile, or take its inputs off it, as others cannot grow."""
    written = [(coupling.roots(rows), True) for rows in coupling.rows.values()]
    read = [(coupling.roots(one.ids), len(one.ids) % tile == 0) for one in coupling.reads]
    left, before = list(groups), None
    while before != len(left):
        before = len(left)
        for roots, must in written + read:
            if must and (len(roots) + sum(len(group.places(roots)) for group in left)) % tile:
                left = [group for group in left if not group.touches(roots)]
    return left
