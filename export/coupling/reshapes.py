"""Reshape, Flatten, Squeeze, Unsqueeze, DepthToSpace: a channel owns the block of numbers that it becomes."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from ..graphs import array, input_at, own_input
from ..segments import Axes, segments
from .classes import CHANNEL_AXIS, Coupling, Ids, Kept


def reshape(node: ir.Node, coupling: Coupling) -> bool:
    """To a constant shape, whose counts of channels are written again."""
    target = array(input_at(node, 1))
    if target is None or not _reshape(node, coupling):
        return False
    rows = [coupling.ids(node.outputs[0], axis) for axis in range(len(target))]
    coupling.rewrites.append(lambda kept: _count(node, rows, kept))
    return True


def flatten(node: ir.Node, coupling: Coupling) -> bool:
    """Flatten, and what only adds or drops axes of size 1: no constant tells how many channels there are."""
    return _reshape(node, coupling)


def depth_to_space(node: ir.Node, coupling: Coupling) -> bool:
    """Each channel is made of blocksize² (pixel shuffle)."""
    source, output = node.inputs[0], node.outputs[0]
    many, few = coupling.ids(source, CHANNEL_AXIS), coupling.ids(output, CHANNEL_AXIS)
    by_column = node.attributes.get_string("mode", "DCR") == "CRD"
    return _blocks(node, coupling, many, few, np.repeat if by_column else np.tile)


def space_to_depth(node: ir.Node, coupling: Coupling) -> bool:
    """The reverse, in the order of DCR."""
    few, many = coupling.ids(node.inputs[0], CHANNEL_AXIS), coupling.ids(node.outputs[0], CHANNEL_AXIS)
    return _blocks(node, coupling, many, few, np.tile)


def _blocks(node: ir.Node, coupling: Coupling, many: Ids | None, few: Ids | None, spread) -> bool:
    if many is None or few is None:
        return False
    coupling.tie(spread(few, len(many) // len(few)), many)
    coupling.tie(coupling.ids(node.inputs[0], 0), coupling.ids(node.outputs[0], 0))
    for value in (node.inputs[0], node.outputs[0]):
        for axis in (2, 3):
            coupling.freeze(coupling.ids(value, axis), f"mixed by '{node.name}' ({node.op_type})")
    return True


def _reshape(node: ir.Node, coupling: Coupling) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or output.shape is None:
        return False
    runs = segments(dims(source), dims(output))
    if runs is None:
        return False
    for before, after in runs:
        _tie_run(node, before, after, coupling)
    return True


def dims(value: ir.Value) -> list[object]:
    """Sizes: an int, a symbol's name, or None for an unknown one."""
    assert value.shape is not None, f"value {value.name!r} has no shape"
    return [size if isinstance(size, int) else size.value for size in value.shape]


def _tie_run(node: ir.Node, before: Axes, after: Axes, coupling: Coupling) -> None:
    """One axis to one; an axis and its block; or the outermost axes, when one of them counts blocks of the other."""
    source, output = node.inputs[0], node.outputs[0]
    if len(before) == len(after) == 1:
        coupling.tie(coupling.ids(source, before[0]), coupling.ids(output, after[0]))
        return
    left, right = _apart(source, before, coupling), _apart(output, after, coupling)
    for ids in [*left, *right]:
        if len(ids) == 1:  # comes or goes without a partner, and is needed like all that a reshape passes on
            coupling.freeze(ids, f"the only one of its axis in '{node.name}' ({node.op_type})")
    left, right = ([ids for ids in axes if len(ids) > 1] for axes in (left, right))
    if not left or not right:
        return
    if len(right) == 1:
        chosen = _channels_among(left, coupling)
        coupling.tie(_spread(left, chosen), right[0])
    else:
        chosen = 0
        _tie_outermost(left[0], right[0], coupling)
    tied = () if len(right) == 1 else (right[0],)
    for ids in [*left[:chosen], *left[chosen + 1 :], *(ids for ids in right[len(tied) :] if len(right) > 1)]:
        coupling.freeze(ids, f"taken apart by '{node.name}' ({node.op_type})")


def _apart(value: ir.Value | None, axes: Axes, coupling: Coupling) -> list[Ids]:
    """The elements of each axis; a run has known sizes only."""
    return [ids for axis in axes if (ids := coupling.ids(value, axis)) is not None]


def _channels_among(axes: list[Ids], coupling: Coupling) -> int:
    """Of several axes that become one, the first that carries a layer's channels."""
    return next((index for index, ids in enumerate(axes) if coupling.carries(ids)), 0)


def _spread(axes: list[Ids], chosen: int) -> Ids:
    """For each number of the joint axis, its element on the chosen one."""
    inner = prod(len(ids) for ids in axes[chosen + 1 :])
    outer = prod(len(ids) for ids in axes[:chosen])
    return np.tile(np.repeat(axes[chosen], inner), outer)


def _tie_outermost(left: Ids, right: Ids, coupling: Coupling) -> None:
    """8 × … and 2 × …: every one of the two owns four of the eight next to each other."""
    if len(left) % len(right) == 0:
        coupling.tie(left, np.repeat(right, len(left) // len(right)))
    elif len(right) % len(left) == 0:
        coupling.tie(np.repeat(left, len(right) // len(left)), right)
    else:
        coupling.tie(left, None)
        coupling.tie(right, None)


def _count(node: ir.Node, rows: list[Ids | None], kept: Kept) -> None:
    target = array(input_at(node, 1))
    assert target is not None, f"shape of {node.name!r} is not constant"
    numbers = target.copy()
    for axis, ids in enumerate(rows):
        if ids is not None and numbers[axis] > 0:
            numbers[axis] = kept(ids).sum()
    if (numbers != target).any():
        own_input(node, 1, numbers, f"{node.name}.shape")


RULES = {
    "Reshape": reshape,
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), flatten),
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
