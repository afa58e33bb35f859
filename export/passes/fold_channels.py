"""Take dead channels out of every layer they touch.

Requires: canonical graph, shapes inferred. Ensures: a channel that nobody needs (`liveness`) is gone, with its
filter, bias, normalisation and the readers' slices, and the readers' biases carry its constant. Exact: a constant
c ≠ 0 in front of zero padding is kept (the border would differ), at least one channel of every axis stays, groups of
a convolution stay equally wide, and counts are rounded up to `tile` with dead channels. Idempotent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...records import GroupDecision
from ..constants import Channels, Known, channel_constants
from ..coupling import Coupling, Ids, Mask, couple
from ..graphs import add_initializer, array, drop_unused_initializers, input_at, own_input, refresh_shapes, set_array
from ..kernels import absorbed, bias_vector, out_channels
from ..layers import is_layer
from ..liveness import Needs, constants_of, needs
from ..rounding import rounded


@dataclass(frozen=True)
class _Group:
    """Layers whose output channels are the same classes, in the same order."""

    name: str
    members: list[str]
    roots: Ids


def fold_channels(model: ir.Model, tile: int = 1) -> dict[str, GroupDecision]:
    """Fold in place; a decision and a reason for every layer, alone or in its group, by the first member's name.

    Raises ValueError for a tile below 1.
    """
    if tile < 1:
        raise ValueError(f"expected a tile of at least 1, found {tile}")
    coupling = couple(model.graph)
    known = channel_constants(model.graph, model.opset_imports.get("", 1))
    groups, found = _groups(coupling), needs(coupling, known)
    removed = rounded(coupling, [group.roots for group in groups], found.needed, tile)
    decisions = {group.name: _decide(group, found, removed, tile) for group in groups}
    decisions |= {
        node.name or "": _untouched(node, reason) for node, reason in coupling.declined.items() if is_layer(node)
    }
    if removed.any():
        shares = _shares(coupling, known, removed)
        _remove(coupling, removed)
        for node, share in shares:
            _add_to_bias(node, share)
        drop_unused_initializers(model.graph)
        refresh_shapes(model)
    return decisions


def _groups(coupling: Coupling) -> list[_Group]:
    members: dict[bytes, list[ir.Node]] = {}
    for node, rows in coupling.rows.items():
        members.setdefault(coupling.roots(rows).tobytes(), []).append(node)
    return [
        _Group(nodes[0].name or "", [node.name or "" for node in nodes], coupling.roots(coupling.rows[nodes[0]]))
        for nodes in members.values()
    ]


def _decide(group: _Group, found: Needs, removed: Mask, tile: int) -> GroupDecision:
    return GroupDecision(
        channels=len(group.roots),
        kept=np.flatnonzero(~removed[group.roots]).tolist(),
        members=group.members,
        reason=_reason(group.roots, found, removed, tile),
    )


def _untouched(node: ir.Node, reason: str) -> GroupDecision:
    channels = out_channels(node)
    return GroupDecision(channels=channels, kept=list(range(channels)), members=[node.name or ""], reason=reason)


def _reason(roots: Ids, found: Needs, removed: Mask, tile: int) -> str:
    gone = int(removed[roots].sum())
    fillers = int((~removed[roots] & ~found.needed[roots]).sum())
    held = Counter(found.reasons[root] for root in roots.tolist() if root in found.reasons)
    parts = [f"{gone} dead channels folded"] if gone else []
    if fillers:
        parts.append(f"{fillers} dead kept: {_why_kept(gone, fillers, len(roots), tile)}")
    parts += [f"{count} kept: {reason}" for reason, count in held.items()]
    return "; ".join(parts) or "every channel is alive"


def _why_kept(gone: int, fillers: int, channels: int, tile: int) -> str:
    if tile > 1:
        return f"the tile is {tile}"
    whole = gone + fillers == channels and fillers == 1
    return "one channel has to stay" if whole else "an axis must not be empty, and groups must stay equally wide"


def _shares(coupling: Coupling, known: Known, removed: Mask) -> list[tuple[ir.Node, Channels]]:
    """What the removed channels add to each reader's remaining outputs, where it is not zero."""
    shares = []
    for read in coupling.reads:
        gone = removed[coupling.roots(read.ids)]
        constants = np.nan_to_num(constants_of(read, known)) * gone
        if constants.any() and (share := absorbed(read.node, constants)).any():
            shares.append((read.node, share[~removed[coupling.roots(read.rows)]]))
    return shares


def _remove(coupling: Coupling, removed: Mask) -> None:
    """Rewrite what counts or names channels, then cut the removed ones out of every constant."""

    def kept(ids: Ids) -> Mask:
        return ~removed[coupling.roots(ids)]

    for rewrite in coupling.rewrites:
        rewrite(kept)
    for value, numbers, axes in coupling.constants():
        cuts = {axis: kept(ids) for axis, ids in axes.items() if not kept(ids).all()}
        for axis, mask in cuts.items():
            numbers = np.compress(mask, numbers, axis=axis)
        if cuts:
            set_array(value, numbers)


def _add_to_bias(node: ir.Node, share: Channels) -> None:
    weight = array(node.inputs[1])
    assert weight is not None, f"layer {node.name!r} has no constant weight"
    if node.op_type == "MatMul":
        _add_behind(node, share.astype(weight.dtype))
        return
    bias = bias_vector(node, len(share))
    assert bias is not None, f"the bias of {node.name!r} is not constant"
    own_input(node, 2, (bias + share).astype(weight.dtype), f"{node.name}.bias")


def _add_behind(node: ir.Node, share: Channels) -> None:
    """A MatMul has no bias: the Add that follows takes the share, or a new one does."""
    output, graph = node.outputs[0], node.graph
    assert isinstance(graph, ir.Graph), f"node {node.name!r} is in no graph"
    uses = list(output.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not output.is_graph_output():
        place = 1 - uses[0].idx
        old = array(input_at(uses[0].node, place))
        if old is not None and old.shape == share.shape:
            own_input(uses[0].node, place, old + share, f"{node.name}.bias")
            return
    add = ir.node("Add", [output, add_initializer(graph, f"{node.name}.bias", share)], name=f"{node.name}.add")
    result = add.outputs[0]
    result.name, result.type = f"{output.name}_shifted", output.type
    if output.is_graph_output():
        result.shape, result.name, output.name = output.shape, output.name, result.name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    add.replace_input_with(0, output)
    graph.insert_after(node, add)
