"""Constants that change their places: joined, cut, padded, chosen, transposed, reshaped."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..coupling.ranges import padding, slices
from ..coupling.reshapes import dims
from ..graphs import array, input_at, sizes
from ..segments import segments
from .known import Channels, Found, Known, along, compact, full, placed, spread


def _concat(node: ir.Node, known: Known, opset: int) -> Found:
    axis = node.attributes.get_int("axis", 0) % len(sizes(node.outputs[0]))
    parts = [spread(known, value, (axis,)) for value in node.inputs]
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        return None
    others = [max(part.shape[k] for part in present) for k in range(present[0].ndim)]
    shapes = [[part.shape[axis] if k == axis else size for k, size in enumerate(others)] for part in present]
    joined = [np.broadcast_to(part, shape) for part, shape in zip(present, shapes, strict=True)]
    return {node.outputs[0]: np.concatenate(joined, axis=axis)}


def _split(node: ir.Node, known: Known, opset: int) -> Found:
    axis = node.attributes.get_int("axis", 0) % len(sizes(node.inputs[0]))
    counts = [sizes(output)[axis] for output in node.outputs]
    whole = spread(known, node.inputs[0], (axis,))
    present = [count for count in counts if count is not None]
    if whole is None or len(present) < len(counts) or sum(present) != whole.shape[axis]:
        return None
    parts = np.split(whole, np.cumsum(present)[:-1], axis=axis)
    return dict(zip(node.outputs, parts, strict=True))


def _slice(node: ir.Node, known: Known, opset: int) -> Found:
    ranges, numbers = slices(node), full(known, node.inputs[0])
    if ranges is None:
        return None
    varying = [axis for axis in ranges if numbers.shape[axis] > 1]
    for axis in varying:
        numbers = numbers[(*[slice(None)] * axis, slice(*ranges[axis]))]
    return {node.outputs[0]: numbers}


def _pad(node: ir.Node, known: Known, opset: int) -> Found:
    """New channels carry the padding's number; new pixels leave a channel constant only if it is the same one."""
    amounts, mode, source = padding(node), node.attributes.get_string("mode", "constant"), node.inputs[0]
    numbers = full(known, source)
    if source is None or amounts is None or any(min(pair) < 0 for pair in amounts.values()):
        return None
    padded = [axis for axis, pair in amounts.items() if any(pair)]
    if mode != "constant":
        return None if any(numbers.shape[axis] > 1 for axis in padded) else {node.outputs[0]: numbers}
    given = array(input_at(node, 2))
    number = node.attributes.get_float("value", 0.0) if given is None else float(given.reshape(-1)[0])
    for axis in padded:
        if axis == 1:
            whole = spread({source: numbers}, source, (axis,))
            if whole is None:
                return None
            width = [(0, 0) if one != axis else amounts[axis] for one in range(whole.ndim)]
            numbers = np.pad(whole, width, constant_values=number)
        elif numbers.shape[axis] == 1:
            numbers = np.where(numbers == number, numbers, np.nan)
        else:
            return None
    return {node.outputs[0]: numbers}


def _gather(node: ir.Node, known: Known, opset: int) -> Found:
    axis, indices = node.attributes.get_int("axis", 0) % len(sizes(node.inputs[0])), array(input_at(node, 1))
    whole = None if indices is None else spread(known, node.inputs[0], (axis,))
    return None if whole is None or indices is None else {node.outputs[0]: whole.take(indices, axis=axis)}


def _transpose(node: ir.Node, known: Known, opset: int) -> Found:
    numbers = full(known, node.inputs[0])
    return {node.outputs[0]: numbers.transpose(node.attributes.get_ints("perm", list(range(numbers.ndim))[::-1]))}


def _reshape(node: ir.Node, known: Known, opset: int) -> Found:
    """Each run of axes by itself; all of it must vary within one run."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source not in known or source.shape is None or output.shape is None:
        return None
    runs, numbers = segments(dims(source), dims(output)), known[source]
    varying = [axis for axis, size in enumerate(numbers.shape) if size > 1]
    chosen = [run for run in runs or () if any(axis in run[0] for axis in varying)]
    if runs is None or len(chosen) > 1:
        return None
    before, after = chosen[0] if chosen else ([], [])
    whole = spread(known, source, before)
    if whole is None:
        return None
    shape = [sizes(output)[axis] if axis in after else 1 for axis in range(len(sizes(output)))]
    sized = [size for size in shape if size is not None]
    return {output: compact(whole.reshape(sized), after)} if len(sized) == len(shape) else None


def _depth_to_space(node: ir.Node, known: Known, opset: int) -> Found:
    """Constant where all blocksize² channels it is made of are the same."""
    channels, few = along(known, node.inputs[0], 1), sizes(node.outputs[0])[1]
    if channels is None or not few:
        return None
    by_column = node.attributes.get_string("mode", "DCR") == "CRD"
    blocks: Channels = channels.reshape(few, -1) if by_column else channels.reshape(-1, few).T
    same = (blocks == blocks[:, :1]).all(axis=1)
    return {node.outputs[0]: placed(np.where(same, blocks[:, 0], np.nan), 4, 1)}


def _space_to_depth(node: ir.Node, known: Known, opset: int) -> Found:
    channels, many = along(known, node.inputs[0], 1), sizes(node.outputs[0])[1]
    if channels is None or not many:
        return None
    return {node.outputs[0]: placed(np.tile(channels, many // channels.size), 4, 1)}


RULES = {
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
