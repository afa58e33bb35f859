"""What Slice and Pad say about their axes, whichever opset they were written for."""

from __future__ import annotations

import onnx_ir as ir

from ..graphs import array, input_at, sizes


def slices(node: ir.Node) -> dict[int, tuple[int, int | None, int]] | None:
    """start, stop and step by axis as Python slices them; None where they are not constant (or opset < 10)."""
    starts, stops = array(input_at(node, 1)), array(input_at(node, 2))
    steps = array(input_at(node, 4))
    rank = len(sizes(node.inputs[0]))
    if starts is None or stops is None or not _is_constant(node, 3) or not _is_constant(node, 4):
        return None
    axes = axes_or_all(node, 3, rank)[: len(starts)]
    strides = [1] * len(starts) if steps is None else steps.tolist()
    bounds = zip(axes, starts.tolist(), stops.tolist(), strides, strict=True)
    return {axis: _bounds(start, stop, step, sizes(node.inputs[0])[axis]) for axis, start, stop, step in bounds}


def padding(node: ir.Node) -> dict[int, tuple[int, int]] | None:
    """Numbers added before and after each axis; None where they are not constant."""
    given = array(input_at(node, 1)) if len(node.inputs) > 1 else node.attributes.get_ints("pads", ())
    rank = len(sizes(node.inputs[0]))
    if given is None or not _is_constant(node, 3) or not _is_constant(node, 2):
        return None
    amounts, axes = [int(amount) for amount in given], axes_or_all(node, 3, rank)
    pairs = zip(amounts[: len(axes)], amounts[len(axes) :], strict=True)
    return dict(zip(axes, pairs, strict=True))


def axes_or_all(node: ir.Node, index: int, rank: int) -> list[int]:
    """The axes input, non-negative; all axes where there is none."""
    given = array(input_at(node, index))
    return list(range(rank)) if given is None else [int(axis) % rank for axis in given]


def _is_constant(node: ir.Node, index: int) -> bool:
    value = input_at(node, index)
    return value is None or array(value) is not None


def _bounds(start: int, stop: int, step: int, size: int | None) -> tuple[int, int | None, int]:
    """ONNX clamps like Python, but reaches index 0 backwards by a stop far below -size."""
    if size is not None and step < 0 and stop < -size:
        return start, None, step
    return start, stop, step
