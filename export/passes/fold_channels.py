"""Take dead channels out of every layer they touch.

Requires: canonical graph, shapes inferred. Ensures: a channel that carries a constant wherever it is read is
gone, with its filter, bias, normalisation and the readers' slices, and the readers' biases carry its constant.
Exact: a constant c ≠ 0 in front of zero padding is kept (the border would differ), at least one channel of
every group stays, and counts are rounded up to `tile` with dead channels. Idempotent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
import onnx_ir as ir

from ...records import GroupDecision
from ..constants import Channels, absorbed, channel_constants, of
from ..coupling import CHANNEL_AXIS, Coupling, Ids, couple
from ..graphs import array, drop_unused_initializers, input_at, own_input, refresh_shapes, set_array, sizes
from ..layers import has_padding, is_layer


@dataclass(frozen=True)
class _Group:
    """Layers whose output channels are the same classes, in the same order."""

    name: str
    members: list[str]
    roots: Ids


def fold_channels(model: ir.Model, tile: int = 1) -> dict[str, GroupDecision]:
    """Fold in place; a decision and a reason for every group of layers, by its first member's name.

    Raises ValueError for a tile below 1.
    """
    if tile < 1:
        raise ValueError(f"expected a tile of at least 1, found {tile}")
    coupling = couple(model.graph)
    known = channel_constants(model.graph, model.opset_imports.get("", 1))
    groups = _groups(model.graph, coupling)
    obstacles = _obstacles(coupling, known)
    removed = _rounded(groups, obstacles, tile)
    decisions = {group.name: _decide(group, obstacles, removed, tile) for group in groups}
    if removed:
        shares = _shares(coupling, known, removed)
        _slice(model.graph, coupling, removed)
        for node, share in shares:
            _add_to_bias(node, share)
        drop_unused_initializers(model.graph)
        refresh_shapes(model)
    return decisions


def _groups(graph: ir.Graph, coupling: Coupling) -> list[_Group]:
    members: dict[tuple[int, ...], list[str]] = {}
    for node in graph:
        if is_layer(node) and (ids := coupling.tracked(node.outputs[0]).get(1)) is not None:
            members.setdefault(tuple(coupling.roots(ids).tolist()), []).append(node.name or "")
    return [_Group(names[0], names, np.array(roots, np.intp)) for roots, names in members.items()]


def _obstacles(coupling: Coupling, known: Mapping[ir.Value, Channels]) -> dict[int, str]:
    """Why a class of channels must stay, for every class that must; "" where it is simply alive."""
    obstacles = coupling.frozen()
    for read in coupling.reads:
        channels = of(known, read.value)
        assert channels is not None, f"value {read.value.name!r} is read but its channels are unknown"
        for root, constant in zip(coupling.roots(read.ids).tolist(), channels.tolist(), strict=True):
            if np.isnan(constant):
                obstacles.setdefault(root, "")
            elif constant != 0 and has_padding(read.node):
                obstacles.setdefault(
                    root, f"a constant {constant:.3g} in front of the zero padding of '{read.node.name}'"
                )
    return obstacles


def _rounded(groups: list[_Group], obstacles: Mapping[int, str], tile: int) -> set[int]:
    """Classes to remove: all that nothing keeps, less those that fill a group up to the tile."""
    removed = {root for group in groups for root in group.roots.tolist() if root not in obstacles}
    changed = True
    while changed:
        changed = False
        for group in groups:
            dead = [root for root in group.roots.tolist() if root in removed]
            live = len(group.roots) - len(dead)
            target = min(ceil(max(live, 1) / tile) * tile, len(group.roots))
            changed = changed or target > live
            removed.difference_update(dead[: target - live])
    return removed


def _decide(group: _Group, obstacles: Mapping[int, str], removed: set[int], tile: int) -> GroupDecision:
    roots = group.roots.tolist()
    return GroupDecision(
        channels=len(roots),
        kept=[index for index, root in enumerate(roots) if root not in removed],
        members=group.members,
        reason=_reason(roots, obstacles, removed, tile),
    )


def _reason(roots: list[int], obstacles: Mapping[int, str], removed: set[int], tile: int) -> str:
    gone = sum(root in removed for root in roots)
    fillers = sum(root not in removed and root not in obstacles for root in roots)
    held = Counter(obstacles[root] for root in roots if obstacles.get(root))
    parts = [f"{gone} dead channels folded"] if gone else []
    if fillers:
        whole = "one channel has to stay" if gone + fillers == len(roots) and tile == 1 else f"the tile is {tile}"
        parts.append(f"{fillers} dead kept: {whole}")
    parts += [f"{count} kept: {reason}" for reason, count in held.items()]
    return "; ".join(parts) or "every channel is alive"


def _shares(
    coupling: Coupling, known: Mapping[ir.Value, Channels], removed: set[int]
) -> list[tuple[ir.Node, Channels]]:
    """What the removed channels add to each reader's remaining outputs, where it is not zero."""
    shares = []
    for read in coupling.reads:
        channels = of(known, read.value)
        assert channels is not None, f"value {read.value.name!r} is read but its channels are unknown"
        share = absorbed(read.node, np.where(_gone(coupling, read.ids, removed), channels, 0.0))
        if share.any():
            outputs = coupling.tracked(read.node.outputs[0])[CHANNEL_AXIS]
            shares.append((read.node, share[~_gone(coupling, outputs, removed)]))
    return shares


def _add_to_bias(node: ir.Node, share: Channels) -> None:
    bias, weight = array(input_at(node, 2)), array(node.inputs[1])
    assert weight is not None, f"layer {node.name!r} has no constant weight"
    total = share if bias is None else bias.astype(np.float64) + share
    own_input(node, 2, total.astype(weight.dtype), f"{node.name}.bias")


def _slice(graph: ir.Graph, coupling: Coupling, removed: set[int]) -> None:
    """Cut the removed indices out of every constant, and count a depthwise convolution's groups again."""
    for value, axes in coupling.values().items():
        numbers = array(value)
        if numbers is None or not value.is_initializer():
            continue
        for axis, ids in axes.items():
            numbers = np.compress(~_gone(coupling, ids, removed), numbers, axis=axis)
        set_array(value, numbers)
    for node in graph:
        filters = coupling.tracked(input_at(node, 1)).get(0)
        groups = node.attributes.get_int("group", 1)
        if node.op_type == "Conv" and groups > 1 and filters is not None and len(filters) == groups:
            node.attributes["group"] = ir.AttrInt64("group", sizes(node.inputs[1])[0] or groups)


def _gone(coupling: Coupling, ids: Ids, removed: set[int]) -> np.ndarray:
    return np.isin(coupling.roots(ids), list(removed))
