"""Arrays of constants and NaN (alive) that broadcast to a value's shape, and the questions asked of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graphs import array, sizes

Channels = NDArray[np.float64]
Known = dict[ir.Value, Channels]
Found = Mapping[ir.Value, Channels] | None
Rule = Callable[[ir.Node, Known, int], Found]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def is_float(value: ir.Value) -> bool:
    """Whether the value holds floating-point numbers; integer arithmetic is not ours."""
    return value.dtype in _FLOATS


def full(known: Known, value: ir.Value | None) -> Channels:
    """What is known of a value, constant or not: an array of its rank, one NaN where nothing is."""
    constant = array(value)
    if constant is not None:
        return constant.astype(np.float64)
    nothing = np.full([1] * len(sizes(value)), np.nan)
    return nothing if value is None else known.get(value, nothing)


def along(known: Known, value: ir.Value | None, axis: int) -> Channels | None:
    """The constant of each index along an axis, NaN where it differs along the others; None if its size is unknown."""
    shape = sizes(value)
    size = shape[axis] if -len(shape) <= axis < len(shape) else None
    if value is None or size is None:
        return None
    numbers = np.moveaxis(full(known, value), axis, 0)
    flat = numbers.reshape(len(numbers), -1)
    same = (flat == flat[:, :1]).all(axis=1)
    return np.broadcast_to(np.where(same, flat[:, 0], np.nan), (size,))


def placed(channels: Channels, rank: int, axis: int) -> Channels:
    """Channels as an array of `rank` that varies along `axis` only."""
    return channels.reshape([-1 if one == axis % rank else 1 for one in range(rank)])


def spread(known: Known, value: ir.Value | None, axes: Collection[int]) -> Channels | None:
    """What is known, with those axes at their full size; None where a size is unknown."""
    numbers = full(known, value)
    shape = [sizes(value)[axis] if axis in axes else size for axis, size in enumerate(numbers.shape)]
    wanted = [size for size in shape if size is not None]
    return np.broadcast_to(numbers, wanted) if len(wanted) == len(shape) else None


def compact(numbers: Channels, axes: Collection[int]) -> Channels:
    """Those axes cut to size 1 where nothing varies along them."""
    for axis in axes:
        first = numbers.take([0], axis=axis)
        if ((numbers == first) | (np.isnan(numbers) & np.isnan(first))).all():
            numbers = first
    return numbers
