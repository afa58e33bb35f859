"""Operators that move numbers or make them: shapes, slices, constants, resizing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from .call import Call, Table, axes_of, ints, padded

SHAPES = Table()


@SHAPES.of("Shape")
def _shape(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[call.get("start", 0) : call.get("end", None)], dtype=torch.int64)


@SHAPES.of("Reshape")
def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    keeps_zero = call.get("allowzero", 0)
    sizes = [x.shape[axis] if size == 0 and not keeps_zero else size for axis, size in enumerate(ints(shape) or [])]
    return x.reshape(sizes)


@SHAPES.of("Flatten")
def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    before = math.prod(x.shape[: axis if axis >= 0 else x.ndim + axis])
    return x.reshape(before, -1)


@SHAPES.of("Transpose")
def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(*call.get("perm", list(reversed(range(x.ndim)))))


@SHAPES.of("Squeeze")
def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = axes_of(call, axes, ())
    return x.squeeze(tuple(chosen)) if chosen else x.squeeze()


@SHAPES.of("Unsqueeze")
def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = axes_of(call, axes, ())
    rank = x.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@SHAPES.of("Concat")
def _concat(call: Call, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, call.get("axis", 0))


@SHAPES.of("Split")
def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Any:
    axis = call.get("axis", 0)
    parts = ints(sizes) or list(call.get("split", []))
    if not parts:
        each = math.ceil(x.shape[axis] / call.outputs)
        parts = [min(each, x.shape[axis] - each * number) for number in range(call.outputs)]
    return torch.split(x, parts, axis)


@SHAPES.of("Slice")
def _slice(
    _call: Call, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    begins, stops = ints(starts) or [], ints(ends) or []
    along = ints(axes) or list(range(len(begins)))
    strides = ints(steps) or [1] * len(begins)
    for axis, begin, stop, step in zip(along, begins, stops, strides, strict=True):
        chosen = torch.arange(x.shape[axis], device=x.device)[slice(begin, stop, step)] if step > 0 else None
        if chosen is None:
            first, last, _ = slice(begin, None if stop < -x.shape[axis] else stop, step).indices(x.shape[axis])
            chosen = torch.arange(first, last, step, device=x.device)
        x = x.index_select(axis, chosen)
    return x


@SHAPES.of("Pad")
def _pad(call: Call, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    mode = call.get("mode", "constant")
    sizes, along = ints(pads) or [], ints(axes) or list(range(x.ndim))
    half = len(sizes) // 2
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for axis, begin, end in zip(along, sizes[:half], sizes[half:], strict=True):
        begins[axis], ends[axis] = begin, end
    if mode == "constant":
        return padded(x, [*begins, *ends], 0.0 if value is None else float(value))
    kinds = {"edge": "replicate", "reflect": "reflect"}
    if mode not in kinds or any(begins[:2]) or any(ends[:2]):
        raise call.refuse(f"mode {mode} here")
    pairs = zip(reversed(begins[2:]), reversed(ends[2:]), strict=True)
    return F.pad(x, [size for pair in pairs for size in pair], mode=kinds[mode])


@SHAPES.of("Gather")
def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.ndim
    size = x.shape[axis]
    flat = torch.where(indices < 0, indices + size, indices).reshape(-1).long().to(x.device)
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@SHAPES.of("Expand")
def _expand(_call: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x * torch.ones(ints(shape) or [], dtype=x.dtype, device=x.device)


@SHAPES.of("Tile")
def _tile(_call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(ints(repeats) or [])


@SHAPES.of("Constant")
def _constant(call: Call) -> Tensor:
    value = call.attributes.get("value")
    if value is not None:
        return torch.from_numpy(np.array(numpy_helper.to_array(value)))
    name, value = next((name, value) for name, value in call.attributes.items() if name.startswith("value_"))
    return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)


@SHAPES.of("ConstantOfShape")
def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.attributes.get("value")
    numbers = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return torch.from_numpy(np.full(ints(shape) or [], numbers.reshape(-1)[0], numbers.dtype))


@SHAPES.of("Range")
def _range(_call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@SHAPES.of("DepthToSpace")
def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    block = call.get("blocksize", 1)
    n, c, h, w = x.shape
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, c // block**2, h, w)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


@SHAPES.of("SpaceToDepth")
def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    block = call.get("blocksize", 1)
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)


@SHAPES.of("Resize")
def _resize(
    call: Call, x: Tensor, _region: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    mode, where = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    target = (ints(sizes) or [])[2:]
    if not target and scales is not None:
        target = [int(size * scale) for size, scale in zip(x.shape[2:], scales.reshape(-1).tolist()[2:], strict=True)]
    whole = all(after % before == 0 for before, after in zip(x.shape[2:], target, strict=True))
    if mode == "nearest" and whole:
        return F.interpolate(x, size=target, mode="nearest")  # every rounding agrees on whole factors
    if mode == "linear" and x.ndim == 4 and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return F.interpolate(x, size=target, mode="bilinear", align_corners=where == "align_corners")
    raise call.refuse(f"mode {mode} and {where} at these sizes")
