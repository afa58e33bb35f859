"""Classes of channels: a union-find over every index of every axis, with what is read, frozen and to be rewritten.

Ties are collected as pairs of index arrays and joined at once (connected components of a sparse graph), so that a
network of 26 thousand channels costs milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ..graphs import array, sizes

Ids = NDArray[np.intp]
Mask = NDArray[np.bool_]
Kept = Callable[[Ids], Mask]
Rewrite = Callable[[Kept], None]
CHANNEL_AXIS = 1
UNEQUAL = "its size is unknown or differs"


@dataclass(frozen=True)
class Read:
    """A layer that sums over the channels of a value: its weight's slice goes when a channel does.

    `ids` are the channels along `axis` of `value`, `rows` the layer's own output channels. A grouped layer's g-th
    part reads the g-th part of `ids` only.
    """

    node: ir.Node
    value: ir.Value
    axis: int
    ids: Ids
    rows: Ids


class Coupling:
    """Elements are (value, axis, index); `ids` names them, `tie` joins them, `roots` is the class of each.

    `rows` has the output channels of every layer, `balanced` the groups × n blocks whose rows must keep equally
    many, `rewrites` what must be told about the channels that stay, `hits` how often each rule was used and
    `declined` the layers, and nodes that channels of a layer reach, which no rule took, with the reason.
    """

    def __init__(self) -> None:
        self.reads: list[Read] = []
        self.rows: dict[ir.Node, Ids] = {}
        self.balanced: list[Ids] = []
        self.rewrites: list[Rewrite] = []
        self.hits: Counter[str] = Counter()
        self.declined: dict[ir.Node, str] = {}
        self._axes: dict[ir.Value, dict[int, Ids]] = {}
        self._ties: list[tuple[Ids, Ids]] = []
        self._frozen: list[tuple[Ids, str]] = []
        self._made = np.zeros(1024, bool)
        self._count = 0
        self._labels: Ids | None = None

    def tracked(self, value: ir.Value | None) -> Mapping[int, Ids]:
        """Axes of `value` seen so far, with their elements."""
        return {} if value is None else self._axes.get(value, {})

    def values(self) -> Mapping[ir.Value, Mapping[int, Ids]]:
        """Every value with a tracked axis."""
        return self._axes

    def constants(self) -> Iterator[tuple[ir.Value, NDArray, Mapping[int, Ids]]]:
        """Every initialiser with a tracked axis, and its numbers."""
        for value, axes in self._axes.items():
            numbers = array(value)
            if numbers is not None and value.is_initializer():
                yield value, numbers, axes

    def ids(self, value: ir.Value | None, axis: int) -> Ids | None:
        """Elements along an axis, made on first use; None when its size is unknown or zero."""
        shape = sizes(value)
        size = shape[axis] if -len(shape) <= axis < len(shape) else None
        if value is None or not size:
            return None
        axes, axis = self._axes.setdefault(value, {}), axis % len(shape)
        if axis not in axes:
            axes[axis] = np.arange(self._count, self._count + size)
            self._count += size
            if self._count > len(self._made):
                self._made = np.concatenate([self._made, np.zeros(max(self._count, len(self._made)), bool)])
        return axes[axis]

    def tie(self, first: Ids | None, second: Ids | None) -> None:
        """Element k of one lives and dies with element k of the other; None or unequal sizes freeze."""
        if first is None or second is None or len(first) != len(second):
            for ids in (first, second):
                self.freeze(ids, UNEQUAL)
            return
        self._ties.append((first, second))
        self._made[second] |= self._made[first]
        self._labels = None

    def freeze(self, ids: Ids | None, reason: str) -> None:
        """These elements stay, whatever else is found."""
        if ids is not None and len(ids):
            self._frozen.append((ids, reason))

    def freeze_value(self, value: ir.Value | None, reason: str) -> None:
        """Every axis of a value stays."""
        for axis in range(len(sizes(value))):
            self.freeze(self.ids(value, axis), reason)

    def freeze_all(self, node: ir.Node, reason: str) -> None:
        """Everything the node reads or writes stays."""
        for value in (*node.inputs, *node.outputs):
            self.freeze_value(value, reason)

    def produce(self, node: ir.Node, rows: Ids) -> None:
        """Say that `rows` are the output channels of a layer."""
        self.rows[node] = rows
        self._made[rows] = True

    def carries(self, ids: Ids | None) -> bool:
        """Whether output channels of a layer arrive here, as far as the walk has come."""
        return ids is not None and bool(self._made[ids].any())

    def labels(self) -> Ids:
        """The class of every element."""
        labels = self._labels
        if labels is None or len(labels) != self._count:
            first, second = (
                np.concatenate([np.zeros(0, np.intp), *(pair[k] for pair in self._ties)]) for k in range(2)
            )
            edges = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(self._count, self._count))
            labels = connected_components(edges, directed=False)[1].astype(np.intp)
            self._labels = labels
        return labels

    def roots(self, ids: Ids) -> Ids:
        """The class of each element, in the shape of `ids`."""
        return self.labels()[ids]

    def frozen(self) -> dict[int, str]:
        """Classes that stay, with the first reason given."""
        found: dict[int, str] = {}
        for ids, reason in reversed(self._frozen):
            found.update(dict.fromkeys(np.unique(self.roots(ids)).tolist(), reason))
        return found

    def removable(self) -> Mask:
        """By class: whether a layer's output channel belongs to it."""
        mask = np.zeros(self._count, bool)
        for rows in self.rows.values():
            mask[self.roots(rows)] = True
        return mask

    def spans(self) -> list[Ids]:
        """The classes along every tracked axis."""
        return [self.roots(ids) for axes in self._axes.values() for ids in axes.values()]
