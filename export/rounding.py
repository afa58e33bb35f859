"""How many dead channels go: widths on the tile, groups in balance, nothing left empty.

Each rule gives channels back until it holds; as they only ever come back, a round in which none does is the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .coupling import Coupling, Ids, Mask
from .tile import up_to_tile


def rounded(coupling: Coupling, widths: Sequence[Ids], needed: Mask, tile: int) -> Mask:
    """By class: what to remove, of everything that is not needed; `widths` are the classes of each layer's outputs."""
    removed = coupling.removable() & ~needed
    spans = [span for span in coupling.spans() if removed[span].any()]
    balanced = [coupling.roots(ids) for ids in coupling.balanced]
    while removed.any():
        before = int(removed.sum())
        for span in spans:
            _keep_one(span, removed)
        for block in balanced:
            _balance(block, removed)
        for width in widths:
            _fill(width, removed, tile)
        if int(removed.sum()) == before:
            break
    return removed


def _keep_one(span: Ids, removed: Mask) -> None:
    """An axis of no channels at all is no axis."""
    if removed[span].all():
        removed[span[0]] = False


def _balance(block: Ids, removed: Mask) -> None:
    """groups × n: every group keeps as many as the one that keeps most."""
    most = int((~removed[block]).sum(axis=1).max())
    for group in block:
        _give_back(group, removed, most)


def _fill(width: Ids, removed: Mask, tile: int) -> None:
    live = int((~removed[width]).sum())
    _give_back(width, removed, min(up_to_tile(max(live, 1), tile), len(width)))


def _give_back(classes: Ids, removed: Mask, target: int) -> None:
    """Give the first dead classes back until `target` channels stay; a class may hold several of them."""
    while (missing := target - int((~removed[classes]).sum())) > 0:
        dead = classes[removed[classes]]
        _, first = np.unique(dead, return_index=True)
        removed[dead[np.sort(first)][:missing]] = False
        if len(first) == len(dead):
            return
